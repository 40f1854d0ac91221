"""PatientInputs → rows of plain arrays, one set for each modality. Axis letters: see inputs. No torch here:
training, serving and small machines build the same rows with the same code.

Every modality is a row of tokens: fields (tabular, genomics), channels (series), sentences (text),
views (image), frames (cine). What is not known is False in `known` and zero in `values`: never filled in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusion.config import FieldKind, FieldSpec, FusionConfig
from fusion.errors import BadInput
from fusion.inputs import FloatArray, Modality, NoteInput, PatientInputs, PixelInput, SeriesPoint

MAX_SENTENCES = 64  # of the newest notes
VIEWS = ("frontal", "lateral")  # columns after an image's embedding: 1 where its view is that one
FRONTAL = frozenset({"AP", "PA", "FRONTAL", "POSTEROANTERIOR", "ANTEROPOSTERIOR"})
LATERAL = frozenset({"L", "LL", "RL", "LAT", "LATERAL", "LLD", "RLD"})
SUMMARY = ("last", "mean", "lowest", "highest", "change_per_day", "hours_since", "log_count")


class Embeddings(Protocol):
    """Where embeddings of pixels and notes come from: `fusion.embedding.Embedder`, or elsewhere."""

    @property
    def image_width(self) -> int: ...

    @property
    def cine_width(self) -> int: ...

    @property
    def text_width(self) -> int: ...

    def image(self, pixels: PixelInput) -> FloatArray:
        """float32 [T, D]."""

    def cine(self, pixels: PixelInput) -> FloatArray:
        """float32 [T, D]."""

    def note(self, note: NoteInput) -> FloatArray:
        """float32 [L, D]."""


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """One modality of several patients.

    values    float32 [B, L, D]
    known     bool [B, L]
    times_ms  float32 [B, L], cine only: from the first kept frame
    """

    values: FloatArray
    known: NDArray[np.bool_]
    times_ms: FloatArray | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Built:
    """rows, by modality; frames, per patient the indices of its cine's kept frames ([] without); refused, per
    patient the names of fields and channels whose value lies outside the plausible range."""

    rows: dict[Modality, Rows]
    frames: list[list[int]]
    refused: list[tuple[str, ...]]


def build_rows(inputs: Sequence[PatientInputs], config: FusionConfig, embedder: Embeddings) -> Built:
    """Patients → arrays. Raises BadInput for embeddings of another width or length than declared."""
    rows: dict[Modality, Rows] = {}
    frames: list[list[int]] = [[] for _ in inputs]
    refused: list[set[str]] = [set() for _ in inputs]
    for modality in config.modalities:
        if modality == Modality.TABULAR:
            parts = [_fields(p.fields, config.fields, r) for p, r in zip(inputs, refused, strict=True)]
            rows[modality] = _stack(parts, 1, modality)
        elif modality == Modality.GENOMICS:
            parts = [_fields(p.genomics, config.genomics, r) for p, r in zip(inputs, refused, strict=True)]
            rows[modality] = _stack(parts, 1, modality)
        elif modality == Modality.SERIES:
            parts = [_series(p.series, config, r) for p, r in zip(inputs, refused, strict=True)]
            rows[modality] = _stack(parts, len(SUMMARY), modality)
        elif modality == Modality.TEXT:
            parts = [_sentences(p, config, embedder) for p in inputs]
            rows[modality] = _stack(parts, embedder.text_width, modality)
        elif modality == Modality.IMAGE:
            width = embedder.image_width + view_columns(config)
            rows[modality] = _stack([_views(p, config, embedder) for p in inputs], width, modality)
        else:
            clips = [_cine(p, config, embedder) for p in inputs]
            stacked = _stack([(v, np.ones(len(v), bool)) for v, _, _ in clips], embedder.cine_width, modality)
            times = np.zeros(stacked.known.shape, np.float32)
            for i, (values, when, kept) in enumerate(clips):
                times[i, : len(values)] = when
                frames[i] = kept
            rows[modality] = Rows(stacked.values, stacked.known, times)
    return Built(rows, frames, [tuple(sorted(r)) for r in refused])


def kept_frames(times_ms: FloatArray, most: int) -> list[int]:
    """Indices of at most `most` frames, as evenly spread over time as the clip allows; always in order."""
    if len(times_ms) <= most:
        return list(range(len(times_ms)))
    wanted = np.linspace(float(times_ms[0]), float(times_ms[-1]), most)
    if not np.all(np.diff(times_ms) >= 0) or times_ms[-1] <= times_ms[0]:
        wanted, times_ms = np.linspace(0, len(times_ms) - 1, most), np.arange(len(times_ms), dtype=np.float32)
    return sorted({int(np.abs(times_ms - moment).argmin()) for moment in wanted})


def shown_notes(inputs: PatientInputs, config: FusionConfig, embedder: Embeddings) -> list[tuple[int, int]]:
    """(note, sentence) of each text token, in order: newest notes first, at most MAX_SENTENCES."""
    places: list[tuple[int, int]] = []
    for index, note in enumerate(inputs.notes[: config.max_notes]):
        places += [(index, line) for line in range(len(embedder.note(note)))]
    return places[:MAX_SENTENCES]


def summarise(points: Sequence[SeriesPoint]) -> list[float]:
    """One channel's points → the seven numbers of SUMMARY (change per day by least squares; 0 for one)."""
    ordered = sorted(points, key=lambda p: (-p.hours_before, p.value))
    values = np.array([p.value for p in ordered])
    days = -np.array([p.hours_before for p in ordered]) / 24
    spread = float(((days - days.mean()) ** 2).sum())
    slope = float(((days - days.mean()) * (values - values.mean())).sum() / spread) if spread > 1e-4 else 0.0
    return [
        float(values[-1]),
        float(values.mean()),
        float(values.min()),
        float(values.max()),
        slope,
        ordered[-1].hours_before,
        math.log(len(ordered)),
    ]


