"""Does a model do as well for one group of patients as for another? Groups, gaps between them, and a verdict.

Four figures a group, each with a 95 % bootstrap interval over patients:

    auroc        chance that an event got the higher risk
    sensitivity  share of the events whose risk reaches the threshold
    ppv          share of those who reach it that had the event
    calibration  calibration in the large: share of events observed minus the mean risk; 0 is ideal, above 0
                 the group is told too low a risk

A gap is the difference between two groups of one attribute. It is over its limit when it is larger and chance
alone would not explain it: its interval, widened for the number of comparisons of that outcome (Bonferroni),
excludes 0. All gaps are taken on the same draws of patients. Groups with fewer than 10 events, or fewer than
10 patients without, are too few to judge; that they were not judged is said, and is no proof of fairness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FEW = 10  # events, and others, a group needs
DRAWS = 500
FIGURES = ("auroc", "sensitivity", "ppv", "calibration")
LIMITED = ("auroc", "calibration")
UNKNOWN = "unknown"  # the value of an attribute that says nothing: shown, never compared


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest gaps between two groups of patients that are put up with; None: any."""

    auroc: float | None = 0.1
    calibration: float | None = 0.1

    def of(self, figure: str) -> float | None:
        """The limit of that figure."""
        limits: dict[str, float | None] = {"auroc": self.auroc, "calibration": self.calibration}
        return limits.get(figure)


def compare_groups(
    risks: Array,
    labels: Array,
    patients: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
    *,
    threshold: float,
    limits: Limits,
    seed: int = 0,
    weights: Array | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """One outcome's fairness, as plain data.

    risks, labels  float64 [N]; labels 0 or 1, every one known
    patients       N names; draws take whole patients
    attributes     attribute → the group of each row
    threshold      the risk from which somebody acts
    weights        float64 [N]: how many each row stands for where others were censored
    """
    own = np.ones(len(risks)) if weights is None else weights
    groups = [
        (name, str(value), np.flatnonzero(np.asarray(values) == value))
        for name, values in sorted(attributes.items())
        for value in np.unique(np.asarray(values))
    ]
    judged = [_enough(labels[rows]) for _, _, rows in groups]
    held = [_Group(risks[rows], labels[rows], threshold) for _, _, rows in groups]
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    draw = np.random.default_rng(seed)
    found = np.full((1 + draws, len(groups), len(FIGURES)), np.nan)
    for at in range(1 + draws):
        taken = own
        if at:
            taken = own * np.bincount(draw.integers(0, len(names), len(names)), minlength=len(names))[member]
        for place, (_, _, rows) in enumerate(groups):
            if judged[place]:
                found[at, place] = held[place].figures(taken[rows])
    rows_said = [
        _row(name, value, labels[rows], found[:, place] if judged[place] else None)
        for place, (name, value, rows) in enumerate(groups)
    ]
    gaps = _gaps(groups, judged, found, limits)
    reasons = [gap["said"] for gap in gaps if gap["over"]]
    return {
        "threshold": threshold,
        "limits": {name: limits.of(name) for name in LIMITED},
        "groups": rows_said,
        "gaps": gaps,
        "verdict": "over the limit" if reasons else "within the limits" if gaps else "not judged",
        "reasons": reasons,
    }


class _Group:
    """One group's rows, sorted once, so that a draw costs no sorting."""

    def __init__(self, risks: Array, labels: Array, threshold: float) -> None:
        order = np.argsort(risks, kind="stable")
        self._order, self._risks = order, risks[order]
        self._events = labels[order] > 0.5
        self._acted = self._risks >= threshold
        _, self._tie = np.unique(self._risks, return_inverse=True)

    def figures(self, weights: Array) -> list[float]:
        """auroc, sensitivity, ppv, calibration; NaN where a draw left nothing to count."""
        weights = weights[self._order]
        event, other = weights * self._events, weights * ~self._events
        events, others, total = event.sum(), other.sum(), weights.sum()
        acted = float(weights[self._acted].sum())
        right = float(event[self._acted].sum())
        here = np.bincount(self._tie, other)
        below = np.cumsum(here) - here / 2
        pairs = float((np.bincount(self._tie, event) * below).sum())
        return [
            pairs / (events * others) if events * others > 0 else np.nan,
            right / events if events > 0 else np.nan,
            right / acted if acted > 0 else np.nan,
            float((weights * (self._events - self._risks)).sum() / total) if total > 0 else np.nan,
        ]


def _enough(labels: Array) -> bool:
    events = int((labels > 0.5).sum())
    return min(events, len(labels) - events) >= FEW


def _row(attribute: str, value: str, labels: Array, found: Array | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "attribute": attribute,
        "value": value,
        "n": len(labels),
        "events": int((labels > 0.5).sum()),
        "note": "too few" if found is None else "",
    }
    for place, figure in enumerate(FIGURES):
        row[figure] = None if found is None else _interval(found[:, place])
    return row


def _interval(found: Array) -> dict[str, float | None]:
    """First the value, then the draws → value and percentile interval."""
    drawn = found[1:][~np.isnan(found[1:])]
    if np.isnan(found[0]) or len(drawn) < len(found) // 2:
        return {"value": None if np.isnan(found[0]) else float(found[0]), "low": None, "high": None}
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": float(found[0]), "low": float(low), "high": float(high)}


def _gaps(
    groups: Sequence[tuple[str, str, NDArray[np.intp]]], judged: Sequence[bool], found: Array, limits: Limits
) -> list[dict[str, Any]]:
    """Per attribute and limited figure the widest difference between two judged groups that is clear of
    chance; where none is, the widest."""
    pairs = [
        (one, two)
        for one, two in combinations(range(len(groups)), 2)
        if groups[one][0] == groups[two][0]
        and judged[one]
        and judged[two]
        and UNKNOWN not in (groups[one][1], groups[two][1])
    ]
    wide = NormalDist().inv_cdf(1 - 0.025 / max(1, len(pairs) * len(LIMITED)))
    widest: dict[tuple[str, str], dict[str, Any]] = {}
    for one, two in pairs:
        for figure in LIMITED:
            place = FIGURES.index(figure)
            difference = found[:, one, place] - found[:, two, place]
            if np.isnan(difference[0]):
                continue
            interval = _interval(difference)
            spread = float(np.nanstd(difference[1:]))
            gap = {
                "attribute": groups[one][0],
                "figure": figure,
                "between": [groups[one][1], groups[two][1]],
                **interval,
                "clear": bool(abs(difference[0]) > wide * spread),
            }
            limit = limits.of(figure)
            gap["over"] = limit is not None and gap["clear"] and abs(difference[0]) > limit
            gap["said"] = _said(gap, limit)
            key = (groups[one][0], figure)
            rank = (gap["clear"], abs(difference[0]))
            if key not in widest or rank > (widest[key]["clear"], abs(widest[key]["value"])):
                widest[key] = gap
    return list(widest.values())


def _said(gap: Mapping[str, Any], limit: float | None) -> str:
    what = {"auroc": "AUROC", "calibration": "observed minus expected"}[gap["figure"]]
    one, two = gap["between"]
    between = "" if gap["low"] is None else f" [{gap['low']:+.2f}, {gap['high']:+.2f}]"
    beside = "no limit is set" if limit is None else f"limit {limit:.2f}"
    return f"{gap['attribute']}: {what} of {one} minus {two} is {gap['value']:+.2f}{between}; {beside}"
