"""PatientInputs → rows of plain arrays, one set for each modality. Axis letters: see inputs. No torch here:
training, serving and small machines build the same rows with the same code.

Every modality is a row of tokens: fields (tabular, genomics), channels (series), sentences (text), views
(image), frames (cine), slices (volume). What is not known is False in `known` and zero in `values`: never
filled in.
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
WINDOWS = (1.0, 0.5, 1 / 6)  # of the hours that are read, counted back from as_of
GRID = 24  # steps of equal length, oldest first: each channel's mean in the step
MOST = 1e30  # the largest size of a value; beyond it float32 sums are no longer finite
_PER_WINDOW = ("mean", "lowest", "highest", "spread", "change_per_day", "log_count")
SUMMARY = (
    *("last", "first", "hours_since"),
    *(f"{name}_{part}" for part in ("all", "half", "sixth") for name in _PER_WINDOW),
)


class Embeddings(Protocol):
    """Where embeddings of pixels and notes come from: `fusion.embedding.Embedder`, or elsewhere."""

    @property
    def image_width(self) -> int: ...

    @property
    def cine_width(self) -> int: ...

    @property
    def text_width(self) -> int: ...

    @property
    def volume_width(self) -> int: ...

    def image(self, pixels: PixelInput) -> FloatArray:
        """float32 [T, D]."""

    def cine(self, pixels: PixelInput) -> FloatArray:
        """float32 [T, D]."""

    def volume(self, pixels: PixelInput) -> FloatArray:
        """float32 [S, D]."""

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
    """Patients → arrays.

    Raises BadInput, by the name of the field, channel or picture, for what is no number, for times that are
    not finite and for embeddings of another width or length than declared.
    """
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
            rows[modality] = _series([p.series for p in inputs], config, refused)
        elif modality == Modality.TEXT:
            parts = [_sentences(p, config, embedder) for p in inputs]
            rows[modality] = _stack(parts, embedder.text_width, modality)
        elif modality == Modality.IMAGE:
            width = embedder.image_width + view_columns(config)
            rows[modality] = _stack([_views(p, config, embedder) for p in inputs], width, modality)
        elif modality == Modality.VOLUME:
            rows[modality] = _stack(
                [_volume(p, config, embedder) for p in inputs], embedder.volume_width, modality
            )
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


def is_plausible(value: float | None, spec: FieldSpec) -> bool:
    """Whether a value is known, finite and within its field's range. Raises BadInput for no number."""
    try:
        if value is None or not math.isfinite(value) or not -MOST <= value <= MOST:
            return False
    except OverflowError:  # an int that no float holds
        return False
    except (TypeError, ValueError) as fault:
        raise _no_number(f"field {spec.name!r}", value, spec.unit) from fault
    if spec.kind == FieldKind.BINARY:
        return value in (0.0, 1.0)
    return (spec.low is None or value >= spec.low) and (spec.high is None or value <= spec.high)


def _no_number(name: str, found: object, unit: str) -> BadInput:
    return BadInput(
        f"{name}: a value of type {type(found).__name__} where a number ({unit}) or None is expected"
    )


_Row = tuple[FloatArray, "np.ndarray[tuple[int], np.dtype[np.bool_]]"]


def _fields(values: Mapping[str, float | None], specs: Sequence[FieldSpec], refused: set[str]) -> _Row:
    known = np.array([is_plausible(values.get(spec.name), spec) for spec in specs], bool)
    row = np.zeros((len(specs), 1), np.float32)
    for i, spec in enumerate(specs):
        value = values.get(spec.name)
        if known[i]:
            row[i, 0] = value
        elif value is not None and value == value:  # not NaN: that is missing
            refused.add(spec.name)
    return row, known


def _series(patients: Sequence[Sequence[SeriesPoint]], config: FusionConfig, refused: list[set[str]]) -> Rows:
    """Summaries and grid of every channel of every patient at once: float32 [B, channels, SUMMARY + 2 GRID].

    The order of the points tells nothing. Of a window without a value, mean, lowest and highest are the last
    value, spread and change 0.
    """
    place = {spec.name: i for i, spec in enumerate(config.channels)}
    count, width = len(place), len(SUMMARY) + 2 * GRID
    values = np.zeros((len(patients), count, width), np.float32)
    told = [
        (number, place[p.channel], p.hours_before, p.value)
        for number, points in enumerate(patients)
        for p in points
        if p.channel in place
    ]
    table = _table(told, config.channels)
    table = table[(table[:, 2] >= 0) & (table[:, 2] <= config.series_hours)]
    fits = _plausible(table[:, 3], table[:, 1].astype(int), config.channels)
    for number, channel in {(int(n), int(c)) for n, c in table[~fits, :2]}:
        refused[number].add(config.channels[channel].name)
    table = table[fits]
    table = table[np.lexsort((table[:, 3], -table[:, 2], table[:, 1], table[:, 0]))]
    group = (table[:, 0] * count + table[:, 1]).astype(int)
    held, starts = np.unique(group, return_index=True)
    flat = values.reshape(len(patients) * count, width)
    if len(held):
        last = np.append(starts[1:], len(group)) - 1
        flat[held, :3] = np.stack([table[last, 3], table[starts, 3], table[last, 2]], axis=1)
        for number, window in enumerate(WINDOWS):
            first = 3 + number * len(_PER_WINDOW)
            flat[held, first : first + 3] = flat[held, :1]
            inside = table[:, 2] <= window * config.series_hours
            _summarise(flat[:, first : first + len(_PER_WINDOW)], group[inside], table[inside])
        _fill_grid(flat[:, len(SUMMARY) :], group, table, config.series_hours)
    known = np.zeros(len(flat), bool)
    known[held] = True
    return Rows(values, known.reshape(len(patients), count))


