"""Cine clips: a CNN per frame (its embeddings), then a recurrent network or attention over frame times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fusion.batch import Tokens
from fusion.config import CinePooling
from fusion.encoders.base import Encoded, Encoder, Projection, Trunk, attention_weights, means

COMPONENTS = 32
HIDDEN = 16
PERIODS_S = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the waves that tell attention when a frame was taken


class Course(nn.Module):
    """What happens from frame to frame: float32 [B, T, COMPONENTS] and times → [B, HIDDEN], weights [B, T].

    gru, lstm    each frame beside the seconds since the one before; states are pooled by learned weights
    attention    a transformer layer over the frames, each with waves of its time (Vaswani 2017), pooled alike
    Padding changes nothing: it comes last, recurrent networks look back only, and attention does not see it.
    """

    def __init__(self, kind: CinePooling) -> None:
        super().__init__()
        self.kind = kind
        if kind == CinePooling.ATTENTION:
            self.enter = nn.Linear(COMPONENTS + 2 * len(PERIODS_S), HIDDEN)
            self.layer = nn.TransformerEncoderLayer(HIDDEN, 2, 2 * HIDDEN, dropout=0.1, batch_first=True)
        else:
            cell = nn.LSTM if kind == CinePooling.LSTM else nn.GRU
            self.cells = cell(COMPONENTS + 1, HIDDEN, batch_first=True)
        self.scorer = nn.Linear(HIDDEN, 1, bias=False)
        nn.init.zeros_(self.scorer.weight)

    def forward(self, values: Tensor, known: Tensor, seconds: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == CinePooling.ATTENTION:
            phases = torch.cat([2 * math.pi * seconds[..., None] / p for p in PERIODS_S], dim=-1)
            entered = self.enter(torch.cat([values, phases.sin(), phases.cos()], dim=2))
            nobody = ~known.any(dim=1, keepdim=True)  # a row without a frame looks at its padding, unheard
            states = self.layer(entered, src_key_padding_mask=~(known | nobody))
        else:
            since = torch.diff(seconds, dim=1, prepend=seconds[:, :1]).clamp(min=0)
            steps = torch.log1p(torch.where(known, since, 0.0))[..., None]
            states, _ = self.cells(torch.cat([values, steps], dim=2))
        weights = attention_weights(self.scorer(torch.tanh(states)).squeeze(-1), known)
        return (weights[..., None] * torch.where(known[..., None], states, 0.0)).sum(1), weights


class CineEncoder(Encoder):
    """[B, T, D] with times_ms [B, T] → [B, E] and a weight per frame.

    First a penalised logistic model on how the frames look (mean) and how much they move (standard
    deviation); then, where it helps patients set aside, what `Course` sees from frame to frame. With pooling
    "mean" there is no course, with "frame" only the middle frame: what cine models are compared to.
    """

    least_rows = 30

    def __init__(
        self, width_in: int, width: int, outcomes: int, pooling: CinePooling = CinePooling.GRU
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.projection = Projection(width_in, COMPONENTS)
        is_still = pooling in (CinePooling.MEAN, CinePooling.FRAME)
        self.trunk = Trunk(COMPONENTS if is_still else 2 * COMPONENTS, width, outcomes)
        self.course = None if is_still else Course(pooling)
        self.said = nn.Linear(HIDDEN, outcomes, bias=False)
        nn.init.zeros_(self.said.weight)

    def fit_statistics(self, tokens: Tokens) -> None:
        self.projection.fit(means(tokens.values, tokens.known), tokens.values[tokens.known])

    def prepare(self, tokens: Tokens) -> Tokens:
        projected = self.projection(tokens.values)
        return Tokens(torch.where(tokens.known[..., None], projected, 0.0), tokens.known, tokens.times_ms)

    def features(self, prepared: Tokens) -> Tensor:
        values, known = torch.where(prepared.known[..., None], prepared.values, 0.0), prepared.known
        count = known.sum(dim=1, keepdim=True).clamp(min=1)
        if self.pooling == CinePooling.FRAME:
            middle = torch.div(count - 1, 2, rounding_mode="floor")[..., None].expand(-1, 1, COMPONENTS)
            return torch.gather(values, 1, middle)[:, 0]
        mean = values.sum(1) / count
        if self.pooling == CinePooling.MEAN:
            return mean
        off = torch.where(known[..., None], values - mean[:, None], 0.0)
        return torch.cat([mean, ((off**2).sum(1) / count + 1e-6).sqrt()], dim=1)

    def forward(self, prepared: Tokens, fixed: Tensor | None = None) -> Encoded:
        embedding, logits = self.trunk(self.features(prepared))
        known = prepared.known
        if self.course is None:
            return Encoded(
                embedding, logits, attention_weights(torch.zeros_like(known, dtype=torch.float), known)
            )
        values = torch.where(known[..., None], prepared.values, 0.0)
        times = prepared.times_ms if prepared.times_ms is not None else torch.zeros_like(values[..., 0])
        seconds = torch.where(known, times, torch.zeros_like(times)) / 1000
        seen, weights = self.course(values, known, seconds)
        return Encoded(embedding, logits + self.said(seen), weights)
