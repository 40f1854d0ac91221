"""Penalised logistic regression, fitted to the optimum: what a trunk starts from.

Convex, so that the same data give the same answer whatever the order of rows; the penalty is the one that
predicts best for groups left out (of a grid, by log loss; the strongest within a standard error of the best).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

Array = NDArray[np.float64]
Rows = NDArray[np.float32]
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # of squared weights, in log-likelihood
INNER, MOST_ROWS = 4, 2000  # folds, and rows, by which the penalty is chosen
STEPS, FEW_STEPS = 50, 25  # at the end, and while choosing


def fit_linear(
    features: Tensor, labels: Tensor, base: Tensor, folds: NDArray[np.int64], *, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights [R, P], offsets [R], penalties [R]) of logit = base + features @ weights + offset.

    features  float32 [N, P], standardised;  labels float32 [N, R], NaN = unknown
    base      float32 [R], logit of the event rate
    folds     int [N]: rows of one group stand in one fold; by these the penalty is chosen. -1: by none
    penalty   float32 [R], when it is already known
    An outcome with fewer than two of either kind gets zero weights.
    """
    rows = features.numpy()
    known = labels.double().numpy()
    count = known.shape[1]
    weights, offsets = np.zeros((count, rows.shape[1])), np.zeros(count)
    chosen = np.full(count, PENALTIES[-1])
    for r in range(count):
        here = ~np.isnan(known[:, r])
        events = known[here, r].sum()
        if min(events, here.sum() - events) < 2:
            continue
        x, y, fold = rows[here], known[here, r], folds[here]
        offset = float(base[r])
        chosen[r] = float(penalty[r]) if penalty is not None else _choose(x, y, offset, fold)
        weights[r], offsets[r] = _solve(x, y, offset, chosen[r])
    return (
        torch.from_numpy(weights).float(),
        torch.from_numpy(offsets).float(),
        torch.from_numpy(chosen).float(),
    )


def _choose(x: Rows, y: Array, base: float, folds: NDArray[np.int64]) -> float:
    """The strongest penalty whose loss on left-out groups is within a standard error of the least."""
    if len(x) > MOST_ROWS:
        kept = np.linspace(0, len(x) - 1, MOST_ROWS).astype(int)
        x, y, folds = x[kept], y[kept], folds[kept]
    losses = np.full((len(PENALTIES), len(x)), np.nan)
    for fold in np.unique(folds[folds >= 0] % INNER):
        out = (folds % INNER == fold) & (folds >= 0)
        if out.all() or min(y[~out].sum(), (~out).sum() - y[~out].sum()) < 2:
            continue
        start, fitted, asked = np.zeros(x.shape[1] + 1), x[~out], x[out]
        for place in reversed(range(len(PENALTIES))):  # from the strongest on, each starting from the last
            start = _minimise(fitted, y[~out], base, PENALTIES[place], start, FEW_STEPS)
            losses[place, out] = _losses(_logits(asked, start, base), y[out])
    seen = ~np.isnan(losses[0])
    if not seen.any():
        return 30.0
    mean = losses[:, seen].mean(axis=1)
    best = int(mean.argmin())
    spread = (losses[:, seen] - losses[best, seen]).std(axis=1) / seen.sum() ** 0.5
    allowed = [place for place in range(len(PENALTIES)) if mean[place] - mean[best] <= 0.5 * spread[place]]
    return PENALTIES[max(allowed)]


def _solve(x: Rows, y: Array, base: float, penalty: float) -> tuple[Array, float]:
    found = _minimise(x, y, base, penalty, np.zeros(x.shape[1] + 1), STEPS)
    return found[:-1], float(found[-1])


def _minimise(x: Rows, y: Array, base: float, penalty: float, start: Array, steps: int) -> Array:
    scale = 1 / len(x)

    def objective(at: Array) -> tuple[float, Array]:
        logits = _logits(x, at, base)
        error = (1 / (1 + np.exp(-np.clip(logits, -50, 50))) - y) * scale
        gradient = np.append(
            (error.astype(np.float32) @ x).astype(np.float64) + penalty * scale * at[:-1], error.sum()
        )
        value = _losses(logits, y).mean() + 0.5 * penalty * scale * float(at[:-1] @ at[:-1])
        return value, gradient

    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": steps})
    return np.asarray(found.x, np.float64)


def _logits(x: Rows, at: Array, base: float) -> Array:
    return np.asarray((x @ at[:-1].astype(np.float32)).astype(np.float64) + at[-1] + base)


def _losses(logits: Array, y: Array) -> Array:
    return np.asarray(np.logaddexp(0, logits) - y * logits)
