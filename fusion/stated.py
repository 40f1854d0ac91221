"""Whether the calibration and intervals that a bundle's or an edge folder's JSON states can be used.

Weights have a digest beside them; these numbers only have what they must be. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from fusion.calibrate import Calibration
from fusion.config import FusionConfig
from fusion.conformal import Interval
from fusion.errors import BundleMismatch
from fusion.survival import curves_of


def read_stated(
    file: str, said: dict[str, Any], config: FusionConfig
) -> tuple[Calibration, tuple[Interval, ...]]:
    """`calibration` and `intervals` of what a file says → as they are used.

    Raises BundleMismatch, naming the file, the entry and what was expected, for numbers that are not finite
    or out of bounds, another number of outcomes than the config's, and patterns of unknown modalities.
    """
    try:
        calibration = Calibration.from_json(said["calibration"])
        intervals = tuple(Interval.from_json(part) for part in said["intervals"])
        check = _Check(file, config)
        check.calibration(calibration)
        check.intervals(intervals)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
        raise BundleMismatch(
            f"{file} does not describe a model: calibration or intervals: {type(fault).__name__} {fault}"
        ) from fault
    return calibration, intervals


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _not_negative(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _width(value: float) -> bool:
    return value >= 0  # infinite: unknown


def _share(value: float) -> bool:
    return 0 <= value <= 1


WORDS: dict[Callable[[float], bool], str] = {
    _finite: "a finite number",
    _not_negative: "a finite number, 0 or more",
    _width: "a number, 0 or more, or null for unknown",
    _share: "a number in [0, 1]",
}


class _Check:
    """Raises BundleMismatch for the first entry that cannot be."""

    def __init__(self, file: str, config: FusionConfig) -> None:
        self._file, self._outcomes = file, config.outcomes
        self._names = [m.value for m in config.modalities]
        if not 0 < config.interval_level < 1:
            self._refuse("config.interval_level", config.interval_level, "a number between 0 and 1")

    def calibration(self, found: Calibration) -> None:
        held = {"base_logit": found.base, "maps": found.maps, "trust": found.trust}
        for name, each in {**held, **({"scores": found.scores} if found.scores else {})}.items():
            self._count(f"calibration.{name}", each)
        self._numbers("calibration.base_logit", enumerate(found.base), _finite)
        self._numbers("calibration.trust", enumerate(found.trust), _share)
        for r, one in enumerate(found.maps):
            self._number(f"calibration.maps[{r}].scale", one.scale, _not_negative)
            self._number(f"calibration.maps[{r}].shift", one.shift, _finite)
            self._numbers(f"calibration.maps[{r}].points", enumerate(one.points), _finite)
        for pattern, pairs in found.patterns.items():
            entry = f"calibration.patterns[{pattern!r}]"
            self._pattern(entry, pattern)
            self._count(entry, pairs)
            self._numbers(f"{entry} scale", enumerate(scale for scale, _ in pairs), _not_negative)
            self._numbers(f"{entry} shift", enumerate(shift for _, shift in pairs), _finite)
        for r, scores in enumerate(found.scores):
            self._numbers(f"calibration.scores[{r}]", scores.items(), _finite)
        if found.curves != (curves := curves_of(self._outcomes)):
            wanted = f"{[list(places) for places in curves]}, as the config's outcomes say"
            self._refuse("calibration.curves", [list(places) for places in found.curves], wanted)

    def intervals(self, found: tuple[Interval, ...]) -> None:
        self._count("intervals", found)
        for r, one in enumerate(found):
            entry = f"intervals[{r}]"
            if not 0 < one.level < 1:
                self._refuse(f"{entry}.level", one.level, "a number between 0 and 1")
            self._number(f"{entry}.q", one.q, _width)
            if one.group_size < 1:
                self._refuse(f"{entry}.group_size", one.group_size, "1 patient or more")
            self._number(f"{entry}.groups", one.groups, _not_negative)
            for pattern in one.patterns:
                self._pattern(f"{entry}.patterns[{pattern!r}]", pattern)
            self._numbers(f"{entry}.patterns", one.patterns.items(), _width)
            self._numbers(f"{entry}.logit_shifts", one.shifts.items(), _finite)
            self._numbers(f"{entry}.shift_variances", one.variances.items(), _not_negative)
            self._numbers(f"{entry}.shifts", one.spreads.items(), _finite)

    def _count(self, entry: str, found: tuple[Any, ...]) -> None:
        if len(found) != len(self._outcomes):
            self._refuse(entry, f"of {len(found)}", f"one for each of the {len(self._outcomes)} outcomes")

    def _pattern(self, entry: str, pattern: str) -> None:
        if not set(pattern.split("+")) <= set(self._names):
            self._refuse(entry, "of modalities the model has not", f"{', '.join(self._names)}, joined by +")

    def _numbers(
        self, entry: str, values: Iterable[tuple[Any, float]], fits: Callable[[float], bool]
    ) -> None:
        for place, value in values:
            self._number(f"{entry}[{place!r}]", value, fits)

    def _number(self, entry: str, value: float, fits: Callable[[float], bool]) -> None:
        if not fits(value):
            self._refuse(entry, value, WORDS[fits])

    def _refuse(self, entry: str, found: object, wanted: str) -> None:
        raise BundleMismatch(f"{self._file}: {entry} is {found}, expected {wanted}")
