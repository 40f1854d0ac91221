"""Glioma MR slices, molecular clusters and clinical facts → death, grade (Buda et al. 2019; TCGA-LGG).

Read from patients.csv (a row a patient), slices.csv (a row a slice) and slices/. One row a patient, the split
unit. Tasks: `death` (death01) and `grade` (III against II); the histological type is told from the same
tissue as the grade, so it is a field of `death` only.

A slice is a picture of three channels (pre-contrast, FLAIR, post-contrast); all of a patient's slices, from
lowest to highest, are the views of one study, and one volume. The set does not tell its spacing: pixels of
0.94 mm (a field of 240 mm) and a covered height of 130 mm are assumed for everybody. Cluster numbers are
names, not amounts: one yes or no each.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fusion.config import FieldKind, FieldSpec
from fusion.errors import BadInput
from fusion.examples import Example
from fusion.inputs import Frames, Modality, PatientInputs, PixelInput
from fusion.research import Collection, Task
from fusion.research.pictures import listed_picture

Row = Mapping[str, str]
SLICES = 20  # at most, of one patient
PIXEL_MM, HEIGHT_MM = 0.94, 130.0  # assumed: see above
CLUSTERS = {  # column → how many clusters its analysis found
    "RNASeqCluster": 4, "MethylationCluster": 5, "miRNACluster": 4, "CNCluster": 3, "RPPACluster": 4,
    "OncosignCluster": 3, "COCCluster": 3,
}  # fmt: skip
GENOMICS = tuple(
    FieldSpec(f"{column}_{number}", f"{column} {number}", kind=FieldKind.BINARY)
    for column, count in CLUSTERS.items()
    for number in range(1, count + 1)
)
TYPES = {"1": "astrocytoma", "2": "oligoastrocytoma", "3": "oligodendroglioma"}
FIELDS = (
    FieldSpec("age", "Age at diagnosis", "a", low=0, high=110),
    FieldSpec("gender_2", "Sex, coded 2 upstream without a key", kind=FieldKind.BINARY),
    FieldSpec("right_or_left_3", "Laterality, coded 3 upstream", kind=FieldKind.BINARY),
    FieldSpec("location_2", "Tumour location, coded 2 upstream", kind=FieldKind.BINARY),
    FieldSpec("location_6", "Tumour location, coded 6 upstream", kind=FieldKind.BINARY),
    *(FieldSpec(f"type_{number}", f"Histological type {number}", kind=FieldKind.BINARY) for number in TYPES),
)
TASKS = {
    "death": ("Death", "death01", "1", "0"),
    "grade": ("Grade III", "neoplasm_histologic_grade", "2", "1"),
}
NEEDED = {
    "patients.csv": (
        "Patient", "age_at_initial_pathologic", "death01", "neoplasm_histologic_grade", "site", *CLUSTERS,
    ),
    "slices.csv": ("patient", "slice", "file"),
}  # fmt: skip


def read(folder: Path) -> Collection:
    """The folder → two tasks. Raises BadInput for a missing table, column or picture."""
    slices: dict[str, list[Row]] = {}
    for row in _table(folder, "slices.csv"):
        slices.setdefault(row["patient"], []).append(row)
    examples: dict[str, list[Example]] = {name: [] for name in TASKS}
    for row in _table(folder, "patients.csv"):
        held = sorted(slices.get(row["Patient"], ()), key=lambda one: int(one["slice"]))
        images = tuple(
            listed_picture(folder / "slices", one["file"], table="slices.csv", is_colour=True)
            for one in held[:SLICES]
        )
        genomics = {
            f"{column}_{number}": None if not (said := _code(row[column])) else float(said == str(number))
            for column, count in CLUSTERS.items()
            for number in range(1, count + 1)
        }
        for name, (_, column, yes, no) in TASKS.items():
            label = {yes: 1, no: 0}.get(_code(row[column]))
            if label is not None:
                inputs = PatientInputs(
                    key=row["Patient"],
                    fields=_fields(row, with_type=name == "death"),
                    genomics=genomics,
                    images=images,
                    volumes=_volume(images),
                )
                examples[name].append(Example(inputs, {name: label}, row["Patient"], _attributes(row)))
    return Collection(
        name="brain_lgg",
        tasks={
            name: Task(name=name, label=TASKS[name][0], examples=tuple(found))
            for name, found in examples.items()
        },
        settings={
            "fields": FIELDS,
            "genomics": GENOMICS,
            "modalities": (Modality.TABULAR, Modality.GENOMICS, Modality.IMAGE),
            "image_backbone": "efficientnet_lite0",
            "max_images": SLICES,
        },
        caveats=(
            "A few dozen patients and fewer deaths: no comparison here can be settled.",
            "Death is not censored upstream: who died later counts as alive.",
            "Slices are JPEGs scaled one by one: intensities of different scanners do not compare.",
        ),
    )


def _table(folder: Path, name: str) -> list[Row]:
    try:
        with (folder / name).open(newline="", encoding="utf-8") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except OSError as fault:
        raise BadInput(f"{name} cannot be read: {fault.strerror}") from fault
    if missing := [column for column in NEEDED[name] if not rows or column not in rows[0]]:
        raise BadInput(f"{name} lacks the columns {', '.join(missing)}")
    return rows


def _fields(row: Row, *, with_type: bool) -> dict[str, float | None]:
    def is_coded(column: str, number: str) -> float | None:
        said = _code(row.get(column, ""))
        return float(said == number) if said else None

    fields: dict[str, float | None] = {
        "age": float(row["age_at_initial_pathologic"]) if row["age_at_initial_pathologic"] else None,
        "gender_2": is_coded("gender", "2"),
        "right_or_left_3": is_coded("laterality", "3"),
        "location_2": is_coded("tumor_location", "2"),
        "location_6": is_coded("tumor_location", "6"),
    }
    if with_type:
        fields |= {f"type_{number}": is_coded("histological_type", number) for number in TYPES}
    return fields


def _code(text: str) -> str:
    """ "2.0" and "2" → "2"; "" where nothing is known."""
    return text.strip().removesuffix(".0")


def _volume(images: tuple[PixelInput, ...]) -> tuple[PixelInput, ...]:
    """The slices as one volume [D, 3, H, W]; empty with fewer than three."""
    if len(images) < 3:
        return ()
    slice_mm = HEIGHT_MM / (len(images) - 1)

    def read() -> Frames:
        values = np.concatenate([image.read().values for image in images])
        times = np.zeros(len(values), np.float32)
        return Frames(values, times, (PIXEL_MM, PIXEL_MM), slice_mm)

    key = hashlib.sha256("".join(image.key for image in images).encode()).hexdigest()
    return (PixelInput(key, read, np.zeros(len(images), np.float32), slice_mm=slice_mm),)


def _attributes(row: Row) -> dict[str, str]:
    age = row["age_at_initial_pathologic"]
    return {
        "site": row["site"].strip() or "unknown",
        "gender": f"coded {code}" if (code := _code(row.get("gender", ""))) else "unknown",
        "age": "unknown" if not age else "under 45" if float(age) < 45 else "45 and over",
    }
