"""Still images: attention over the views of a Study, each an embedding and a word of which view it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion.batch import Tokens
from fusion.encoders.base import CLIP, Encoded, Encoder, Projection, Trunk, attention_weights, means


class ImageEncoder(Encoder):
    """[B, V, D + flags] → [B, E]: principal components, what a fine-tuned head said, the view, attention.

    Any number of views in any order; the pooling is a mean weighted by attention (weights over known views,
    sum 1; the scorer starts at zero, as the plain mean). A view that is absent is no error. What kind of
    view each is (frontal, lateral: `fusion.rows.VIEWS`) adds a learned vector to it, zero at the start.

    heads  outcomes whose linear head was trained on the whole embedding (`fusion.finetune`): 0 without
    """

    head: Tensor
    head_mean: Tensor
    head_scale: Tensor

    def __init__(
        self,
        width_in: int,
        width: int,
        outcomes: int,
        *,
        components: int = 32,
        flags: int = 0,
        heads: int = 0,
    ) -> None:
        super().__init__()
        self._width_in, self._flags, self._kept = width_in, flags, components + heads
        self.projection = Projection(width_in, components)
        if heads:
            self.register_buffer("head", torch.zeros(width_in, heads))
            self.register_buffer("head_mean", torch.zeros(heads))
            self.register_buffer("head_scale", torch.ones(heads))
        if flags:
            self.view = nn.Parameter(torch.zeros(flags, self._kept))
        self._heads = heads
        self.scorer = nn.Linear(self._kept, 1, bias=False)
        nn.init.zeros_(self.scorer.weight)
        self.trunk = Trunk(self._kept, width, outcomes)

    def fit_statistics(self, tokens: Tokens) -> None:
        embeddings = tokens.values[tokens.known][:, : self._width_in]
        self.projection.fit(means(tokens.values[..., : self._width_in], tokens.known), embeddings)
        if self._heads and len(embeddings):
            said = embeddings @ self.head
            self.head_mean.copy_(said.mean(0))
            self.head_scale.copy_(said.std(0, correction=0).clamp(min=1e-6))

    def prepare(self, tokens: Tokens) -> Tokens:
        """[B, V, D + flags] → [B, V, components, heads and flags]."""
        embeddings = tokens.values[..., : self._width_in]
        parts = [self.projection(embeddings)]
        if self._heads:
            said = (embeddings @ self.head - self.head_mean) / self.head_scale
            parts.append(said.clamp(-CLIP, CLIP))
        parts.append(tokens.values[..., self._width_in :])
        prepared = torch.cat(parts, dim=-1)
        return Tokens(torch.where(tokens.known[..., None], prepared, 0.0), tokens.known)

    def features(self, prepared: Tokens) -> Tensor:
        return self._pooled(prepared)[0]

    def forward(self, prepared: Tokens, fixed: Tensor | None = None) -> Encoded:
        pooled, weights = self._pooled(prepared)
        embedding, logits = self.trunk(pooled)
        return Encoded(embedding, logits, weights)

    def _pooled(self, prepared: Tokens) -> tuple[Tensor, Tensor]:
        held = torch.where(prepared.known[..., None], prepared.values, 0.0)
        values = held[..., : self._kept]
        if self._flags:
            values = values + held[..., self._kept :] @ self.view
        weights = attention_weights(self.scorer(values).squeeze(-1), prepared.known)
        return (weights[..., None] * values).sum(1), weights
