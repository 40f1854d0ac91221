"""Irregular labs and vitals: what summaries say, and what a recurrent network saw in their course."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusion import parallel
from fusion.batch import Tokens
from fusion.encoders.base import CLIP, Encoded
from fusion.encoders.record import RecordEncoder, both
from fusion.rows import GRID, SUMMARY

HIDDEN = 32
BAGS = 3  # of trees: many columns that tell nearly the same, so that which of them a tree splits on is chance


class SeriesEncoder(RecordEncoder):
    """[B, channels, SUMMARY + 2 GRID] → [B, E].

    Up to three voices, whose weighted mean is said: a penalised logistic model on the summaries over three
    windows of time, boosted trees on the same (both as for fields), and a GRU over the grid. The GRU sees, at
    each step, every channel's mean, whether there was a value, and how long ago the last one was; a value
    fades towards the channel's mean as it ages, at a learned rate (GRU-D, Che 2018).
    """

    grid_mean: Tensor
    grid_scale: Tensor
    speaks: Tensor

    def __init__(self, channels: int, width: int, outcomes: int) -> None:
        super().__init__(channels, len(SUMMARY), width, outcomes, BAGS)
        self.register_buffer("grid_mean", torch.zeros(channels))
        self.register_buffer("grid_scale", torch.ones(channels))
        self.register_buffer("speaks", torch.zeros(()))  # 1 once the GRU is trained
        self.fading = nn.Parameter(torch.full((channels,), -2.0))
        self.gru = nn.GRU(3 * max(1, channels), HIDDEN, batch_first=True)
        self.said = nn.Linear(HIDDEN, outcomes)
        nn.init.zeros_(self.said.weight)
        nn.init.zeros_(self.said.bias)

    def fit_statistics(self, tokens: Tokens) -> None:
        super().fit_statistics(tokens)
        values, seen = _grid(tokens)
        count = seen.sum(dim=(0, 2)).clamp(min=1)
        mean = (values * seen).sum(dim=(0, 2)) / count
        spread = ((((values - mean[:, None]) ** 2) * seen).sum(dim=(0, 2)) / count).sqrt()
        self.grid_mean.copy_(mean)
        self.grid_scale.copy_(torch.where(spread > 1e-6, spread, torch.full_like(spread, 1e6)))

    def simple_features(self) -> NDArray[np.int64] | None:
        return None  # the stack boosts a series

    def prepare(self, tokens: Tokens) -> Tokens:
        summaries = super().prepare(tokens)
        values, seen = _grid(tokens)
        values = ((values - self.grid_mean[:, None]) / self.grid_scale[:, None]).clamp(-CLIP, CLIP) * seen
        held = torch.cat([summaries.values, values, seen], dim=2)
        return Tokens(torch.where(summaries.known[..., None], held, 0.0), summaries.known)

    def forward(self, prepared: Tokens, fixed: Tensor | None = None) -> Encoded:
        if self.training:  # the GRU alone: the other voices are fitted
            return Encoded(*self._recurrent(self._course(prepared)))
        embedding, logits = self.trunk(self.features(prepared))
        if not torch.compiler.is_exporting() and not bool(self.speaks):
            return Encoded(embedding, self._with_trees(prepared, logits, fixed))
        voices = self._with_trees(prepared, logits, fixed)
        return Encoded(embedding, self._with_gru(voices, self._course(prepared)))

    def shown(self, prepared: Tokens, known: Tensor) -> Tensor:
        voices = super().shown(prepared, known)
        if not bool(self.speaks):
            return voices
        hidden, seen = self._course(both(prepared))
        course = torch.where(known.repeat(1, 3)[:, None], seen, hidden)
        alike = int((hidden == seen)[:-1].all(dim=1).long().cumprod(0).sum())  # steps before the first value
        _, state = self.gru(hidden[None, :alike]) if alike else (None, None)
        return self._with_gru(voices, course[:, alike:], state)

    def end_training(self, *, helped: bool) -> None:
        self.speaks.fill_(float(helped))

    def _with_gru(self, voices: Tensor, course: Tensor, before: Tensor | None = None) -> Tensor:
        """The mean of voices and the GRU's; `before`: its state ahead of the course, [1, 1, HIDDEN]."""
        _, said = self._recurrent(course, before)
        share = torch.where(self.trees.is_fitted, 1 / 3, 1 / 2) * self.speaks
        return (1 - share) * voices + share * said

    def _course(self, prepared: Tokens) -> Tensor:
        """What the GRU sees, float32 [B, GRID, 3 x channels]: fading values, where one was, their age."""
        held = torch.where(prepared.known[..., None], prepared.values, 0.0)
        values, seen = held[..., len(SUMMARY) : len(SUMMARY) + GRID], held[..., len(SUMMARY) + GRID :]
        last, age = _carried(values, seen)
        rate = nn.functional.softplus(self.fading)[:, None]
        course = torch.cat([last * torch.exp(-rate * age), seen, age], dim=1).transpose(1, 2)
        return course if course.shape[2] else course.new_zeros(len(held), GRID, 3)

    def _recurrent(self, course: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The GRU's last state, float32 [B, HIDDEN], and what it says, float32 [B, R]."""
        start = None if before is None else before.expand(-1, len(course), -1).contiguous()
        states, _ = self.gru(parallel.dropout(course, 0.1, self.training), start)
        final = states[:, -1]
        return final, self.said(parallel.dropout(final, 0.3, self.training))


def _carried(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """At each step the last value so far, and its age as a share of the grid: float32 [B, channels, GRID].

    Before the first value: 0, and more than 1. Found in five doublings, not in a turn for each step.
    """
    step = torch.arange(1, GRID + 1, dtype=torch.float32, device=values.device)
    found = torch.where(seen > 0, step, torch.zeros(()))  # number of the step it stands in, 0 for none
    reach = 1
    while reach < GRID:
        found = torch.cat([found[..., :reach], torch.maximum(found[..., reach:], found[..., :-reach])], dim=2)
        reach *= 2
    held = torch.gather(values, 2, (found - 1).clamp(min=0).long())
    last = torch.where(found > 0, held, torch.zeros(()))
    age = torch.where(found > 0, step - found, step + GRID) / GRID
    return last, age


def _grid(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """(means, seen) float32 [B, channels, GRID]."""
    known = tokens.known[..., None].float()
    first = len(SUMMARY)
    return tokens.values[..., first : first + GRID] * known, tokens.values[..., first + GRID :] * known
