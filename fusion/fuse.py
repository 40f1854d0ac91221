"""Unimodal logits and masks → one fused logit per outcome, for any subset of modalities.

Laws, held by construction: what an absent modality's place holds cannot matter; the empty subset gives the
base rate. Fusions read out-of-fold *logits* (not embeddings: those of different folds share no axes).

Which modalities are let in may differ from outcome to outcome: `present` is [B, M], or [B, M, R].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion.config import FusionKind

HIDDEN = 16
HEADS = 2


class Fusion(nn.Module):
    """Evidence [B, M, R] (unimodal minus base logit), present bool [B, M] or [B, M, R] → [B, R], shift of the
    logit."""

    def forward(self, evidence: Tensor, present: Tensor) -> Tensor:
        if present.dim() == 2:
            return self.together(evidence, present)
        outcomes = range(evidence.shape[2])
        return torch.stack([self.together(evidence, present[..., r])[:, r] for r in outcomes], dim=1)

    def together(self, evidence: Tensor, present: Tensor) -> Tensor:
        """The same modalities for all outcomes: present bool [B, M]."""
        raise AssertionError(f"{type(self).__name__} does not fuse")

    def penalty(self) -> Tensor:
        """How far the weights are from what would be believed without data."""
        return torch.stack([p.square().sum() for p in self.parameters()]).sum()


class LateFusion(Fusion):
    """Masked logistic: each present modality adds weight x evidence + offset.

    weight      at least 0; less when modalities that say the same are present too (`redundancy`, per pair),
                so that the weights suit each pattern of present modalities
    offset      what the mere presence of the modality tells (pattern-aware bias)
    """

    START, SHARED = (
        0.8,
        0.1,
    )  # weight of a lone modality, and what each companion takes off it, before any data

    def __init__(self, modalities: int, outcomes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((modalities, outcomes), self.START))
        self.offset = nn.Parameter(torch.zeros(modalities, outcomes))
        self.redundancy = nn.Parameter(torch.full((modalities, modalities, outcomes), self.SHARED))

    def forward(self, evidence: Tensor, present: Tensor) -> Tensor:
        present = _each(present, evidence)
        here = present.float()
        pairs = self.redundancy * (1 - torch.eye(len(self.weight)))[..., None]
        weight = (self.weight - torch.einsum("bkr,mkr->bmr", here, pairs)).clamp(min=0)
        parts = weight * _masked(evidence, present) + self.offset * here
        return parts.sum(1)

    def penalty(self) -> Tensor:
        return (
            (self.weight - self.START).square().sum()
            + 4 * (self.redundancy - self.SHARED).square().sum()
            + 2 * self.offset.square().sum()
        )


class GatedFusion(Fusion):
    """Each present modality is let through by a gate that sees all that is present."""

    def __init__(self, modalities: int, outcomes: int) -> None:
        super().__init__()
        self.context = nn.Linear(modalities * (outcomes + 1), HIDDEN)
        self.gate = nn.Linear(HIDDEN, modalities * outcomes)
        self.offset = nn.Parameter(torch.zeros(modalities, outcomes))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def together(self, evidence: Tensor, present: Tensor) -> Tensor:
        evidence = _masked(evidence, present[..., None])
        here = present.float()[..., None]
        context = torch.tanh(self.context(torch.cat([evidence, here], dim=2).flatten(1)))
        gates = torch.sigmoid(self.gate(context)).view_as(evidence)
        return ((gates * evidence + self.offset) * here).sum(1)


class AttentionFusion(Fusion):
    """One token per present modality and a summary token that attends over them."""

    def __init__(self, modalities: int, outcomes: int) -> None:
        super().__init__()
        self.content = nn.Linear(outcomes, HIDDEN)
        self.name = nn.Parameter(0.1 * torch.randn(modalities, HIDDEN))
        self.summary = nn.Parameter(0.1 * torch.randn(1, 1, HIDDEN))
        self.attention = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
        self.head = nn.Linear(HIDDEN, outcomes)
        self.through = nn.Parameter(torch.full((modalities, outcomes), 0.3))

    def together(self, evidence: Tensor, present: Tensor) -> Tensor:
        evidence = _masked(evidence, present[..., None])
        content = self.content(evidence) + self.name
        tokens = torch.cat([torch.zeros_like(content[:, :1]) + self.summary, content], dim=1)
        hidden = torch.cat([torch.zeros_like(present[:, :1]), ~present], dim=1)
        attended, _ = self.attention(
            tokens[:, :1], tokens, tokens, key_padding_mask=hidden, need_weights=False
        )
        direct = (self.through * evidence).sum(1)
        shift: Tensor = self.head(attended[:, 0]) + direct
        return shift * present.any(dim=1, keepdim=True)


class StackedFusion(Fusion):
    """A meta-learner with weights and an intercept of its own for every pattern of present modalities.

    A pattern's weights are shared ones plus a deviation that a ridge keeps small: patterns that few patients
    have borrow from all (a hierarchical logistic regression; stacking after Wolpert 1992, a model for each
    pattern after Fletcher Mercaldo and Blume 2020, Biostatistics 21:236).
    Two modalities may also strengthen or weaken each other beyond their sum (`pairs`).
    """

    START = 0.6

    def __init__(self, modalities: int, outcomes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((modalities, outcomes), self.START))
        self.own = nn.Parameter(torch.zeros(2**modalities, modalities, outcomes))
        self.offset = nn.Parameter(torch.zeros(2**modalities, outcomes))
        self.pairs = nn.Parameter(torch.zeros(modalities, modalities, outcomes))
        self.register_buffer("bits", 2 ** torch.arange(modalities), persistent=False)
        self.bits: Tensor

    def forward(self, evidence: Tensor, present: Tensor) -> Tensor:
        present = _each(present, evidence)
        evidence = _masked(evidence, present)
        pattern = (present * self.bits[:, None]).sum(1)  # [B, R]
        outcome = torch.arange(evidence.shape[2]).expand_as(pattern)
        own = self.own.transpose(1, 2)[pattern, outcome].transpose(1, 2)  # [B, M, R]
        strength = torch.tanh(evidence / 2)  # twice the shift of an even chance
        upper = torch.triu(torch.ones_like(self.pairs[..., 0]), diagonal=1)[..., None]
        between = torch.einsum("bmr,bkr,mkr->br", strength, strength, self.pairs * upper)
        known = (pattern > 0).float()
        return ((self.weight + own) * evidence).sum(1) + between + self.offset[pattern, outcome] * known

    def penalty(self) -> Tensor:
        return (
            (self.weight - self.START).square().sum()
            + 4 * self.own.square().sum()
            + 4 * self.offset.square().sum()
            + 4 * self.pairs.square().sum()
        )


def build_fusion(kind: FusionKind, modalities: int, outcomes: int) -> Fusion:
    """An untrained fusion of that kind."""
    kinds = {
        FusionKind.LATE: LateFusion,
        FusionKind.GATED: GatedFusion,
        FusionKind.ATTENTION: AttentionFusion,
        FusionKind.STACKING: StackedFusion,
    }
    return kinds[kind](modalities, outcomes)


def _masked(evidence: Tensor, present: Tensor) -> Tensor:
    """Zero where absent: `where`, not a product, so that not even a NaN gets through."""
    return torch.where(present, evidence, torch.zeros(()))


def _each(present: Tensor, evidence: Tensor) -> Tensor:
    """bool [B, M, R]: who is let in, for each outcome."""
    return present if present.dim() == 3 else present[..., None].expand_as(evidence)
