"""Split-conformal intervals for the event rate among patients scored alike.

Patients not used to fit the weights are sorted by risk and cut into groups of `group_size`. A group's
nonconformity is |observed rate - mean risk| / sqrt(mean (1 - mean)). With q the ceil((n + 1) level)-th
smallest of the n groups' nonconformities, a patient's interval is risk ± q sqrt(risk (1 - risk)),
cut to [0, 1]. The cuts are laid in five ways, so that q rests less on where they happen to fall; n stays the
number of groups that share nobody. A pattern of present modalities with enough groups has a q of its own
(Mondrian conformal prediction, Vovk 2005).

Patients of one subgroup (age, sex, source) can have more events than their risks say, most of all where what
tells them apart is missing. A group of such patients is off by that besides chance, so the interval of who is
known to belong there is wider: q sqrt(1 + n extra), n patients a group, `extra` the subgroup's squared mean
error in units of the binomial spread, less what chance alone would make of it. (Equalised coverage, Romano
et al. 2020, asks for a q of each subgroup's own: of few groups that is mostly noise, one mean is not.)

What it promises: the event rate in a further group of `group_size` patients scored alike lies within, with
probability at least `level`, if they are exchangeable with those of calibration (same hospital, same time,
same way of asking). What it does not promise: anything about one patient's fate. Of a subgroup it promises
as much as its mean error tells; the report counts how often it held. The groups are formed by rank, so
exchangeability between old and new groups is approximate. Too few groups for the level → the interval is all
of [0, 1]: nothing is known of its width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGEST, SMALLEST = 25, 5  # patients in a group
OFFSETS = 5  # ways to lay the cuts
PATTERN_GROUPS = 30  # least for a pattern of its own
SUBGROUP_PATIENTS = 100  # least for a mean error of its own

Attributes = Sequence[Mapping[str, str]]  # of each patient: {"sex": "female", …}


@dataclass(frozen=True, slots=True)
class Interval:
    """One outcome's interval: `q` (infinite = unknown), patients per group, and groups it rests on.

    patterns   "image+tabular" → q of that pattern of present modalities, where enough groups have it
    subgroups  "age=older" → its squared mean error beyond chance, in units of the binomial spread
    """

    level: float
    q: float
    group_size: int
    groups: int
    patterns: dict[str, float] = field(default_factory=dict)
    subgroups: dict[str, float] = field(default_factory=dict)

    def width(self, pattern: str = "", attributes: Mapping[str, str] | None = None) -> float:
        """q of a patient with that pattern and of those subgroups."""
        q = self.patterns.get(pattern, self.q)
        if not self.subgroups or not attributes:
            return q
        extra = sum(self.subgroups.get(f"{name}={value}", 0.0) for name, value in attributes.items())
        return q * math.sqrt(1 + self.group_size * extra)

    def around(
        self, risk: float, pattern: str = "", attributes: Mapping[str, str] | None = None
    ) -> tuple[float, float]:
        """(low, high) in [0, 1], always holding the risk.

        pattern     the present modalities, joined by "+" in the model's order
        attributes  what is known of the patient's subgroups; unknown ones widen nothing
        """
        return self._within(risk, self.width(pattern, attributes))

    @staticmethod
    def _within(risk: float, q: float) -> tuple[float, float]:
        if math.isinf(q):
            return 0.0, 1.0
        half = q * math.sqrt(risk * (1 - risk))
        return min(risk, max(0.0, risk - half)), max(risk, min(1.0, risk + half))

    def to_json(self) -> dict[str, Any]:
        q = None if math.isinf(self.q) else self.q
        said = {"level": self.level, "q": q, "group_size": self.group_size, "groups": self.groups}
        return {**said, "patterns": dict(self.patterns), "subgroups": dict(self.subgroups)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Interval:
        q = math.inf if data["q"] is None else float(data["q"])
        patterns, subgroups = (
            {str(k): float(v) for k, v in data.get(held, {}).items()} for held in ("patterns", "subgroups")
        )
        level, size, groups = float(data["level"]), int(data["group_size"]), int(data["groups"])
        return cls(level, q, size, groups, patterns, subgroups)


def fit_interval(
    risks: Array,
    labels: Array,
    *,
    level: float,
    weights: Array | None = None,
    patterns: Sequence[str] | NDArray[np.str_] | None = None,
    attributes: Attributes | None = None,
) -> Interval:
    """risks, labels float64 [B] (unknown labels NaN) → Interval.

    weights     float64 [B]: how many a patient stands for, where others were censored
    patterns    each patient's present modalities, as `Interval.around` is asked with them
    attributes  each patient's subgroups, likewise
    """
    known = ~np.isnan(labels)
    weights = np.ones(len(labels)) if weights is None else weights
    extra = (
        {}
        if attributes is None
        else _mean_errors(
            risks[known], labels[known], weights[known], [attributes[i] for i in np.flatnonzero(known)]
        )
    )
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
    q = _quantile(risks, labels, weights, size, level)
    return Interval(level, q, size, len(risks) // size, own, extra)


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
    attributes: Attributes | None = None,
) -> tuple[int, int]:
    """(groups whose event rate lies within the interval of their mean risk, groups), of known labels.

    Patients are grouped within their pattern, so that a group is judged by the interval its patients got; of
    their subgroups' widths it is the mean.
    """
    known = ~np.isnan(labels)
    weights = np.ones(len(labels)) if weights is None else weights
    wider = np.ones(len(labels))
    if attributes is not None and interval.subgroups:
        plain = Interval(interval.level, 1.0, interval.group_size, 0, subgroups=interval.subgroups)
        wider = np.array([plain.width(attributes=one) for one in attributes])
    names = np.full(len(labels), "") if patterns is None else np.asarray(patterns)
    names = np.where(np.isin(names, list(interval.patterns)), names, "")
    inside = total = 0
    for name in np.unique(names):
        here, q = known & (names == name), interval.width(str(name))
        rates = grouped(risks[here], labels[here], interval.group_size, weights[here])
        widths = grouped(risks[here], wider[here], interval.group_size, weights[here])
        for (mean, rate), (_, width) in zip(rates, widths, strict=True):
            low, high = interval._within(mean, q * width)
            inside += low - 1e-12 <= rate <= high + 1e-12
            total += 1
    return inside, total


def _mean_errors(risks: Array, labels: Array, weights: Array, attributes: Attributes) -> dict[str, float]:
    """ "age=older" → squared mean error of these patients' risks in units of the binomial spread, less what
    chance makes of it; only where anything is left."""
    members: dict[str, list[int]] = {}
    for row, held in enumerate(attributes):
        for name, value in held.items():
            members.setdefault(f"{name}={value}", []).append(row)
    found = {}
    for subgroup, rows in sorted(members.items()):
        if len(rows) < SUBGROUP_PATIENTS:
            continue
        said, weight = risks[rows], weights[rows] / weights[rows].sum()
        spread = float(weight @ np.sqrt(np.maximum(said * (1 - said), 1e-6)))
        error = float(weight @ (labels[rows] - said)) / spread
        extra = error**2 - float(weight @ weight)
        if extra > 0:
            found[subgroup] = extra
    return found


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
