"""Losses with missing labels left out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_bce(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    log_odds: Tensor | None = None,
    is_sampled: bool = False,
    gamma: float = 0.0,
) -> Tensor:
    """The mean that `weighed_bce` gives."""
    return weighed_bce(logits, labels, weight=weight, log_odds=log_odds, is_sampled=is_sampled, gamma=gamma)[
        0
    ]


def weighed_bce(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    log_odds: Tensor | None = None,
    is_sampled: bool = False,
    gamma: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy over known labels, and the weight of those: parts of a minibatch, each mean
    times its weight, add up to the mean of the whole (see `fusion.fitting.fit`).

    logits    float32 [B, R];  labels float32 [B, R], NaN = unknown
    weight    float32 [B], of each patient
    log_odds  float32 [R], log of the class weights' ratio (events over others). The loss is taken at
              logit + log_odds, where such weights move it: so weighted training leaves the logits unbiased
    is_sampled  the rows were already drawn in that ratio: the loss is taken there, and nothing is weighed
    gamma     of the focal loss (Lin 2017): rows told well count less; 0 leaves it out
    """
    known = ~torch.isnan(labels)
    target = torch.where(known, labels, 0.0)
    scale = known.float()
    if log_odds is not None:
        logits = logits + log_odds
        if not is_sampled:
            scale = scale * torch.where(target > 0.5, torch.exp(log_odds / 2), torch.exp(-log_odds / 2))
    if weight is not None:
        scale = scale * weight[:, None]
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if gamma:
        losses = (1 - torch.exp(-losses)) ** gamma * losses
    total = scale.sum().clamp(min=1e-9)
    return (losses * scale).sum() / total, total