def _table(told: Sequence[tuple[int, int, float, float]], specs: Sequence[FieldSpec]) -> NDArray[np.float64]:
    """(patient, channel, hours_before, value) rows, float64 [N, 4]; a value NaN: missing. Raises BadInput."""
    try:
        found = np.array(told)
    except (TypeError, ValueError):  # rows of several shapes
        found = np.array(told, object)
    if found.dtype.kind not in "fiu":  # something is no plain number: look at each
        found = np.array([_plain(row, specs[row[1]]) for row in told])
    table = found.astype(np.float64, copy=False).reshape(len(told), 4)
    if not (is_finite := np.isfinite(table[:, 2])).all():
        spec = specs[int(table[~is_finite][0, 1])]
        raise BadInput(
            f"series {spec.name!r}: hours_before is not finite where hours back from as_of, 0 or more, "
            "are expected"
        )
    return table


def _plain(row: tuple[int, int, float, float], spec: FieldSpec) -> tuple[float, float, float, float]:
    """One such row as floats, NaN for None. Raises BadInput."""
    patient, channel, *said = row
    plain = []
    for name, unit, value in zip(("hours_before", "value"), ("h", spec.unit), said, strict=True):
        try:
            if isinstance(value, str | bytes):
                raise TypeError("text")
            plain.append(math.nan if value is None else float(value))
        except OverflowError:
            plain.append(math.inf)
        except (TypeError, ValueError) as fault:
            raise _no_number(f"series {spec.name!r}: {name}", value, unit) from fault
    return patient, channel, plain[0], plain[1]


def _summarise(out: FloatArray, group: NDArray[np.int64], table: NDArray[np.float64]) -> None:
    """Fill `_PER_WINDOW` of each group, sorted, from (…, hours_before, value) rows."""
    if not len(group):
        return
    held, starts, counts = np.unique(group, return_index=True, return_counts=True)
    value, days = table[:, 3], -table[:, 2] / 24

    def total(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(x, starts), np.float64)

    mean, middle = total(value) / counts, total(days) / counts
    off = value - np.repeat(mean, counts)
    when = days - np.repeat(middle, counts)
    spread = total(when**2)
    slope = np.where(spread > 1e-4, total(when * off) / np.maximum(spread, 1e-4), 0.0)
    lowest, highest = np.minimum.reduceat(value, starts), np.maximum.reduceat(value, starts)
    out[held] = np.stack(
        [mean, lowest, highest, np.sqrt(total(off**2) / counts), slope, np.log1p(counts)], axis=1
    )


def _fill_grid(out: FloatArray, group: NDArray[np.int64], table: NDArray[np.float64], hours: float) -> None:
    """Means in the first GRID columns, 1 where a step has a value in the other GRID."""
    step = GRID - 1 - np.minimum((table[:, 2] / max(hours, 1e-9) * GRID).astype(int), GRID - 1)
    place = group * GRID + step
    counts = np.bincount(place, minlength=len(out) * GRID).reshape(len(out), GRID)
    sums = np.bincount(place, weights=table[:, 3], minlength=len(out) * GRID).reshape(len(out), GRID)
    out[:, :GRID] = sums / np.maximum(counts, 1)
    out[:, GRID:] = counts > 0


def _plausible(
    values: NDArray[np.float64], channels: NDArray[np.int64], specs: Sequence[FieldSpec]
) -> NDArray[np.bool_]:
    """`is_plausible` of many values at once."""
    if not len(values):
        return np.zeros(0, bool)
    low = np.array([-np.inf if s.low is None else s.low for s in specs])[channels]
    high = np.array([np.inf if s.high is None else s.high for s in specs])[channels]
    is_binary = np.array([s.kind == FieldKind.BINARY for s in specs])[channels]
    within = np.where(is_binary, (values == 0) | (values == 1), (values >= low) & (values <= high))
    return np.asarray((np.abs(values) <= MOST) & within, bool)


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
    times = _times(clip, len(rows))
    kept = kept_frames(times, config.cine_frames)
    return rows[kept], times[kept] - times[kept[0]], kept


def _times(clip: PixelInput, frames: int) -> FloatArray:
    """The clip's times_ms, float32 [T]. Raises BadInput."""
    name, wanted = f"cine {clip.key!r}", f"times_ms float32 [{frames}], finite, in ms from the first frame,"
    try:
        with np.errstate(over="ignore"):
            times = np.asarray(clip.times_ms, np.float32)
    except (TypeError, ValueError) as fault:
        raise BadInput(f"{name}: times that are no numbers where {wanted} is expected") from fault
    if times.shape != (frames,):
        found = f"{len(times)} times" if times.ndim == 1 else f"times of shape {list(times.shape)}"
        raise BadInput(f"{name}: {frames} frames embedded but {found} where {wanted} is expected")
    if not (np.abs(times) <= MOST).all():
        raise BadInput(f"{name}: times that are not finite where {wanted} is expected")
    return times


def _volume(inputs: PatientInputs, config: FusionConfig, embedder: Embeddings) -> _Row:
    """The newest volume: a token a slice, or one of all voxels."""
    if not inputs.volumes:
        return np.zeros((0, embedder.volume_width), np.float32), np.zeros(0, bool)
    rows = embedder.volume(inputs.volumes[0])[: config.volume_slices]
    return rows, np.ones(len(rows), bool)


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
