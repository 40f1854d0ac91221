"""Whether learned weights of the late fusion are better than the plain sum of what modalities say.

The plain sum is how the simple stack fuses (`fusion.baselines`). Weights learned from few patients vary
several times over from one draw of patients to the next; so they are used only where patients they were not
learned from are told better with them, by more than a standard error of the paired difference
(`fusion.choosing`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.choosing import standard_errors
from fusion.fuse import Fusion, LateFusion
from fusion.monotone import fit_affine

PARTS = 5  # of the patients, each told by weights learned from the others
Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # evidence [N, M, R], masks [N, M], labels [N, R], weight [N]
Learn = Callable[[Tensor], Fusion]  # bool [N], rows to learn from


def is_plain(
    rows: Rows,
    patients: Tensor,
    groups: NDArray[np.int64],
    base: Tensor,
    learn: Learn,
    *,
    margin: float,
    seed: int,
) -> NDArray[np.bool_]:
    """bool [R]: for which outcomes the plain sum stays.

    patients  int [N], of which patient (place in `groups`) each row is a sub-pattern; a patient counts once
    groups    int [B], of one patient group the same number: all on one side
    """
    evidence, masks, labels, weight = rows
    _, group = np.unique(groups, return_inverse=True)
    part = (np.random.default_rng(seed).permutation(len(groups)) % PARTS)[group]
    known = ~np.isnan(labels.numpy())
    target = np.nan_to_num(labels.double().numpy())
    plain = torch.where(masks[..., None], evidence, 0.0).sum(1).double().numpy()
    learned, scaled = np.zeros(plain.shape), np.zeros(plain.shape)
    start, weighed = base.double().numpy(), weight.double().numpy()
    for held in np.unique(part):
        out = (part == held)[patients.numpy()]
        fusion = learn(torch.from_numpy(~out))
        with torch.no_grad():
            learned[out] = fusion(evidence[out], masks[out]).double().numpy()
        for r in range(plain.shape[1]):
            seen = ~out & known[:, r]
            slope, _ = fit_affine(
                plain[seen, r], target[seen, r], start[r], weight=weighed[seen], is_shifted=False
            )
            scaled[out, r] = slope * plain[out, r]
    stays = np.ones(plain.shape[1], bool)
    for r in range(plain.shape[1]):
        losses = []
        for said in (scaled, learned):
            logits = start[r] + said[:, r]
            each = weighed * known[:, r] * (np.logaddexp(0, logits) - target[:, r] * logits)
            losses.append(np.bincount(patients.numpy(), each, len(groups)).astype(np.float64))
        asked = np.bincount(patients.numpy(), weighed * known[:, r], len(groups)) > 0
        stays[r] = standard_errors(losses[0][asked], losses[1][asked], groups[asked]) <= margin
    return stays


def make_plain(fusion: LateFusion, stays: NDArray[np.bool_]) -> None:
    """Every weight 1, nothing taken off or added, for those outcomes."""
    with torch.no_grad():
        here = torch.from_numpy(stays)
        fusion.weight[:, here] = 1.0
        fusion.redundancy[..., here] = 0.0
        fusion.offset[:, here] = 0.0
