"""Cine clips: a CNN per frame (its embeddings), a GRU over irregular frame times, attention over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion.batch import Tokens
from fusion.encoders.base import Encoded, Encoder, Projection, Trunk, attention_weights

COMPONENTS = 16
HIDDEN = 16


class CineEncoder(Encoder):
    """[B, T, D] with times_ms [B, T] → [B, E] and a weight per frame.

    Three views of a clip go into the trunk: what the GRU saw (attention-weighted), how the frames look
    (mean), and how much they move (standard deviation). Padding comes last and never changes any of them.
    """

    def __init__(self, width_in: int, width: int, outcomes: int) -> None:
        super().__init__()
        self.projection = Projection(width_in, COMPONENTS)
        self.gru = nn.GRU(COMPONENTS + 1, HIDDEN, batch_first=True)
        self.scorer = nn.Linear(HIDDEN, 1, bias=False)
        nn.init.zeros_(self.scorer.weight)
        self.trunk = Trunk(HIDDEN + 2 * COMPONENTS, width, outcomes)

    def fit_statistics(self, tokens: Tokens) -> None:
        self.projection.fit(tokens.values[tokens.known])

    def prepare(self, tokens: Tokens) -> Tokens:
        projected = self.projection(tokens.values)
        return Tokens(torch.where(tokens.known[..., None], projected, 0.0), tokens.known, tokens.times_ms)

    least_rows = 30  # nothing but training makes a recurrent network

    def features(self, prepared: Tokens) -> Tensor:
        return self._seen(prepared)[0]

    def forward(self, prepared: Tokens) -> Encoded:
        seen, weights = self._seen(prepared)
        embedding, logits = self.trunk(seen)
        return Encoded(embedding, logits, weights)

    def _seen(self, prepared: Tokens) -> tuple[Tensor, Tensor]:
        known = prepared.known
        mask = known[..., None].float()
        values = torch.where(known[..., None], prepared.values, 0.0)
        times = prepared.times_ms if prepared.times_ms is not None else torch.zeros(known.shape)
        since = torch.diff(times, dim=1, prepend=times[:, :1]).clamp(min=0)
        steps = torch.log1p(torch.where(known, since, 0.0) / 1000)[
            ..., None
        ]  # seconds since the frame before
        states, _ = self.gru(torch.cat([values, steps], dim=2))
        weights = attention_weights(self.scorer(torch.tanh(states)).squeeze(-1), known)
        seen = (weights[..., None] * states).sum(1)
        count = mask.sum(1).clamp(min=1)
        mean = (values * mask).sum(1) / count
        motion = ((((values - mean[:, None]) ** 2) * mask).sum(1) / count + 1e-6).sqrt()
        return torch.cat([seen, mean, motion], dim=1), weights
