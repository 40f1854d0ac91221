"""Fused logits → risks: a monotone map per outcome, chosen from four, and a mend per pattern of modalities.

    temperature      base + scale x (logit - base): with scale → 0 it falls back to the base rate (Guo 2017)
    scale and shift  further + shift (Platt 1999)
    beta             a log p - b log(1 - p) + c with a, b >= 0 (Kull 2017)
    isotonic         any rising map, straight between the centres of its steps (Oron & Flournoy 2017)

The choice is the simplest whose cross-validated log loss is within a standard error of the best. All are
shrunk towards "leave as is", so that a small tuning split changes little. A pattern of present modalities
where data suffice gets a scale and shift of its own on top, shrunk harder. Every step rises with the logit,
so calibration never reorders patients of one pattern. No modality present → exactly the base rate.

No model may be surer than the patients it was checked on allow: the risk is drawn back towards the base rate
by `trust` = (k + 1) / (k + 2), k patients of the rarer kind among them: what Laplace's rule of succession
believes after k out of k. So twenty events never end in "100 %".

Outcomes of one survival curve are calibrated as hazards, each on the patients at risk, then become risks by
their horizon (`fusion.survival`): so they still cannot fall from one horizon to the next. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import FusionError
from fusion.monotone import PLAIN, Map, choose_map, fit_affine
from fusion.numbers import sigmoid
from fusion.survival import Curves, accumulated

__all__ = ["Calibration", "check_logits", "fit_calibration", "sigmoid"]

Array = NDArray[np.float64]
PATTERN_PATIENTS, PATTERN_EVENTS = 40, 10  # least for a pattern of its own
PATTERN_RIDGE = 30.0  # in patients' worth of log-likelihood


def check_logits(fused: Array, outcomes: Sequence[str]) -> None:
    """Raises FusionError, by the outcome's name, where a fused logit [..., R] is not finite."""
    if not (is_finite := np.isfinite(fused)).all():
        wrong = [name for r, name in enumerate(outcomes) if not is_finite[..., r].all()]
        raise FusionError(
            f"{', '.join(wrong)}: the fused logit is not finite where float64 [{len(outcomes)}] (no unit) is "
            "expected: there is no risk to give"
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """base, trust, maps: one per outcome. patterns: "image+tabular" → further (scale, shift) per outcome.

    scores  outcome by outcome, mean cross-validated log loss of every map that was tried; for the report
    """

    base: tuple[float, ...]
    maps: tuple[Map, ...]
    trust: tuple[float, ...]
    patterns: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    fitted_on: str = "nothing"
    curves: Curves = ()
    scores: tuple[dict[str, float], ...] = ()
    _tables: dict[tuple[str, ...], tuple[Array, Array]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def scale(self) -> tuple[float, ...]:
        """Of every outcome's map (1 where it has none)."""
        return tuple(one.scale for one in self.maps)

    @property
    def shift(self) -> tuple[float, ...]:
        """Of every outcome's map (0 where it has none)."""
        return tuple(one.shift for one in self.maps)

    def base_risks(self) -> Array:
        """float64 [R]: what is said of a patient of whom nothing is known."""
        return np.asarray(accumulated(sigmoid(np.array([self.base])), self.curves)[0], np.float64)

    def logits(self, fused: Array, present: NDArray[np.bool_], modalities: Sequence[str]) -> Array:
        """Uncalibrated logits [..., R] and masks [..., M] → logits of the risks float64 [..., R]."""
        pattern = present @ (1 << np.arange(len(modalities)))
        is_known = pattern > 0
        scale, shift = self._per_pattern(tuple(modalities))
        risks = []
        for r, (base, to_risk, trust) in enumerate(zip(*self.per_outcome(), strict=True)):
            mapped = to_risk(fused[..., r].astype(np.float64), base)
            if self.patterns:
                mapped = base + scale[pattern, r] * (mapped - base) + shift[pattern, r]
            base_rate = sigmoid(base)
            risks.append(np.where(is_known, base_rate + trust * (sigmoid(mapped) - base_rate), base_rate))
        risk = accumulated(np.moveaxis(np.stack(risks), 0, -1), self.curves)
        known = np.log(risk) - np.log1p(-risk)
        if self.curves:
            return np.asarray(known, np.float64)
        return np.where(is_known[..., None], known, np.array(self.base))

    def _per_pattern(self, modalities: tuple[str, ...]) -> tuple[Array, Array]:
        """Scale and shift float64 [2^M, R] by pattern as a number, bit m for modality m; 1 and 0 where a
        pattern has none of its own."""
        if modalities not in self._tables:
            table = np.zeros((2, 2 ** len(modalities), len(self.base)))
            table[0] = 1
            for names, affine in self.patterns.items():
                held = names.split("+")
                table[:, sum(1 << m for m, name in enumerate(modalities) if name in held)] = np.array(
                    affine
                ).T
            self._tables[modalities] = (table[0], table[1])
        return self._tables[modalities]

    def per_outcome(self) -> tuple[tuple[Any, ...], ...]:
        """The tuples that hold one entry per outcome."""
        return (self.base, self.maps, self.trust)

    def to_json(self) -> dict[str, Any]:
        return {
            "base_logit": list(self.base),
            "maps": [one.to_json() for one in self.maps],
            "trust": list(self.trust),
            "patterns": {name: [list(pair) for pair in each] for name, each in self.patterns.items()},
            "fitted_on": self.fitted_on,
            "curves": [list(places) for places in self.curves],
            "scores": [dict(each) for each in self.scores],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        """Also reads bundles that know only a scale and a shift, and a shift per pattern.

        Raises KeyError, TypeError or ValueError; what the numbers must be, `fusion.stated` says.
        """
        if "maps" in data:
            maps = tuple(_map(place, one) for place, one in enumerate(data["maps"]))
        else:
            maps = tuple(
                Map("scale and shift", float(a), float(b))
                for a, b in zip(data["scale"], data["shift"], strict=True)
            )
        return cls(
            tuple(map(float, data["base_logit"])),
            maps,
            tuple(map(float, data["trust"])),
            {str(k): tuple(_pair(one) for one in each) for k, each in data["patterns"].items()},
            str(data["fitted_on"]),
            tuple(tuple(map(int, places)) for places in data.get("curves", ())),
            tuple({str(k): float(v) for k, v in each.items()} for each in data.get("scores", ())),
        )


def fit_calibration(
    fused: Array,
    labels: Array,
    present: NDArray[np.bool_],
    *,
    base: Array,
    modalities: Sequence[str],
    fitted_on: str,
    real: int | None = None,
    curves: Curves = (),
    groups: NDArray[np.int64] | None = None,
) -> Calibration:
    """fused [B, R], labels [B, R] (NaN = unknown), present [B, M] → Calibration.

    groups  int [B] (see `choose_map`)
    real  how many of the rows, the first, are patients as they are (without it: all); the others are patients
          with modalities hidden, which only the patterns are fitted on
    """
    outcomes = fused.shape[1]
    usable = present.any(axis=1)
    as_they_are = np.arange(len(fused)) < (len(fused) if real is None else real)
    maps, trust, scores = (
        [PLAIN] * outcomes,
        np.zeros(outcomes),
        [dict[str, float]() for _ in range(outcomes)],
    )
    for r in range(outcomes):
        rows = usable & as_they_are & ~np.isnan(labels[:, r])
        events = labels[rows, r].sum()
        rarer = float(min(events, rows.sum() - events))
        trust[r] = (rarer + 1) / (rarer + 2)
        if rows.sum() >= 10 and rarer > 0:
            each = None if groups is None else groups[rows]
            maps[r], scores[r] = choose_map(fused[rows, r], labels[rows, r], float(base[r]), each)
    patterns: dict[str, tuple[tuple[float, float], ...]] = {}
    for pattern in np.unique(present[usable], axis=0):
        here = (present == pattern).all(axis=1)
        affine = tuple(
            _fit_pattern(maps[r](fused[here, r], float(base[r])), labels[here, r], base[r])
            for r in range(outcomes)
        )
        if any(pair != (1.0, 0.0) for pair in affine):
            patterns["+".join(m for m, is_here in zip(modalities, pattern, strict=True) if is_here)] = affine
    return Calibration(
        tuple(map(float, base)),
        tuple(maps),
        tuple(map(float, trust)),
        patterns,
        fitted_on,
        curves,
        tuple(scores),
    )


def _fit_pattern(logits: Array, labels: Array, base: float) -> tuple[float, float]:
    """(scale, shift) of one pattern, or (1, 0) where too few patients have it."""
    known = ~np.isnan(labels)
    patients, events = int(known.sum()), labels[known].sum()
    if patients < PATTERN_PATIENTS or min(events, patients - events) < PATTERN_EVENTS:
        return 1.0, 0.0
    return fit_affine(logits[known] - base, labels[known], base, ridge=(PATTERN_RIDGE, PATTERN_RIDGE))


def _map(place: int, said: dict[str, Any]) -> Map:
    try:
        return Map.from_json(said)
    except ValueError as fault:
        raise ValueError(f"maps[{place}]: {fault}") from fault


def _pair(said: Any) -> tuple[float, float]:
    if isinstance(said, int | float):
        return 1.0, float(said)
    scale, shift = said
    return float(scale), float(shift)
