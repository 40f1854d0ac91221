"""What a model is given about one patient, at one moment. No torch here, no clock, no files.

Axis letters, used in every docstring of fusion: B batch, V views, T frames, C channels, D/H/W space,
F features, L tokens (or sentences), M modalities, E embedding, R outcomes x horizons.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from fusion.errors import BadInput

FloatArray = NDArray[np.float32]


class Modality(StrEnum):
    """The kinds of evidence a model can fuse. (Say *imaging modality* for DICOM's.)"""

    TABULAR = "tabular"
    SERIES = "series"
    TEXT = "text"
    GENOMICS = "genomics"
    IMAGE = "image"
    CINE = "cine"
    VOLUME = "volume"


@dataclass(frozen=True, eq=False, slots=True)
class Frames:
    """Pixels as they come from a Series.

    values      float32 [T, H, W], intensities in [0, 1]; T = 1 for a still image; of a volume [D, H, W],
                slices along their normal; or with an axis of three channels after the first
    times_ms    float32 [T], from the first frame
    spacing_mm  (row, column), or None when unknown
    slice_mm    of a volume: from one slice to the next
    """

    values: FloatArray
    times_ms: FloatArray
    spacing_mm: tuple[float, float] | None = None
    slice_mm: float | None = None


@dataclass(frozen=True, eq=False, slots=True)
class PixelInput:
    """One still image, cine clip or volume of a patient.

    key         digest of the set of instances; equal keys mean equal pixels
    read        gives the frames; called only when an embedding is missing
    times_ms    of a volume: zeros, one a slice
    embeddings  what backbones already made of these pixels, by backbone version: float32 [T, D]
    """

    key: str
    read: Callable[[], Frames]
    times_ms: FloatArray
    embeddings: Mapping[str, FloatArray] = field(default_factory=dict)
    view: str = ""
    hours_before: float = 0.0
    slice_mm: float | None = None  # of a volume: from one slice to the next


@dataclass(frozen=True, eq=False, slots=True)
class NoteInput:
    """One clinical note.

    key         digest of the text; equal keys mean equal text
    embeddings  float32 [L, D], one row a sentence (`fusion.split_sentences`), by text-encoder version
    """

    key: str
    text: str
    embeddings: Mapping[str, FloatArray] = field(default_factory=dict)
    hours_before: float = 0.0


@dataclass(frozen=True, slots=True)
class SeriesPoint:
    """One value of a time series: `channel` names it, `hours_before` >= 0 counts back from `as_of`."""

    channel: str
    hours_before: float
    value: float


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class PatientInputs:
    """Everything a model may know about one patient as of one moment.

    fields      tabular values by field name, in the unit of its FieldSpec; None or absent = missing
    genomics    the same, for variants and scores
    series      irregular labs and vitals; any order
    notes, images, cines, volumes   newest first; empty = the modality is missing
    pending     modalities that exist for this patient but are not ready (pixels still being encoded)
    attributes  {"sex": "female", …}: what subgroups the patient belongs to. It decides how wide the interval
                is (`fusion.conformal`); no risk depends on it
    """

    key: str
    fields: Mapping[str, float | None] = field(default_factory=dict)
    genomics: Mapping[str, float | None] = field(default_factory=dict)
    series: tuple[SeriesPoint, ...] = ()
    notes: tuple[NoteInput, ...] = ()
    images: tuple[PixelInput, ...] = ()
    cines: tuple[PixelInput, ...] = ()
    volumes: tuple[PixelInput, ...] = ()
    pending: frozenset[Modality] = frozenset()
    attributes: Mapping[str, str] = field(default_factory=dict)

    def present(self) -> frozenset[Modality]:
        """The modalities that hold at least one value."""
        held = {
            Modality.TABULAR: any(_known(v) for v in self.fields.values()),
            Modality.GENOMICS: any(_known(v) for v in self.genomics.values()),
            Modality.SERIES: bool(self.series),
            Modality.TEXT: bool(self.notes),
            Modality.IMAGE: bool(self.images),
            Modality.CINE: bool(self.cines),
            Modality.VOLUME: bool(self.volumes),
        }
        return frozenset(modality for modality, is_held in held.items() if is_held)

    def digest(self) -> str:
        """SHA-256 of all that a risk depends on (pixels and notes by their keys): the same, the same risk.

        Raises BadInput for what is no number where one is expected.
        """
        try:
            said = json.dumps(self._said(), sort_keys=True, default=float)
        except (TypeError, ValueError) as fault:
            raise BadInput(
                f"{self._no_number()}: a number (fields and values in their unit, hours_before in h) or None "
                "is expected"
            ) from fault
        return hashlib.sha256(said.encode()).hexdigest()

    def _said(self) -> dict[str, object]:
        return {
            "fields": {k: v for k, v in sorted(self.fields.items()) if _known(v)},
            "genomics": {k: v for k, v in sorted(self.genomics.items()) if _known(v)},
            "series": sorted((p.channel, round(p.hours_before, 6), p.value) for p in self.series),
            "notes": [(n.key, round(n.hours_before, 6)) for n in self.notes],
            "images": [(p.key, p.view) for p in self.images],
            "cines": [(p.key, p.view) for p in self.cines],
            **({"volumes": [p.key for p in self.volumes]} if self.volumes else {}),
            "pending": sorted(self.pending),
        }

    def _no_number(self) -> str:
        """What of all that should be a number is none, by its name and type."""
        told: list[tuple[str, object]] = [
            *((f"field {name!r}", value) for name, value in {**self.fields, **self.genomics}.items()),
            *((f"series {p.channel!r}: hours_before", p.hours_before) for p in self.series),
            *((f"series {p.channel!r}: value", p.value) for p in self.series),
            *((f"note {n.key!r}: hours_before", n.hours_before) for n in self.notes),
        ]
        for name, value in told:
            try:
                if value is not None:
                    float(value)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                return f"{name} is of type {type(value).__name__}"
        return "fields, series or notes"


def _known(value: float | None) -> bool:
    try:
        return value is not None and not math.isnan(value)
    except (TypeError, ValueError, OverflowError):  # there, and no number: whoever reads it says so
        return True