def is_plausible(value: float | None, spec: FieldSpec) -> bool:
    """Whether a value is known, finite and within its field's range."""
    if value is None or not math.isfinite(value):
        return False
    if spec.kind == FieldKind.BINARY:
        return value in (0.0, 1.0)
    return (spec.low is None or value >= spec.low) and (spec.high is None or value <= spec.high)


_Row = tuple[FloatArray, "np.ndarray[tuple[int], np.dtype[np.bool_]]"]


def _fields(values: Mapping[str, float | None], specs: Sequence[FieldSpec], refused: set[str]) -> _Row:
    known = np.array([is_plausible(values.get(spec.name), spec) for spec in specs], bool)
    row = np.zeros((len(specs), 1), np.float32)
    for i, spec in enumerate(specs):
        value = values.get(spec.name)
        if known[i]:
            row[i, 0] = value
        elif value is not None and not math.isnan(value):
            refused.add(spec.name)
    return row, known


def _series(points: Sequence[SeriesPoint], config: FusionConfig, refused: set[str]) -> _Row:
    specs = {spec.name: spec for spec in config.channels}
    held: dict[str, list[SeriesPoint]] = {}
    for point in points:
        spec = specs.get(point.channel)
        if spec is None or not 0 <= point.hours_before <= config.series_hours:
            continue
        if is_plausible(point.value, spec):
            held.setdefault(point.channel, []).append(point)
        else:
            refused.add(point.channel)
    row = np.zeros((len(specs), len(SUMMARY)), np.float32)
    for i, name in enumerate(specs):
        if name in held:
            row[i] = summarise(held[name])
    return row, np.array([name in held for name in specs], bool)


def _sentences(inputs: PatientInputs, config: FusionConfig, embedder: Embeddings) -> _Row:
    parts = [embedder.note(note) for note in inputs.notes[: config.max_notes]]
    rows = np.concatenate([np.zeros((0, embedder.text_width), np.float32), *parts])[:MAX_SENTENCES]
    return rows, np.ones(len(rows), bool)


def view_columns(config: FusionConfig) -> int:
    """How many columns stand after an image's embedding."""
    return len(VIEWS) if config.view_flags else 0


def view_flags(view: str) -> tuple[float, float]:
    """(frontal, lateral) of a ViewPosition (0018,5101) or a like word; (0, 0) when it tells neither."""
    words = frozenset(view.upper().replace("_", " ").replace("-", " ").split())
    is_frontal = bool(words & FRONTAL)
    return float(is_frontal), float(not is_frontal and bool(words & LATERAL))


def _views(inputs: PatientInputs, config: FusionConfig, embedder: Embeddings) -> _Row:
    shown = inputs.images[: config.max_images]
    parts = [embedder.image(pixels)[:1] for pixels in shown]
    rows = np.concatenate([np.zeros((0, embedder.image_width), np.float32), *parts])
    if config.view_flags:
        flags = np.array([view_flags(pixels.view) for pixels in shown], np.float32).reshape(len(shown), 2)
        rows = np.concatenate([rows, flags], axis=1)
    return rows, np.ones(len(rows), bool)


def _cine(
    inputs: PatientInputs, config: FusionConfig, embedder: Embeddings
) -> tuple[FloatArray, FloatArray, list[int]]:
    """The newest clip: frames' embeddings [T, D], times_ms [T], their indices in the clip."""
    clip: PixelInput | None = next(iter(inputs.cines), None)
    if clip is None:
        return np.zeros((0, embedder.cine_width), np.float32), np.zeros(0, np.float32), []
    rows = embedder.cine(clip)
    times = np.asarray(clip.times_ms, np.float32)
    if len(times) != len(rows):
        raise BadInput(f"clip has {len(rows)} frames embedded but {len(times)} times")
    kept = kept_frames(times, config.cine_frames)
    return rows[kept], times[kept] - times[kept[0]], kept


def _stack(rows: Sequence[_Row], width: int, modality: Modality) -> Rows:
    longest = max([1, *(len(known) for _, known in rows)])
    values = np.zeros((len(rows), longest, width), np.float32)
    mask = np.zeros((len(rows), longest), bool)
    for i, (row, known) in enumerate(rows):
        if not np.isfinite(row).all():
            raise BadInput(
                f"{modality.value}: values are not finite where float32 [{len(row)}, {width}] is expected"
            )
        values[i, : len(row)] = np.where(known[:, None], row, 0)
        mask[i, : len(row)] = known
    return Rows(values, mask)
