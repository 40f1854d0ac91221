"""Remedies for classes that are rarer than others: weights, focal loss, balanced sampling.

All of them bend the training prior. `losses.masked_bce` takes the loss where the bent prior would put the
logit, so that what the model says stays a risk among patients as they come (Saerens 2002; King & Zeng 2001).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fusion.errors import BadInput


def class_weights(counts: NDArray[np.int64], *, exponent: float = 1.0) -> Tensor:
    """float32 [K], mean 1 over rows: (rarity)^exponent; 0 none, 1 every class as heavy as any other.

    counts  int [K], at least 1 each. Raises BadInput.
    """
    if len(counts) < 2 or int(np.min(counts)) < 1:
        raise BadInput(f"class weights need two classes or more with a row each, not counts {list(counts)}")
    raw = (counts.sum() / counts) ** exponent
    return torch.from_numpy(raw / ((raw * counts).sum() / counts.sum())).float()


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """Mean of (1 - p)^gamma x cross-entropy, p the chance given to the true class (Lin 2017).

    logits  float32 [B, K];  target  int64 [B];  weight  float32 [K]
    gamma   0 is cross-entropy; the larger, the less a row counts that is already told well
    """
    logs = F.log_softmax(logits, dim=1)
    told = logs.gather(1, target[:, None])[:, 0]
    losses = -((1 - told.exp()) ** gamma) * told
    scale = torch.ones_like(told) if weight is None else weight[target]
    return (losses * scale).sum() / scale.sum()


def balanced_rows(classes: NDArray[np.int64], count: int, generator: torch.Generator) -> Tensor:
    """`count` row indices, every class as likely as any other, rows of a class alike; int64 [count].

    classes  int [N]. Raises BadInput when there is none.
    """
    if not len(classes):
        raise BadInput("no rows to sample from")
    held = [torch.from_numpy(np.flatnonzero(classes == kind)) for kind in np.unique(classes)]
    which = torch.randint(len(held), (count,), generator=generator)
    place = torch.rand(count, generator=generator)
    return torch.stack([held[int(k)][int(p * len(held[int(k)]))] for k, p in zip(which, place, strict=True)])


def drawn_alike(labels: Tensor, generator: torch.Generator) -> tuple[Callable[[int], Tensor], Tensor]:
    """A draw of so many rows, events and others alike; the log odds float32 [1] by which it bends the prior.

    labels  float32 [N, 1], 0 or 1; NaN = unknown, never drawn
    The log odds are of these rows: patients with one modality may have the event more often than all have.
    Raises BadInput without both kinds.
    """
    known = torch.nonzero(~torch.isnan(labels[:, 0])).squeeze(1)
    classes = labels[known, 0].long().numpy()
    if len(np.unique(classes)) < 2:
        raise BadInput("balanced sampling needs rows with the event and rows without, of both one at least")
    log_odds = -torch.logit(labels[known].mean(dim=0))
    return lambda count: known[balanced_rows(classes, count, generator)], log_odds


def prior_corrected(logits: Tensor, trained: Tensor, true: Tensor) -> Tensor:
    """Class logits [B, K] learned under class shares `trained` → under shares `true` (both [K], sum 1)."""
    return logits + torch.log(true) - torch.log(trained)
