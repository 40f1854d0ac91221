"""Split-conformal intervals for the event rate among patients scored alike.

Patients whose encoders have not seen them are sorted by risk and cut into groups of `group_size`. A group's
nonconformity is |observed rate - mean risk| / sqrt(mean (1 - mean)). With q the ceil((n + 1) level)-th
smallest of the n groups' nonconformities, a patient's interval is risk ± q sqrt(risk (1 - risk)),
cut to [0, 1]. The cuts are laid in five ways, so that q rests less on where they happen to fall; n stays the
number of groups that share nobody. A pattern of present modalities with enough groups has a q of its own
(Mondrian conformal prediction, Vovk 2005).

Patients of one subgroup (age, sex, source) can have more events than their risks say, most of all where what
tells them apart is missing. The interval of who is known to belong there is therefore laid around
risk + shift sqrt(risk (1 - risk)), its length unchanged: the shifts are the subgroups' mean errors in units
of the binomial spread, fitted for all subgroups together by ridge regression, with what each present modality
takes off them. Shifts and not a q of each
subgroup's own (equalised coverage, Romano et al. 2020): of few groups that is mostly noise, and widths that
suit the older and the younger are too wide for women and men, among whom those errors even out.

What it promises: the event rate in a further group of `group_size` patients scored alike lies within, with
probability at least `level`, if they are exchangeable with those of calibration (same hospital, same time,
same way of asking). What it does not promise: anything about one patient's fate. Of a subgroup it promises
as much as a mean error tells; the report counts how often it held. The groups are formed by rank, so
exchangeability between old and new groups is approximate. Too few groups for the level → the interval is all
of [0, 1]: nothing is known of its width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGEST, SMALLEST = 25, 5  # patients in a group
OFFSETS = 5  # ways to lay the cuts
PATTERN_GROUPS = 30  # least for a pattern of its own
SUBGROUP_LEAST = 20  # patients of a subgroup, below which it has no shift
SUBGROUP_RIDGE = 50.0  # patients' worth of belief that a subgroup has no error of its own

Attributes = Sequence[Mapping[str, str]]  # of each patient: {"sex": "female", …}


@dataclass(frozen=True, slots=True)
class Interval:
    """One outcome's interval: `q` (infinite = unknown), patients per group, and groups it rests on.

    patterns   "image+tabular" → q of that pattern of present modalities, where enough groups have it
    shifts     "age=older" → mean error of the risks of that subgroup, in units of the binomial spread;
               "age=older+tabular" → what it is besides where that modality is present
    """

    level: float
    q: float
    group_size: int
    groups: int
    patterns: dict[str, float] = field(default_factory=dict)
    shifts: dict[str, float] = field(default_factory=dict)

    def shift(self, pattern: str, attributes: Mapping[str, str] | None) -> float:
        """Of a patient with that pattern and of those subgroups."""
        if not self.shifts or not attributes:
            return 0.0
        return sum(self.shifts.get(name, 0.0) for name in _belonging(pattern, attributes))

    def around(
        self, risk: float, pattern: str = "", attributes: Mapping[str, str] | None = None
    ) -> tuple[float, float]:
        """(low, high) in [0, 1], always holding the risk.

        pattern     the present modalities, joined by "+" in the model's order
        attributes  what is known of the patient's subgroups; unknown ones shift nothing
        """
        return self.laid(risk, pattern, self.shift(pattern, attributes))

    def laid(self, risk: float, pattern: str, shift: float) -> tuple[float, float]:
        """The same, of a shift that is already known."""
        q = self.patterns.get(pattern, self.q)
        if math.isinf(q):
            return 0.0, 1.0
        spread = math.sqrt(risk * (1 - risk))
        low, high = risk + (shift - q) * spread, risk + (shift + q) * spread
        return min(risk, max(0.0, low)), max(risk, min(1.0, high))

    def to_json(self) -> dict[str, Any]:
        q = None if math.isinf(self.q) else self.q
        said = {"level": self.level, "q": q, "group_size": self.group_size, "groups": self.groups}
        return {**said, "patterns": dict(self.patterns), "shifts": dict(self.shifts)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Interval:
        q = math.inf if data["q"] is None else float(data["q"])
        patterns, shifts = (
            {str(k): float(v) for k, v in data.get(held, {}).items()} for held in ("patterns", "shifts")
        )
        level, size, groups = float(data["level"]), int(data["group_size"]), int(data["groups"])
        return cls(level, q, size, groups, patterns, shifts)


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
    names = np.full(len(labels), "") if patterns is None else np.asarray(patterns)
    shifts, moved = {}, np.zeros(len(labels))
    if attributes is not None:
        shifts = _mean_errors(risks, labels, weights, known, names, attributes)
        moved = _moved(Interval(level, 0.0, 0, 0, shifts=shifts), names, attributes)
    risks, labels, weights, names, moved = (each[known] for each in (risks, labels, weights, names, moved))
    enough = math.ceil(level / (1 - level)) + 1  # groups needed for a finite q
    size = int(np.clip(len(risks) // max(10, enough), SMALLEST, LARGEST))
    own: dict[str, float] = {}
    for name in np.unique(names):
        here = names == name
        if name and here.sum() >= PATTERN_GROUPS * size:
            own[str(name)] = _quantile(risks[here], moved[here], labels[here], weights[here], size, level)
    q = _quantile(risks, moved, labels, weights, size, level)
    return Interval(level, q, size, len(risks) // size, own, shifts)


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

    Patients are grouped within their pattern, so that a group is judged by the interval its patients got, and
    shifted by the mean of their shifts.
    """
    known = ~np.isnan(labels)
    weights = np.ones(len(labels)) if weights is None else weights
    names = np.full(len(labels), "") if patterns is None else np.asarray(patterns)
    shifts = np.zeros(len(labels)) if attributes is None else _moved(interval, names, attributes)
    names = np.where(np.isin(names, list(interval.patterns)), names, "")
    inside = total = 0
    for name in np.unique(names):
        here = known & (names == name)
        rates, moved = (
            grouped(risks[here], told[here], interval.group_size, weights[here]) for told in (labels, shifts)
        )
        for (mean, rate), (_, shift) in zip(rates, moved, strict=True):
            low, high = interval.laid(mean, str(name), shift)
            inside += low - 1e-12 <= rate <= high + 1e-12
            total += 1
    return inside, total


