"""Files of one patient → `PatientInputs`: a record, pictures, a cine (`fusion.edge` says in which form)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fusion.errors import BadInput
from fusion.inputs import Frames, NoteInput, PatientInputs, PixelInput, SeriesPoint

PICTURES, CLIPS, RECORDS = {".png", ".jpg", ".jpeg"}, {".npz"}, {".json"}


def read_record(path: Path) -> PatientInputs:
    """A record file → PatientInputs. Raises BadInput, saying where."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError) as fault:
        raise BadInput(f"{path.name} is not a readable JSON file") from fault
    known = {"fields", "genomics", "series", "notes", "attributes"}
    if not isinstance(said, dict) or (other := set(said) - known):
        raise BadInput(f"{path.name} must be an object of {', '.join(sorted(known))}; not {said and other}")
    try:
        return PatientInputs(
            key=path.stem,
            fields=_numbers(said.get("fields", {})),
            genomics=_numbers(said.get("genomics", {})),
            series=tuple(
                SeriesPoint(str(p["channel"]), float(p["hours_before"]), float(p["value"]))
                for p in said.get("series", ())
            ),
            notes=tuple(
                NoteInput(f"note {i}", str(n["text"]), hours_before=float(n.get("hours_before", 0)))
                for i, n in enumerate(said.get("notes", ()))
            ),
            attributes={str(name): str(value) for name, value in said.get("attributes", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise BadInput(
            f"{path.name}: {type(fault).__name__} {fault}; see python -m fusion.edge --help"
        ) from fault


def _numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    return {str(name): None if value is None else float(value) for name, value in values.items()}


def read_inputs(files: Sequence[Path]) -> PatientInputs:
    """At most one record, any number of pictures (newest first), at most one cine. Raises BadInput."""
    kinds = {file: file.suffix.lower() for file in files}
    if wrong := [file.name for file, kind in kinds.items() if kind not in PICTURES | CLIPS | RECORDS]:
        raise BadInput(f"{', '.join(wrong)}: expected .json, .png, .jpg or .npz")
    records = [file for file, kind in kinds.items() if kind in RECORDS]
    if len(records) > 1:
        raise BadInput("more than one record; a call is about one patient")
    inputs = read_record(records[0]) if records else PatientInputs(key="patient")
    pictures = [_pixels(file, _picture) for file, kind in kinds.items() if kind in PICTURES]
    clips = [_pixels(file, _clip) for file, kind in kinds.items() if kind in CLIPS]
    return replace(
        inputs,
        images=(*pictures, *(clip for clip in clips if len(clip.times_ms) == 1)),
        cines=tuple(clip for clip in clips if len(clip.times_ms) > 1),
    )


def _pixels(file: Path, read: Callable[[Path], Frames]) -> PixelInput:
    frames = read(file)
    return PixelInput(file.name, partial(_same, frames), frames.times_ms)


def _same(frames: Frames) -> Frames:
    return frames


def _picture(file: Path) -> Frames:
    """Grey pictures as [1, H, W], colour ones as [1, 3, H, W]."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            is_grey = opened.mode in {"1", "L", "LA", "I", "I;16", "F"}
            deep = opened.mode in {"I", "I;16"}
            values = np.asarray(opened if deep else opened.convert("L" if is_grey else "RGB"), np.float32)
    except (OSError, UnidentifiedImageError) as fault:
        raise BadInput(f"{file.name} is not a readable picture") from fault
    values = (values / (65535 if deep else 255)).astype(np.float32)
    return Frames((values if is_grey else values.transpose(2, 0, 1))[None], np.zeros(1, np.float32))


def _clip(file: Path) -> Frames:
    try:
        with np.load(file, allow_pickle=False) as kept:
            return Frames(np.asarray(kept["values"], np.float32), np.asarray(kept["times_ms"], np.float32))
    except (OSError, ValueError, KeyError) as fault:
        raise BadInput(f"{file.name} must hold `values` [T, H, W] in [0, 1] and `times_ms` [T]") from fault
