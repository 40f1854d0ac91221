"""Settings of a training that cannot be meant, refused before anything is read. No torch here."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral, Real

from fusion.config import Augment, CinePooling, FieldSpec, FusionConfig, FusionKind, Imbalance, VolumeKind
from fusion.errors import BadInput
from fusion.inputs import Modality

KINDS: dict[str, type[StrEnum]] = {
    "fusion": FusionKind,
    "cine_pooling": CinePooling,
    "volume_kind": VolumeKind,
    "imbalance": Imbalance,
    "augment": Augment,
}


@dataclass(frozen=True, slots=True)
class _Range:
    """low to high, both allowed unless `is_open`; unit: what is counted."""

    low: float
    high: float = math.inf
    unit: str = "1"
    is_open: bool = False
    is_whole: bool = False

    def holds(self, value: object) -> bool:
        if not isinstance(value, Integral if self.is_whole else Real) or isinstance(value, bool):
            return False
        number = float(value)
        within = self.low < number < self.high if self.is_open else self.low <= number <= self.high
        return within and math.isfinite(number)

    def words(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        if self.high == math.inf:
            bound = f"above {self.low:g}" if self.is_open else f"of {self.low:g} or more"
        elif self.is_open:
            bound = f"between {self.low:g} and {self.high:g}, neither included"
        else:
            bound = f"from {self.low:g} to {self.high:g}"
        return f"{kind} {bound}" + ("" if self.unit == "1" else f" ({self.unit})")


def _count(unit: str, low: float = 1) -> _Range:
    return _Range(low, unit=unit, is_whole=True)


RANGES: dict[str, _Range] = {
    "image_size": _count("pixels a side"),
    "image_components": _count("components"),
    "cine_size": _count("pixels a side"),
    "cine_frames": _count("frames a clip"),
    "volume_size": _count("pixels a side"),
    "volume_extent_mm": _Range(0, unit="mm", is_open=True),
    "volume_step_mm": _Range(0, unit="mm", is_open=True),
    "volume_slices": _count("slices"),
    "series_hours": _Range(0, unit="h", is_open=True),
    "max_images": _count("images", 0),
    "max_notes": _count("notes", 0),
    "width": _count("numbers"),
    "folds": _count("groups of patients", 2),
    "epochs": _count("passes over the training patients"),
    "patience": _count("epochs"),
    "batch_size": _count("patients"),
    "accumulate": _count("minibatches a step"),
    "learning_rate": _Range(0, is_open=True),
    "weight_decay": _Range(0),
    "modality_dropout": _Range(0, 1, "chance"),
    "interval_level": _Range(0, 1, "share of patients", is_open=True),
    "threads": _count("threads"),
    "finetune_epochs": _count("passes over the training pictures"),
    "finetune_rate": _Range(0, is_open=True),
    "scope_pictures": _count("pictures", 0),
    "scope_false_alarms": _Range(0, 1, "chance"),
    "dp_noise": _Range(0),
    "dp_clip": _Range(0, is_open=True),
}


def check_config(config: FusionConfig) -> None:
    """Raises BadInput, by the setting's name, for a value outside its range and for names given twice."""
    names = [spec.name for spec in config.outcomes]
    if not names or len(set(names)) != len(names):
        raise BadInput("a model needs at least one outcome, each named once")
    if not config.modalities or len(set(config.modalities)) != len(config.modalities):
        raise BadInput("a model needs at least one modality, each named once")
    if unknown := [m for m in config.modalities if not isinstance(m, Modality)]:
        raise BadInput(f"modalities must be of {', '.join(Modality)}, as Modality, not {unknown[0]!r}")
    for setting, kind in KINDS.items():
        chosen = getattr(config, setting)
        if chosen not in tuple(kind):
            raise BadInput(f"{setting} must be one of {', '.join(kind)}, not {chosen!r}")
    for setting, wanted in RANGES.items():
        value = getattr(config, setting)
        if not wanted.holds(value):
            raise BadInput(f"{setting} must be {wanted.words()}, not {value!r}")
    for setting in ("fields", "genomics", "channels"):
        specs: tuple[FieldSpec, ...] = getattr(config, setting)
        if twice := [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]:
            raise BadInput(f"{setting} must each be named once; more than once there: {', '.join(twice)}")
