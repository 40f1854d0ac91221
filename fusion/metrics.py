"""Scores of risks against what happened, with bootstrap intervals over patients. None: not computable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.calibrate import sigmoid

Array = NDArray[np.float64]
REPEATS = 500
BINS = 5  # of the calibration table


def auroc(risks: Array, labels: Array, weights: Array | None = None) -> float | None:
    """Chance that an event got the higher risk (ties half). Higher is better; None with one class only.

    weights  how many each patient stands for where others were censored: then this is the cumulative, dynamic
             AUROC by a horizon (Uno 2007)
    """
    events = labels > 0.5
    if weights is not None:
        return _weighted_auroc(risks, events, weights)
    n, m = int(events.sum()), int((~events).sum())
    if not n or not m:
        return None
    _, back, counts = np.unique(risks, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[back]
    return float((ranks[events].sum() - n * (n + 1) / 2) / (n * m))


def auprc(risks: Array, labels: Array, weights: Array | None = None) -> float | None:
    """Average precision. Higher is better; a guess gets the event rate. None without an event.

    weights  as for `auroc`
    """
    if not (labels > 0.5).any():
        return None
    recall, precision = _precision_recall(risks, labels, weights)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def brier(risks: Array, labels: Array, weights: Array | None = None) -> float | None:
    """Mean squared error of the risks. Lower is better; weights as for `auroc` (Graf 1999)."""
    return float(np.average((risks - labels) ** 2, weights=weights)) if len(risks) else None


def calibration(risks: Array, labels: Array, weights: Array | None = None) -> dict[str, Any]:
    """slope (1 is ideal) and intercept (0) of a logistic fit on the logit; expected error (ece); bins.

    weights  as for `auroc`
    """
    bins = []
    error = 0.0
    weights = np.ones(len(risks)) if weights is None else weights
    for part in np.array_split(np.argsort(risks, kind="stable"), min(BINS, max(1, len(risks) // 5))):
        if len(part):
            share = weights[part]
            mean = float(np.average(risks[part], weights=share))
            observed = float(np.average(labels[part], weights=share))
            error += abs(mean - observed) * float(share.sum() / weights.sum())
            bins.append({"mean": mean, "observed": observed, "n": len(part)})
    slope, intercept = _logistic(risks, labels, weights)
    return {"slope": slope, "intercept": intercept, "ece": error if bins else None, "bins": bins}


def roc_curve(risks: Array, labels: Array, *, most: int = 100) -> list[list[float]]:
    """[[false positive rate, true positive rate], …] from (0, 0) to (1, 1); [] with one class only."""
    events = labels > 0.5
    if events.all() or not events.any():
        return []
    order = np.argsort(-risks, kind="stable")
    last = np.append(np.diff(risks[order]) != 0, True)
    true = np.cumsum(events[order])[last] / events.sum()
    false = np.cumsum(~events[order])[last] / (~events).sum()
    points = [[0.0, 0.0], *([float(f), float(t)] for f, t in zip(false, true, strict=True))]
    return _spaced(points, most)


def pr_curve(risks: Array, labels: Array, *, most: int = 100) -> list[list[float]]:
    """[[recall, precision], …] by rising recall; [] without an event."""
    if not (labels > 0.5).any():
        return []
    recall, precision = _precision_recall(risks, labels)
    return _spaced([[float(r), float(p)] for r, p in zip(recall, precision, strict=True)], most)


def bootstrap(
    score: Callable[[Array, Array, Array | None], float | None],
    risks: Array,
    labels: Array,
    groups: Sequence[str],
    *,
    seed: int = 0,
    repeats: int = REPEATS,
    weights: Array | None = None,
) -> dict[str, float | None]:
    """{"value", "low", "high"}: the score and its percentile 95 % interval, drawing whole patient groups.

    score    of (risks, labels, weights): a group drawn twice weighs twice
    """
    value = score(risks, labels, weights)
    if value is None:
        return {"value": None, "low": None, "high": None}
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(repeats):
        times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[member]
        drawn = times > 0
        share = times[drawn] * (np.ones(1) if weights is None else weights[drawn])
        again = score(risks[drawn], labels[drawn], share)
        if again is not None:
            found.append(again)
    if len(found) < repeats // 2:
        return {"value": value, "low": None, "high": None}
    low, high = np.percentile(found, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def _weighted_auroc(risks: Array, events: NDArray[np.bool_], weights: Array) -> float | None:
    _, back = np.unique(risks, return_inverse=True)
    event = np.bincount(back, weights * events)
    other = np.bincount(back, weights * ~events)
    pairs = event.sum() * other.sum()
    below = np.cumsum(other) - other / 2
    return float((event * below).sum() / pairs) if pairs > 0 else None


def _precision_recall(risks: Array, labels: Array, weights: Array | None = None) -> tuple[Array, Array]:
    order = np.argsort(-risks, kind="stable")
    last = np.append(np.diff(risks[order]) != 0, True)
    share = np.ones(len(risks)) if weights is None else weights[order]
    true = np.cumsum(share * (labels[order] > 0.5))[last]
    seen = np.cumsum(share)[last]
    return true / true[-1], true / seen


def _logistic(risks: Array, labels: Array, weighed: Array) -> tuple[float | None, float | None]:
    """Slope and intercept by Newton's method; None where the data do not determine them."""
    if len(risks) < 10 or labels.min() == labels.max() or np.ptp(risks) < 1e-9:
        return None, None
    clipped = np.clip(risks, 1e-6, 1 - 1e-6)
    design = np.stack([np.log(clipped / (1 - clipped)), np.ones(len(risks))], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(100):
        fitted = sigmoid(design @ weights)
        hessian = design.T @ (design * (weighed * fitted * (1 - fitted))[:, None])
        if np.linalg.cond(hessian) > 1e10:
            return None, None
        step = np.linalg.solve(hessian, design.T @ (weighed * (fitted - labels)))
        weights -= np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            return float(weights[0]), float(weights[1])
    return None, None


def _spaced(points: list[list[float]], most: int) -> list[list[float]]:
    if len(points) <= most:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, most).round().astype(int)]
