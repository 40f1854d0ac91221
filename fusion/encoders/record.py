"""Tabular fields, genomic findings and series summaries: values that may be missing, and stay so."""

from __future__ import annotations

import torch
from torch import Tensor

from fusion.batch import Tokens
from fusion.encoders.base import CLIP, Encoded, Encoder, Trunk


class RecordEncoder(Encoder):
    """[B, F, K] → [B, E]: each field's K numbers standardised with training statistics, times its mask,
    beside the mask itself. A missing field is a zero with its mask down, whatever stood in its place."""

    mean: Tensor
    scale: Tensor

    def __init__(self, fields: int, numbers: int, width: int, outcomes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(fields, numbers))
        self.register_buffer("scale", torch.ones(fields, numbers))
        self.trunk = Trunk(max(1, fields * (numbers + 1)), width, outcomes)

    def fit_statistics(self, tokens: Tokens) -> None:
        weight = tokens.known[..., None].double()
        count = weight.sum(0).clamp(min=1)
        values = tokens.values.double()
        mean = (values * weight).sum(0) / count
        variance = (((values - mean) ** 2) * weight).sum(0) / count
        scale = variance.sqrt()
        self.mean.copy_(mean.float())
        # A number that never varies among training patients says nothing: huge scale, not a tiny one.
        self.scale.copy_(torch.where(scale > 1e-6, scale, torch.full_like(scale, 1e6)).float())

    def prepare(self, tokens: Tokens) -> Tokens:
        fields = len(self.mean)
        values = ((tokens.values[:, :fields] - self.mean) / self.scale).clamp(-CLIP, CLIP)
        known = tokens.known[:, :fields]
        return Tokens(torch.where(known[..., None], values, 0.0), known)

    def forward(self, prepared: Tokens) -> Encoded:
        known = prepared.known[..., None]
        numbers = torch.where(known, prepared.values, 0.0) / prepared.values.shape[-1] ** 0.5
        features = torch.cat([numbers, 0.5 * known.float()], dim=2).flatten(1)
        if features.shape[1] == 0:
            features = features.new_zeros(len(prepared), 1)
        embedding, logits = self.trunk(features)
        return Encoded(embedding, logits)
