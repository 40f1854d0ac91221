"""Tabular fields and genomic findings: values that may be missing, and stay so."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.batch import Tokens
from fusion.choosing import MARGIN
from fusion.encoders.base import CLIP, Encoded, Encoder, Trunk
from fusion.encoders.trees import Trees

BINS = 6
LEAST_FOR_BINS = 300  # known values of a number below which it stays one straight line


class RecordEncoder(Encoder):
    """[B, F, K] → [B, E]: each field's K numbers, standardised with training statistics, as line and as bins.

    bins    piecewise-linear encoding between training quantiles (Gorishniy 2022): risk may rise at both ends
    known   whether the field is known stands beside its numbers, standardised too: *which* values a clinic
            has asked for tells something. A missing field is a zero with that flag down, whatever stood there
    trees   with many patients, boosted trees on the same numbers are a second voice; a weighted mean is said
    """

    is_fixed = True
    mean: Tensor
    scale: Tensor
    share: Tensor
    edges: Tensor

    def __init__(self, fields: int, numbers: int, width: int, outcomes: int, bags: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(fields, numbers))
        self.register_buffer("scale", torch.ones(fields, numbers))
        self.register_buffer("share", torch.full((fields,), 0.5))
        self.register_buffer("edges", torch.zeros(fields, numbers, BINS + 1))
        self.trunk = Trunk(max(1, fields * (numbers * (1 + BINS) + 1)), width, outcomes)
        self.trees = Trees(outcomes, bags)

    def expect(self, rows: int, known: Tensor) -> None:
        super().expect(rows, known)
        self.trees.expect(known)

    def fit_statistics(self, tokens: Tokens) -> None:
        weight = tokens.known[..., None].double()
        count = weight.sum(0).clamp(min=1)
        values = tokens.values[..., : self.mean.shape[1]].double()
        mean = (values * weight).sum(0) / count
        scale = ((((values - mean) ** 2) * weight).sum(0) / count).sqrt()
        self.mean.copy_(mean.float())
        # A number that never varies among training patients says nothing: huge scale, not a tiny one.
        self.scale.copy_(torch.where(scale > 1e-6, scale, torch.full_like(scale, 1e6)).float())
        self.share.copy_(tokens.known.float().mean(0) if len(tokens) else self.share)
        self.edges.copy_(self._quantiles(values, tokens.known))

    def _quantiles(self, values: Tensor, known: Tensor) -> Tensor:
        """Standardised quantiles float32 [F, K, BINS + 1]; all zero where there are too few values."""
        edges = torch.zeros_like(self.edges)
        at = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
        for field in range(edges.shape[0]):
            rows = values[known[:, field], field]
            if len(rows) >= LEAST_FOR_BINS:
                edges[field] = torch.quantile(rows, at, dim=0).T.float()
        standard = ((edges - self.mean[..., None]) / self.scale[..., None]).clamp(-CLIP, CLIP)
        return torch.where((edges != 0).any(-1, keepdim=True), standard, 0.0)

    def prepare(self, tokens: Tokens) -> Tokens:
        fields, numbers = self.mean.shape
        values = ((tokens.values[:, :fields, :numbers] - self.mean) / self.scale).clamp(-CLIP, CLIP)
        known = tokens.known[:, :fields]
        return Tokens(torch.where(known[..., None], values, 0.0), known)

    def features(self, prepared: Tokens) -> Tensor:
        known = prepared.known
        numbers = self._numbers(prepared)
        low, high = self.edges[..., :-1], self.edges[..., 1:]
        width = torch.where(high - low > 1e-4, high - low, torch.full_like(low, 1e6))
        bins = ((numbers[..., None] - low) / width).clamp(0, 1)
        parts = torch.cat([numbers[..., None] / numbers.shape[-1] ** 0.5, bins], dim=-1).flatten(2)
        parts = torch.where(known[..., None], parts, 0.0)
        flag = (known.float() - self.share) / (self.share * (1 - self.share)).sqrt().clamp(min=0.1)
        features = torch.cat([parts, flag[..., None]], dim=2).flatten(1)
        return features if features.shape[1] else features.new_zeros(len(prepared), 1)

    def simple_features(self) -> NDArray[np.int64] | None:
        """Each number as it is and whether the field is known; without the bins."""
        fields, numbers = self.mean.shape
        each = numbers * (1 + BINS) + 1
        within = np.append(np.arange(numbers) * (1 + BINS), each - 1)
        return (np.arange(fields)[:, None] * each + within).ravel() if fields else None

    def fit_first(
        self,
        prepared: Tokens,
        labels: Tensor,
        base: Tensor,
        folds: NDArray[np.int64],
        *,
        seed: int,
        penalty: Tensor | None = None,
        groups: NDArray[np.int64] | None = None,
        margin: float = MARGIN,
    ) -> None:
        super().fit_first(
            prepared, labels, base, folds, seed=seed, penalty=penalty, groups=groups, margin=margin
        )
        self.trees.fit(self._raw(prepared), labels, base, seed=seed)

    def forward(self, prepared: Tokens, fixed: Tensor | None = None) -> Encoded:
        embedding, logits = self.trunk(self.features(prepared))
        return Encoded(embedding, self._with_trees(prepared, logits, fixed))

    def shown(self, prepared: Tokens, known: Tensor) -> Tensor:
        hidden, seen = self.features(both(prepared)).unflatten(1, (known.shape[1], -1))
        logits: Tensor
        _, logits = self.trunk(torch.where(known[..., None], seen, hidden).flatten(1))
        if not bool(self.trees.is_fitted.any()):
            return logits
        said = self.trees.shown(self._raw(prepared).view(known.shape[1], -1).numpy(), known.numpy())
        return self._together(logits, said)

    def fixed_voice(self, prepared: Tokens) -> Tensor | None:
        return self.trees(self._raw(prepared)) if bool(self.trees.is_fitted.any()) else None

    def voices(self, prepared: Tokens) -> tuple[Tensor, Tensor]:
        """What the linear part says and what the trees say, float32 [B, R] each: without trees, the same."""
        linear: Tensor = self.trunk.linear(self.features(prepared))
        return linear, torch.where(self.trees.is_fitted, self.trees(self._raw(prepared)), linear)

    def _with_trees(self, prepared: Tokens, logits: Tensor, fixed: Tensor | None) -> Tensor:
        """Weighted mean of the two voices, where the trees have one. While the trunk is trained they are
        silent: on the patients they were fitted on they know too much."""
        if self.training or (not torch.compiler.is_exporting() and not bool(self.trees.is_fitted.any())):
            return logits
        said = self.trees(self._raw(prepared)) if fixed is None else fixed
        return self._together(logits, said)

    def _together(self, logits: Tensor, said: Tensor) -> Tensor:
        return torch.where(self.trees.is_fitted, logits + self.trees.share * (said - logits), logits)

    def _numbers(self, prepared: Tokens) -> Tensor:
        """Standardised numbers float32 [B, F, K], zero where unknown."""
        held = prepared.values[..., : self.mean.shape[1]]
        return torch.where(prepared.known[..., None], held, 0.0)

    def _raw(self, prepared: Tokens) -> Tensor:
        """The same flat, NaN where unknown: trees know what to do with that."""
        numbers = self._numbers(prepared)
        missing = torch.full_like(numbers, torch.nan)
        flat = torch.where(prepared.known[..., None], numbers, missing).flatten(1)
        return flat if flat.shape[1] else flat.new_full((len(flat), 1), torch.nan)


def both(prepared: Tokens) -> Tokens:
    """One patient twice: with every token hidden, and as it is. What is worked out for each token by itself
    need not be worked out for more: it is one or the other."""
    known = prepared.known
    return prepared.rows(torch.zeros(2, dtype=torch.long)).hiding(torch.cat([torch.zeros_like(known), known]))
