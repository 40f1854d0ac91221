"""A collection of one's own, in tables like those of MIMIC-IV: stays, long-form events, notes, pictures.

    collection.json  {"name": …, "tasks": {"death": "Death in hospital"}, "fields": [spec, …],
                      "channels": [spec, …], "series_hours": 48, "attributes": ["sex", …], "settings": {…},
                      "caveats": [sentence, …]}
    stays.csv        stay_id, subject_id, a column for each task (1, 0, empty: unknown), field and attribute
    events.csv       stay_id, hours_before, channel, value     (optional)
    notes.csv        stay_id, hours_before, text               (optional)
    images.csv       stay_id, file, view                       (optional; files in images/)

A spec is {"name", "label", "unit", "low", "high"} or {"name", "label", "kind": "binary"}; `settings` are
further arguments of FusionConfig. `hours_before` counts back from the moment of judgement: rows after it are
refused, since they would tell the end. `subject_id` is the unit of every split. Images of a stay stand
newest first.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusion.config import FieldKind, FieldSpec, FusionConfig
from fusion.errors import BadInput
from fusion.examples import Example
from fusion.inputs import Frames, Modality, NoteInput, PatientInputs, PixelInput, SeriesPoint
from fusion.research import Collection, Task

Row = Mapping[str, str]
SPEC = {"name", "label", "unit", "kind", "low", "high"}
KNOWN = {"name", "tasks", "fields", "channels", "series_hours", "attributes", "settings", "caveats"}
TABLES = {  # what each optional table adds
    "events.csv": (Modality.SERIES, ("stay_id", "hours_before", "channel", "value")),
    "notes.csv": (Modality.TEXT, ("stay_id", "hours_before", "text")),
    "images.csv": (Modality.IMAGE, ("stay_id", "file", "view")),
}


def read(folder: Path) -> Collection:
    """Folder → one task for each outcome. Raises BadInput, naming file, column and what was expected."""
    about = _about(folder / "collection.json")
    specs, channels = _specs(about, "fields"), _specs(about, "channels")
    tasks, attributes = dict(about["tasks"]), [str(name) for name in about.get("attributes", ())]
    needed = ("stay_id", "subject_id", *tasks, *(spec.name for spec in specs), *attributes)
    stays = list(_rows(folder / "stays.csv", needed))
    of = {name: _by_stay(folder / name, columns) for name, (_, columns) in TABLES.items()}
    _check_stays(stays, of)
    examples = []
    for stay in stays:
        key = stay["stay_id"]
        inputs = PatientInputs(
            key=key,
            fields={spec.name: _number(stay[spec.name], "stays.csv", spec.name) for spec in specs},
            series=tuple(_point(row, channels) for row in of["events.csv"].get(key, ())),
            notes=tuple(_note(row) for row in of["notes.csv"].get(key, ())),
            images=tuple(_picture(folder, row) for row in of["images.csv"].get(key, ())),
        )
        labels = {task: known for task in tasks if (known := _label(stay[task], task)) is not None}
        told = {name: stay[name].strip() or "unknown" for name in attributes}
        examples.append(Example(inputs, labels, stay["subject_id"], told))
    held = [modality for name, (modality, _) in TABLES.items() if of[name]]
    return Collection(
        name="own_tables",
        tasks={name: _task(name, str(label), examples) for name, label in tasks.items()},
        settings={
            "fields": specs,
            "channels": channels,
            "modalities": (*((Modality.TABULAR,) if specs else ()), *held),
            "series_hours": float(about.get("series_hours", 48.0)),
            **about.get("settings", {}),
        },
        caveats=tuple(map(str, about.get("caveats", ()))),
    )


def _task(name: str, label: str, examples: Sequence[Example]) -> Task:
    return Task(name=name, label=label, examples=tuple(e for e in examples if name in e.labels))


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise BadInput(f"{path.name} cannot be read as JSON: {fault}") from fault
    if not isinstance(about, dict) or not isinstance(about.get("tasks"), dict) or not about["tasks"]:
        raise BadInput(f'{path.name} must name its tasks: "tasks": {{"death": "Death in hospital"}}')
    settings = {one.name for one in fields(FusionConfig)} - {"outcomes", "fields", "channels", "modalities"}
    if unknown := sorted((set(about) - KNOWN) | (set(about.get("settings", {})) - settings)):
        raise BadInput(
            f"{path.name} says {', '.join(unknown)}; known are {', '.join(sorted(KNOWN))}, and in settings "
            "the arguments of FusionConfig"
        )
    return about


def _specs(about: Mapping[str, Any], of: str) -> tuple[FieldSpec, ...]:
    found = []
    for said in about.get(of, ()):
        kinds = [kind.value for kind in FieldKind]
        if (
            not isinstance(said, dict)
            or "name" not in said
            or set(said) - SPEC
            or said.get("kind", "numeric") not in kinds
        ):
            raise BadInput(
                f"collection.json: each of the {of} has a name and at most {', '.join(sorted(SPEC))} "
                f"(kind: {' or '.join(kinds)}), not {json.dumps(said)[:120]}"
            )
        kind = FieldKind(said.get("kind", "numeric"))
        found.append(FieldSpec(**{"label": said["name"], **said, "kind": kind}))
    return tuple(found)


def _rows(path: Path, needed: Sequence[str]) -> Iterator[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
                raise BadInput(f"{path.name} lacks the columns {', '.join(missing)}")
            yield from reader
    except OSError as fault:
        raise BadInput(f"{path.name} cannot be read: {fault.strerror}") from fault
    except UnicodeDecodeError as fault:
        raise BadInput(f"{path.name} is not UTF-8") from fault


def _check_stays(stays: Sequence[Row], of: Mapping[str, Mapping[str, object]]) -> None:
    known = {stay["stay_id"] for stay in stays}
    if len(known) < len(stays):
        raise BadInput("stays.csv: a stay_id stands in it twice")
    for name, rows in of.items():
        if lost := sorted(rows.keys() - known):
            raise BadInput(f"{name}: stay_id {lost[0]!r} is not in stays.csv")


def _by_stay(path: Path, needed: Sequence[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    if path.exists():
        for row in _rows(path, needed):
            found[row["stay_id"]].append(row)
    return found


def _point(row: Row, channels: Sequence[FieldSpec]) -> SeriesPoint:
    if row["channel"] not in {spec.name for spec in channels}:
        raise BadInput(f"events.csv: channel {row['channel']!r} is not among those of collection.json")
    value = _number(row["value"], "events.csv", "value")
    if value is None:
        raise BadInput("events.csv: a row without a value; leave such rows out")
    return SeriesPoint(row["channel"], _hours(row, "events.csv"), value)


def _note(row: Row) -> NoteInput:
    key = hashlib.sha256(row["text"].encode()).hexdigest()
    return NoteInput(key, row["text"], {}, _hours(row, "notes.csv"))


def _picture(folder: Path, row: Row) -> PixelInput:
    path = (folder / "images" / row["file"]).resolve()
    if not path.is_relative_to((folder / "images").resolve()) or not path.is_file():
        raise BadInput(f"images.csv names {row['file']!r}, which is not in images/")
    key = hashlib.sha256(path.read_bytes()).hexdigest()
    return PixelInput(key, partial(_read, path), np.zeros(1, np.float32), view=row["view"])


def _read(path: Path) -> Frames:
    """Grey, or colour as [1, 3, H, W]; 8 or 16 bits, in [0, 1]."""
    with Image.open(path) as picture:
        if picture.mode in ("RGB", "RGBA", "P"):
            values = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1) / np.float32(255)
        elif picture.mode.startswith("I"):
            values = np.asarray(picture, np.float32) / np.float32(65535)
        else:
            values = np.asarray(picture.convert("L"), np.float32) / np.float32(255)
    return Frames(values[None], np.zeros(1, np.float32))


def _hours(row: Row, table: str) -> float:
    hours = _number(row["hours_before"], table, "hours_before")
    if hours is None or hours < 0:
        raise BadInput(
            f"{table}: hours_before must be 0 or more: what is later than the judgement tells the end"
        )
    return hours


def _label(text: str, task: str) -> int | None:
    if text.strip() not in ("", "0", "1"):
        raise BadInput(f"stays.csv: {task} must be 0, 1 or empty")
    return int(text) if text.strip() else None


def _number(text: str, table: str, column: str) -> float | None:
    try:
        value = float(text) if text.strip() else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise BadInput(f"{table}: something that is no number stands in {column}")
    return value
