"""Split-conformal intervals for the event rate among patients scored alike.

Patients not used to fit the weights are sorted by risk and cut into groups of `group_size`. A group's
nonconformity is |observed rate - mean risk| / sqrt(mean (1 - mean)). With q the ceil((n + 1) level)-th
smallest of the n groups' nonconformities, a patient's interval is risk ± q sqrt(risk (1 - risk)),
cut to [0, 1].

What it promises: the event rate in a further group of `group_size` patients scored alike lies within, with
probability at least `level`, if they are exchangeable with those of calibration (same hospital, same time,
same way of asking). What it does not promise: anything about one patient's fate, or about a subgroup. The
groups are formed by rank, so exchangeability between old and new groups is approximate. Too few groups for
the level → the interval is all of [0, 1]: nothing is known of its width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGEST, SMALLEST = 25, 5  # patients in a group


@dataclass(frozen=True, slots=True)
class Interval:
    """One outcome's interval: `q` (infinite = unknown), patients per group, and groups it rests on."""

    level: float
    q: float
    group_size: int
    groups: int

    def around(self, risk: float) -> tuple[float, float]:
        """(low, high) in [0, 1], always holding the risk."""
        if math.isinf(self.q):
            return 0.0, 1.0
        half = self.q * math.sqrt(risk * (1 - risk))
        return min(risk, max(0.0, risk - half)), max(risk, min(1.0, risk + half))

    def to_json(self) -> dict[str, Any]:
        q = None if math.isinf(self.q) else self.q
        return {"level": self.level, "q": q, "group_size": self.group_size, "groups": self.groups}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Interval:
        q = math.inf if data["q"] is None else float(data["q"])
        return cls(float(data["level"]), q, int(data["group_size"]), int(data["groups"]))


def fit_interval(risks: Array, labels: Array, *, level: float) -> Interval:
    """risks, labels float64 [B] (unknown labels NaN) → Interval."""
    known = ~np.isnan(labels)
    risks, labels = risks[known], labels[known]
    enough = math.ceil(level / (1 - level)) + 1  # groups needed for a finite q
    size = int(np.clip(len(risks) // max(10, enough), SMALLEST, LARGEST))
    scores = np.sort([abs(rate - mean) / _spread(mean) for mean, rate in grouped(risks, labels, size)])
    place = math.ceil((len(scores) + 1) * level)
    q = float(scores[place - 1]) if 0 < place <= len(scores) else math.inf
    return Interval(level, q, size, len(scores))


def grouped(risks: Array, labels: Array, size: int) -> list[tuple[float, float]]:
    """(mean risk, observed rate) of full groups of `size` patients of neighbouring risk."""
    order = np.argsort(risks, kind="stable")
    groups = len(order) // size
    spare = len(order) - groups * size
    order = order[spare // 2 : spare // 2 + groups * size]  # what does not fill a group is left off both ends
    return [(float(risks[g].mean()), float(labels[g].mean())) for g in order.reshape(groups, size)]


def _spread(mean: float) -> float:
    return math.sqrt(max(mean * (1 - mean), 1e-6))
