"""Subsets of modalities: all of them for explanations, weighted ones for training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_ROWS = 40_000


def all_subsets(modalities: int) -> Tensor:
    """bool [2^M, M]; row s holds the bits of s, so that row 0 is empty and the last is full."""
    return (torch.arange(2**modalities)[:, None] >> torch.arange(modalities) & 1).bool()


def named(present: Sequence[bool], modalities: Sequence[str]) -> str:
    """The present modalities joined by "+", as calibration and intervals know a pattern."""
    return "+".join(name for name, here in zip(modalities, present, strict=True) if here)


def sub_patterns(present: Tensor, dropout: float, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What modality dropout would show, all at once instead of by chance.

    present  bool [B, M] → (patient index [N], mask bool [N, M], weight float32 [N]): every non-empty
    subset of each patient's modalities, weighted by its chance when each is hidden with chance `dropout`;
    a patient's weights sum to 1. More than 40,000 rows are thinned by weight.
    """
    subsets = all_subsets(present.shape[1])[1:]
    dropout = min(max(dropout, 1e-3), 0.9)
    rows, masks, weights = [], [], []
    patterns, which = torch.unique(present, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        inside = subsets[(subsets & ~pattern).any(dim=1).logical_not()]
        if not len(inside):
            continue
        kept = inside.sum(1).float()
        weight = (1 - dropout) ** kept * dropout ** (pattern.sum() - kept)
        weight = weight / weight.sum()
        patients = torch.nonzero(which == number).squeeze(1)
        rows.append(patients.repeat_interleave(len(inside)))
        masks.append(inside.repeat(len(patients), 1))
        weights.append(weight.repeat(len(patients)))
    if not rows:
        return (
            torch.zeros(0, dtype=torch.long),
            torch.zeros(0, present.shape[1], dtype=torch.bool),
            torch.zeros(0),
        )
    row, mask, chance = torch.cat(rows), torch.cat(masks), torch.cat(weights)
    if len(row) > MOST_ROWS:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(chance, MOST_ROWS, replacement=True, generator=generator)
        return row[drawn], mask[drawn], torch.ones(MOST_ROWS)
    return row, mask, chance