def _belonging(pattern: str, attributes: Mapping[str, str]) -> list[str]:
    """What a patient's shift is the sum of."""
    each = [f"{name}={value}" for name, value in sorted(attributes.items())]
    return [*each, *(f"{one}+{modality}" for one in each for modality in pattern.split("+") if modality)]


def _moved(interval: Interval, patterns: NDArray[np.str_], attributes: Attributes) -> Array:
    """The shift of every patient, float64 [B]."""
    return np.array([interval.shift(str(p), a) for p, a in zip(patterns, attributes, strict=True)], float)


def _mean_errors(
    risks: Array,
    labels: Array,
    weights: Array,
    known: NDArray[np.bool_],
    patterns: NDArray[np.str_],
    attributes: Attributes,
) -> dict[str, float]:
    """What belonging to a subgroup adds to (label - risk) / spread, by weighted ridge regression."""
    each = [_belonging(str(p), a) for p, a in zip(patterns, attributes, strict=True)]
    count = Counter(name for held, is_known in zip(each, known, strict=True) if is_known for name in held)
    columns = {name: i for i, name in enumerate(sorted(n for n in count if count[n] >= SUBGROUP_LEAST))}
    belongs = np.zeros((len(risks), len(columns)))
    for row, held in enumerate(each):
        belongs[row, [columns[name] for name in held if name in columns]] = 1
    belongs, said, weight = belongs[known], risks[known], weights[known]
    error = (labels[known] - said) / _spread(said)
    inner = (belongs * weight[:, None]).T @ belongs + SUBGROUP_RIDGE * np.eye(len(columns))
    found = np.linalg.solve(inner, (belongs * weight[:, None]).T @ error)
    return {name: float(found[place]) for name, place in columns.items()}


def _quantile(risks: Array, moved: Array, labels: Array, weights: Array, size: int, level: float) -> float:
    groups = len(risks) // size
    place = math.ceil((groups + 1) * level)
    if not 0 < place <= groups:
        return math.inf
    order = np.argsort(risks, kind="stable")
    scores = []
    for step in range(OFFSETS):
        rows = order[step * size // OFFSETS :]
        told = (grouped(risks[rows], each[rows], size, weights[rows]) for each in (moved, labels))
        for (mean, shift), (_, rate) in zip(*told, strict=True):
            scores.append(abs((rate - mean) / float(_spread(np.array(mean))) - shift))
    ranked = np.sort(scores)
    return float(ranked[min(len(ranked) - 1, math.ceil(place / groups * len(ranked)) - 1)])


def _spread(risk: Array) -> Array:
    return np.sqrt(np.maximum(risk * (1 - risk), 1e-6))
