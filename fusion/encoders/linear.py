"""Penalised logistic regression, fitted to the optimum: what a trunk starts from.

Convex, so that the same data give the same answer whatever the order of rows.

The simplest is the recipe of the simple stack (`fusion.baselines`): its features alone, each standardised,
and a penalty of 1, scikit-learn's usual one. The other takes all features as they come, with the penalty that
ranks groups left out best: of a grid, by the log loss of their logits after one slope and offset, for what
comes later scales evidence anyhow. (By the plain log loss, few patients choose a penalty so strong that next
to nothing is said.) A log-normal prior steadies that choice. The other takes the place of the simplest where
groups left out are told better by it, after a slope and offset of each, by more than a standard error of the
paired difference (`fusion.choosing`).

How loud a voice is, is another question: coefficients fitted to few patients are too large (van Houwelingen &
le Cessie 1990), and the simplest leaves that to fusion and calibration. The other is made as loud as the
simplest would be, so that voices still add up as in the stack, whichever of them have changed. Where there is
no simplest (series), weights are multiplied by the slope, at most 1 and at least a half.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from fusion.choosing import MARGIN, standard_errors

Array = NDArray[np.float64]
Rows = NDArray[np.float32]
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of squared weights, in log-likelihood
INNER, MOST_ROWS = 4, 2000  # folds, and rows, by which the penalty is chosen
STEPS, FEW_STEPS = 50, 25  # at the end, and while choosing
WITHOUT = (30.0, 1.0)  # penalty and share kept where there is nothing to choose them by
LEAST_KEPT = 0.5
LIKELY, DECADES = 5.0, 0.5  # median and spread of the prior of the penalty
SIMPLE = (0.0, 1.0)  # stands for the simplest recipe where a penalty and the factor would stand
SIMPLE_PENALTY = 1.0  # of that recipe


def fit_linear(
    features: Tensor,
    labels: Tensor,
    base: Tensor,
    folds: NDArray[np.int64],
    *,
    penalty: Tensor | None = None,
    simple: NDArray[np.int64] | None = None,
    groups: NDArray[np.int64] | None = None,
    margin: float = MARGIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights [R, P], offsets [R], penalties [R, 2]) of logit = base + features @ weights + offset.

    features  float32 [N, P], standardised;  labels float32 [N, R], NaN = unknown
    base      float32 [R], logit of the event rate
    folds     int [N]: rows of one group stand in one fold; by these the penalty is chosen, or, where they are
              all of one fold, by groups dealt anew. -1: by none
    penalty   float32 [R, 2], when it is already known: of squared weights, and what the weights are
              multiplied with; or SIMPLE
    simple    places of the features that the simple stack has; None: it has another recipe for these
    groups    int [N], by which the standard error is reckoned; None: each row by itself
    margin    standard errors by which another recipe must be better than the simplest
    An outcome with fewer than two of either kind gets zero weights.
    """
    rows = features.numpy()
    known = labels.double().numpy()
    count = known.shape[1]
    everyone = np.arange(len(rows)) if groups is None else groups
    weights, offsets = np.zeros((count, rows.shape[1])), np.zeros(count)
    chosen = np.tile(WITHOUT, (count, 1))
    for r in range(count):
        here = ~np.isnan(known[:, r])
        events = known[here, r].sum()
        if min(events, here.sum() - events) < 2:
            continue
        x, y, fold = rows[here], known[here, r], folds[here]
        offset = float(base[r])
        if penalty is not None:
            chosen[r] = penalty[r].numpy()
        else:
            chosen[r] = _choose(x, y, offset, fold, simple, everyone[here], margin)
        if simple is not None and tuple(chosen[r]) == SIMPLE:
            scale = _scale(x[:, simple])
            at, offsets[r] = _solve(x[:, simple] * scale, y, offset, SIMPLE_PENALTY, 1.0)
            weights[r, simple] = at * scale
        else:
            weights[r], offsets[r] = _solve(x, y, offset, *chosen[r])
    return (
        torch.from_numpy(weights).float(),
        torch.from_numpy(offsets).float(),
        torch.from_numpy(chosen).float(),
    )


