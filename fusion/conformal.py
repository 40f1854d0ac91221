"""Split-conformal intervals for the event rate among patients scored alike.

Patients whose encoders have not seen them are sorted by risk and cut into groups of `group_size`. A group's
nonconformity is |observed rate - mean risk| / sqrt(mean (1 - mean)). With q the ceil((n + 1) level)-th
smallest of the n groups' nonconformities, a patient's interval is risk ± q sqrt(risk (1 - risk)),
cut to [0, 1]. Patients are grouped anew many times, each with others of about its rank, and q is the mean of
what the groupings say: one alone rests on few groups and is too wide or too narrow by a tenth. Each keeps the
promise, and so does their mean, since ever fewer groups lie further out (the chance to be within is concave
in q; Jensen). A pattern of present modalities with enough groups has a q of its own (Mondrian conformal
prediction, Vovk 2005).

Patients of one subgroup (age, sex, source) can have more events than their risks say, most of all where what
tells them apart is missing. The interval of who is known to belong there is therefore laid around the risk
moved by the subgroup's shift (`fusion.subgroup_shifts`), as wide as that risk asks for, and wider by what the
shift is unsure of: q sqrt(moved (1 - moved) + group_size variance). A group of calibration errs less
than a new one, as the shifts were fitted on it too: its nonconformity is divided by sqrt(1 - leverage), by
which an error would be larger without it (studentised deleted residuals; conformal ridge regression, Burnaev
& Vovk 2014). Shifts and not a q of each subgroup's own (equalised coverage, Romano et al. 2020): of few
groups that is mostly noise, and widths that suit the older and the younger are too wide for women and men,
among whom those errors even out.

What it promises: the event rate in a further group of `group_size` patients scored alike lies within, with
probability at least `level`, if they are exchangeable with those of calibration (same hospital, same time,
same way of asking). What it does not promise: anything about one patient's fate. Of a subgroup it promises
as much as its shift tells; the report counts how often it held. The groups are formed by rank, so
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

from fusion.subgroup_shifts import Attributes, Subgroups, belonging, moved

Array = NDArray[np.float64]
LARGEST, SMALLEST = 25, 5  # patients in a group
PATTERN_GROUPS = 30  # least for a pattern of its own
GROUPINGS = 40  # ways to group the patients
NEIGHBOURS, NARROW = 4, 15  # a rank is moved by up to 4 groups, and by no more than a 15th of all
MOST = 0.9  # of the variance of a group's error, that shifts can have explained


@dataclass(frozen=True, slots=True)
class Interval:
    """One outcome's interval: `q` (infinite = unknown), patients per group, and groups it rests on.

    patterns   "image+tabular" → q of that pattern of present modalities, where enough groups have it
    shifts     "age=older" → what is added to the logit of that subgroup's risks;
               "age=older+tabular" → what is added besides where that modality is present
    variances  "" → variance of the mean shift of a group of patients scored alike; "age=older" → by how much
               it is larger in groups of that subgroup alone
    spreads    the shifts of older bundles, not of logits but in units of the binomial spread
    """

    level: float
    q: float
    group_size: int
    groups: int
    patterns: dict[str, float] = field(default_factory=dict)
    shifts: dict[str, float] = field(default_factory=dict)
    variances: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)

    def around(
        self, risk: float, pattern: str = "", attributes: Mapping[str, str] | None = None
    ) -> tuple[float, float]:
        """(low, high) in [0, 1], always holding the risk.

        pattern     the present modalities, joined by "+" in the model's order
        attributes  what is known of the patient's subgroups; unknown ones shift nothing
        """
        return self.laid(risk, pattern, *self.placed(risk, pattern, attributes))

    def placed(self, risk: float, pattern: str, attributes: Mapping[str, str] | None) -> tuple[float, float]:
        """(middle of a patient's interval, variance of it that comes from the shift being an estimate)."""
        if not attributes:
            return risk, 0.0
        names = ["", *belonging(pattern, attributes)]
        shift, variance, spread = (
            sum(held.get(name, 0.0) for name in names) for held in (self.shifts, self.variances, self.spreads)
        )
        middle = float(moved(np.array(risk), np.array(shift))) + spread * math.sqrt(risk * (1 - risk))
        return middle, variance * (middle * (1 - middle)) ** 2

    def laid(self, risk: float, pattern: str, middle: float, variance: float) -> tuple[float, float]:
        """The same, of what is already placed."""
        q = self.patterns.get(pattern, self.q)
        if math.isinf(q):
            return 0.0, 1.0
        at = risk if self.spreads else middle
        width = q * math.sqrt(max(0.0, at * (1 - at)) + self.group_size * variance)
        return min(risk, max(0.0, middle - width)), max(risk, min(1.0, middle + width))

    def to_json(self) -> dict[str, Any]:
        q = None if math.isinf(self.q) else self.q
        said = {"level": self.level, "q": q, "group_size": self.group_size, "groups": self.groups}
        shifts = {"logit_shifts": dict(self.shifts), "shift_variances": dict(self.variances)}
        older = {"shifts": dict(self.spreads)} if self.spreads else {}
        return {**said, "patterns": dict(self.patterns), **shifts, **older}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Interval:
        """Also reads bundles whose shifts are in units of the spread, or that have none.

        Raises KeyError, TypeError or ValueError; what the numbers must be, `fusion.stated` says.
        """
        q = math.inf if data["q"] is None else float(data["q"])
        patterns, shifts, variances, spreads = (
            {str(k): float(v) for k, v in data.get(held, {}).items()}
            for held in ("patterns", "logit_shifts", "shift_variances", "shifts")
        )
        level, size, groups = float(data["level"]), int(data["group_size"]), int(data["groups"])
        return cls(level, q, size, groups, patterns, shifts, variances, spreads)


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
    enough = math.ceil(level / (1 - level)) + 1  # groups needed for a finite q
    size = int(np.clip(known.sum() // max(10, enough), SMALLEST, LARGEST))
    shifts, variances, middles = dict[str, float](), dict[str, float](), risks
    belongs, covariance = np.zeros((len(labels), 0)), np.zeros((0, 0))
    if attributes is not None and known.any():
        held = Subgroups(names, attributes, known)
        found, covariance = held.fitted(risks[known], labels[known], weights[known], held.rows[known])
        order = np.flatnonzero(known)[np.argsort(risks[known], kind="stable")]
        shifts = dict(zip(held.names, map(float, found), strict=True))
        variances = held.variances(covariance, order, size)
        belongs, middles = held.rows, moved(risks, held.rows @ found)

    def quantile(here: NDArray[np.bool_]) -> float:
        rows = np.flatnonzero(here)[np.argsort(risks[here], kind="stable")]
        return _quantile(
            labels[rows], middles[rows], weights[rows], belongs[rows], covariance, size=size, level=level
        )

    own = {
        str(name): quantile(known & (names == name))
        for name in np.unique(names)
        if name and (known & (names == name)).sum() >= PATTERN_GROUPS * size
    }
    return Interval(level, quantile(known), size, int(known.sum()) // size, own, shifts, variances)


def grouped(
    risks: Array, labels: Array, size: int, weights: Array | None = None
) -> list[tuple[float, float]]:
    """(mean risk, observed rate) of full groups of `size` patients of neighbouring risk; who fill none are
    left off either end."""
    weights = np.ones(len(risks)) if weights is None else weights
    order = np.argsort(risks, kind="stable")
    groups = len(order) // size
    start = (len(order) - groups * size) // 2
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
    """(groups whose event rate lies within the interval of their patients, groups), of known labels.

    Patients are grouped within their pattern, so that a group is judged by the q its patients got; its
    interval is laid around the mean of where theirs are.
    """
    known = ~np.isnan(labels)
    weights = np.ones(len(labels)) if weights is None else weights
    names = np.full(len(labels), "") if patterns is None else np.asarray(patterns)
    placed = np.stack([risks, np.zeros(len(risks))], axis=1)
    if attributes is not None and len(risks):
        asked = zip(risks.tolist(), names, attributes, strict=True)
        placed = np.array([interval.placed(risk, str(p), a) for risk, p, a in asked], float)
    names = np.where(np.isin(names, list(interval.patterns)), names, "")
    inside = total = 0
    for name in np.unique(names):
        here = known & (names == name)
        told = [
            grouped(risks[here], each[here], interval.group_size, weights[here])
            for each in (labels, placed[:, 0], placed[:, 1])
        ]
        for (mean, rate), (_, middle), (_, variance) in zip(*told, strict=True):
            low, high = interval.laid(mean, str(name), middle, variance)
            inside += low - 1e-12 <= rate <= high + 1e-12
            total += 1
    return inside, total


def _quantile(
    labels: Array,
    middles: Array,
    weights: Array,
    belongs: Array,
    covariance: Array,
    *,
    size: int,
    level: float,
) -> float:
    """q of patients sorted by risk, grouped anew `GROUPINGS` times.

    middles     float64 [B]: where their intervals are laid around
    belongs     float64 [B, N]: which shifts moved them there; covariance [N, N] is of these
    """
    groups = len(labels) // size
    place = math.ceil((groups + 1) * level)
    if not 0 < place <= groups:
        return math.inf
    rng = np.random.default_rng(0)
    reach = size * float(np.clip(groups / NARROW, 1, NEIGHBOURS))
    found = []
    for _ in range(GROUPINGS):
        order = np.argsort(np.arange(len(labels)) + rng.uniform(0, reach, len(labels)))
        start = rng.integers(len(labels) - groups * size + 1)
        each = order[start : start + groups * size].reshape(groups, size)
        weight = weights[each]
        rate, middle = (np.average(told[each], axis=1, weights=weight) for told in (labels, middles))
        spread = np.maximum(middle * (1 - middle), 1e-6)
        held = np.einsum("gs,gsn->gn", weight, belongs[each]) / weight.sum(axis=1, keepdims=True)
        variance = np.einsum("gn,nm,gm->g", held, covariance, held)
        leverage = np.minimum(MOST, weight.sum(axis=1) * spread * variance)
        found.append(np.sort(np.abs(rate - middle) / np.sqrt(spread * (1 - leverage)))[place - 1])
    return float(np.mean(found))
