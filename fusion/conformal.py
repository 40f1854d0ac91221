"""Split-conformal intervals for the event rate among patients scored alike.

Patients not used to fit the weights are sorted by risk and cut into groups of `group_size`. A group's
nonconformity is |observed rate - mean risk| / sqrt(mean (1 - mean)). With q the ceil((n + 1) level)-th
smallest of the n groups' nonconformities, a patient's interval is risk ± q sqrt(risk (1 - risk)),
cut to [0, 1]. The cuts are laid in five ways, so that q rests less on where they happen to fall; n stays the
number of groups that share nobody. A pattern of present modalities with enough groups has a q of its own
(Mondrian conformal prediction, Vovk 2005).

What it promises: the event rate in a further group of `group_size` patients scored alike lies within, with
probability at least `level`, if they are exchangeable with those of calibration (same hospital, same time,
same way of asking). What it does not promise: anything about one patient's fate, or about a subgroup: there
the report counts how often it held. The groups are formed by rank, so exchangeability between old and new
groups is approximate. Too few groups for the level → the interval is all of [0, 1]: nothing is known of its
width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGEST, SMALLEST = 25, 5  # patients in a group
OFFSETS = 5  # ways to lay the cuts
PATTERN_GROUPS = 30  # least for a pattern of its own


@dataclass(frozen=True, slots=True)
class Interval:
    """One outcome's interval: `q` (infinite = unknown), patients per group, and groups it rests on.

    patterns  "image+tabular" → q of that pattern of present modalities, where enough groups have it
    """

    level: float
    q: float
    group_size: int
    groups: int
    patterns: dict[str, float] = field(default_factory=dict)

    def around(self, risk: float, pattern: str = "") -> tuple[float, float]:
        """(low, high) in [0, 1], always holding the risk.

        pattern  the present modalities, joined by "+" in the model's order
        """
        q = self.patterns.get(pattern, self.q)
        if math.isinf(q):
            return 0.0, 1.0
        half = q * math.sqrt(risk * (1 - risk))
        return min(risk, max(0.0, risk - half)), max(risk, min(1.0, risk + half))

    def to_json(self) -> dict[str, Any]:
        q = None if math.isinf(self.q) else self.q
        said = {"level": self.level, "q": q, "group_size": self.group_size, "groups": self.groups}
        return {**said, "patterns": dict(self.patterns)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Interval:
        q = math.inf if data["q"] is None else float(data["q"])
        patterns = {str(k): float(v) for k, v in data.get("patterns", {}).items()}
        return cls(float(data["level"]), q, int(data["group_size"]), int(data["groups"]), patterns)


def fit_interval(
    risks: Array,
    labels: Array,
    *,
    level: float,
    weights: Array | None = None,
    patterns: Sequence[str] | NDArray[np.str_] | None = None,
) -> Interval:
    """risks, labels float64 [B] (unknown labels NaN) → Interval.

    weights   float64 [B]: how many a patient stands for, where others were censored
    patterns  each patient's present modalities, as `Interval.around` is asked with them
    """
    known = ~np.isnan(labels)
    weights = np.ones(len(labels)) if weights is None else weights
    risks, labels, weights = risks[known], labels[known], weights[known]
    enough = math.ceil(level / (1 - level)) + 1  # groups needed for a finite q
    size = int(np.clip(len(risks) // max(10, enough), SMALLEST, LARGEST))
    own: dict[str, float] = {}
    if patterns is not None:
        names = np.asarray(patterns)[known]
        for name in np.unique(names):
            here = names == name
            if name and here.sum() >= PATTERN_GROUPS * size:
                own[str(name)] = _quantile(risks[here], labels[here], weights[here], size, level)
    return Interval(level, _quantile(risks, labels, weights, size, level), size, len(risks) // size, own)


def grouped(
    risks: Array, labels: Array, size: int, weights: Array | None = None, *, offset: float = 0.5
) -> list[tuple[float, float]]:
    """(mean risk, observed rate) of full groups of `size` patients of neighbouring risk.

    offset  in [0, 1]: share of the patients that fill no group who are left off the lower end
    """
    weights = np.ones(len(risks)) if weights is None else weights
    order = np.argsort(risks, kind="stable")
    groups = len(order) // size
    start = int((len(order) - groups * size) * offset)
    order = order[start : start + groups * size]
    return [
        (float(np.average(risks[g], weights=weights[g])), float(np.average(labels[g], weights=weights[g])))
        for g in order.reshape(groups, size)
    ]


def covered(
    interval: Interval,
    risks: Array,
    labels: Array,
    *,
    weights: Array | None = None,
    patterns: Sequence[str] | NDArray[np.str_] | None = None,
) -> tuple[int, int]:
    """(groups whose event rate lies within the interval of their mean risk, groups), of known labels.

    Patients are grouped within their pattern, so that a group is judged by the interval its patients got.
    """
    known = ~np.isnan(labels)
    weights = np.ones(len(labels)) if weights is None else weights
    names = np.full(len(labels), "") if patterns is None else np.asarray(patterns)
    names = np.where(np.isin(names, list(interval.patterns)), names, "")
    inside = total = 0
    for name in np.unique(names):
        here = known & (names == name)
        for mean, rate in grouped(risks[here], labels[here], interval.group_size, weights[here]):
            low, high = interval.around(mean, str(name))
            inside += low - 1e-12 <= rate <= high + 1e-12
            total += 1
    return inside, total


def _quantile(risks: Array, labels: Array, weights: Array, size: int, level: float) -> float:
    groups = len(risks) // size
    place = math.ceil((groups + 1) * level)
    if not 0 < place <= groups:
        return math.inf
    order = np.argsort(risks, kind="stable")
    scores = []
    for step in range(OFFSETS):
        rows = order[step * size // OFFSETS :]
        for mean, rate in grouped(risks[rows], labels[rows], size, weights[rows]):
            scores.append(abs(rate - mean) / _spread(mean))
    ranked = np.sort(scores)
    return float(ranked[min(len(ranked) - 1, math.ceil(place / groups * len(ranked)) - 1)])


def _spread(mean: float) -> float:
    return math.sqrt(max(mean * (1 - mean), 1e-6))