def _choose(
    x: Rows,
    y: Array,
    base: float,
    folds: NDArray[np.int64],
    simple: NDArray[np.int64] | None,
    groups: NDArray[np.int64],
    margin: float,
) -> tuple[float, float]:
    """Of what penalty the logits of left-out groups tell most, and what to multiply them with; SIMPLE where
    no penalty is better than the simplest recipe by more than `margin` standard errors."""
    nothing = WITHOUT if simple is None else SIMPLE
    if simple is not None and margin == np.inf:
        return SIMPLE
    if len(x) > MOST_ROWS:
        kept = np.linspace(0, len(x) - 1, MOST_ROWS).astype(int)
        x, y, folds, groups = x[kept], y[kept], folds[kept], groups[kept]
    said = np.full((len(PENALTIES), len(x)), np.nan)
    simply = np.full(len(x), np.nan)
    parts = _parts(folds, groups)
    for part in np.unique(parts[parts >= 0]):
        out = parts == part
        if out.all() or min(y[~out].sum(), (~out).sum() - y[~out].sum()) < 2:
            continue
        start, fitted, asked = np.zeros(x.shape[1] + 1), x[~out], x[out]
        for place in reversed(range(len(PENALTIES))):  # from the strongest on, each starting from the last
            start = _minimise(fitted, y[~out], base, PENALTIES[place], start, FEW_STEPS)
            said[place, out] = _logits(asked, start, 0.0)
        if simple is not None:
            scale = _scale(fitted[:, simple])
            start = np.zeros(len(simple) + 1)
            start = _minimise(fitted[:, simple] * scale, y[~out], base, SIMPLE_PENALTY, start, FEW_STEPS)
            simply[out] = _logits(asked[:, simple] * scale, start, 0.0)
    seen = ~np.isnan(said[0])
    if not 0 < y[seen].sum() < seen.sum():
        return nothing
    losses, slopes = zip(*(rescaled(logits[seen], y[seen], base) for logits in said), strict=True)
    prior = 0.5 * (np.log10(np.array(PENALTIES) / LIKELY) / DECADES) ** 2
    best = int(np.argmin(seen.sum() * np.mean(losses, axis=1) + prior))
    if simple is not None:
        simplest, _ = rescaled(simply[seen], y[seen], base)
        if standard_errors(simplest, losses[best], groups[seen]) <= margin:
            return SIMPLE
        return PENALTIES[best], float(simply[seen].std() / max(said[best, seen].std(), 1e-6))
    return PENALTIES[best], float(np.clip(slopes[best], LEAST_KEPT, 1.0))


def _parts(folds: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """By what to leave out in turn, int [N]; -1: never. Of two folds one is set aside already, and the other
    alone leaves nobody to judge by: then its groups are dealt out."""
    parts = np.where(folds >= 0, folds % INNER, -1)
    if len(np.unique(parts[parts >= 0])) > 1:
        return parts
    names, member = np.unique(groups, return_inverse=True)
    dealt = np.random.default_rng(len(names)).permutation(len(names)) % INNER
    return np.where(folds >= 0, dealt[member], -1)


def _scale(x: Rows) -> Rows:
    """What each column is multiplied with to have a standard deviation of 1; 0 where it never varies."""
    spread = x.std(axis=0, dtype=np.float64)
    return np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0.0).astype(np.float32)


def rescaled(shifts: Array, y: Array, base: float) -> tuple[Array, float]:
    """(Log losses [N] after the best slope, at least 0, and offset; that slope), of shifts of the base."""

    def objective(at: Array) -> tuple[float, Array]:
        logits = base + at[0] * shifts / spread + at[1]
        error = 1 / (1 + np.exp(-np.clip(logits, -50, 50))) - y
        return float(_losses(logits, y).mean()), np.array([(error * shifts / spread).mean(), error.mean()])

    spread = max(float(shifts.std()), 1e-9)
    bounds = [(0.0, None), (None, None)]
    found = minimize(objective, np.array([spread, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    slope, offset = float(found.x[0]) / spread, float(found.x[1])
    return _losses(base + slope * shifts + offset, y), slope


def _solve(x: Rows, y: Array, base: float, penalty: float, kept: float) -> tuple[Array, float]:
    """Weights and offset; the offset is the best one beside the weights that are kept."""
    weights = kept * _minimise(x, y, base, penalty, np.zeros(x.shape[1] + 1), STEPS)[:-1]
    shifts = np.append(weights, 0.0)
    offset = 0.0
    for _ in range(20):  # Newton: one number, convex
        risks = 1 / (1 + np.exp(-np.clip(_logits(x, shifts, base + offset), -50, 50)))
        offset += float(np.clip((y - risks).sum() / max((risks * (1 - risks)).sum(), 1e-6), -2, 2))
    return weights, offset


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
