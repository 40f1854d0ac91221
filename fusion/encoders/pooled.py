"""Notes and volumes: attention over sentences or slices, each an embedding of a frozen backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion.batch import Tokens
from fusion.encoders.base import Encoded, Encoder, Projection, Trunk, attention_weights, means

COMPONENTS = 32


class PooledEncoder(Encoder):
    """[B, L, D] → [B, E]: principal components, attention over tokens, a small trunk.

    The scorer starts at zero, so that pooling starts as the plain mean.
    """

    def __init__(self, width_in: int, width: int, outcomes: int) -> None:
        super().__init__()
        self.projection = Projection(width_in, COMPONENTS)
        self.scorer = nn.Linear(COMPONENTS, 1, bias=False)
        nn.init.zeros_(self.scorer.weight)
        self.trunk = Trunk(COMPONENTS, width, outcomes)

    def fit_statistics(self, tokens: Tokens) -> None:
        self.projection.fit(means(tokens.values, tokens.known), tokens.values[tokens.known])

    def prepare(self, tokens: Tokens) -> Tokens:
        projected = self.projection(tokens.values)
        return Tokens(torch.where(tokens.known[..., None], projected, 0.0), tokens.known)

    def features(self, prepared: Tokens) -> Tensor:
        return self._pooled(prepared)[0]

    def forward(self, prepared: Tokens, fixed: Tensor | None = None) -> Encoded:
        pooled, weights = self._pooled(prepared)
        embedding, logits = self.trunk(pooled)
        return Encoded(embedding, logits, weights)

    def _pooled(self, prepared: Tokens) -> tuple[Tensor, Tensor]:
        values = torch.where(prepared.known[..., None], prepared.values, 0.0)
        weights = attention_weights(self.scorer(values).squeeze(-1), prepared.known)
        return (weights[..., None] * values).sum(1), weights
