"""Dermatoscopy with age, sex and site → malignant or not (HAM10000, doi 10.7910/DVN/DBW86T).

Read from lesions.csv (a row a picture) and images/. One row a *lesion*, the split unit: its first picture by
number. Tasks: `malignant` (melanoma, basal cell carcinoma, actinic keratosis against all else) and
`malignant_histology`, among lesions proved by histology only. The seven diagnoses stand in `extra["dx"]`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from fusion.config import FieldKind, FieldSpec
from fusion.errors import BadInput
from fusion.examples import Example
from fusion.inputs import Modality, PatientInputs
from fusion.research import Collection, Task
from fusion.research.pictures import listed_picture

Row = Mapping[str, str]
DIAGNOSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MALIGNANT = frozenset({"akiec", "bcc", "mel"})
SITES = (
    "abdomen", "acral", "back", "chest", "ear", "face", "foot", "genital", "hand", "lower extremity", "neck",
    "scalp", "trunk", "upper extremity",
)  # fmt: skip
FIELDS = (
    FieldSpec("age", "Age", "a", low=0, high=110),
    FieldSpec("female", "Female", kind=FieldKind.BINARY),
    *(FieldSpec(f"site_{site.replace(' ', '_')}", f"Site: {site}", kind=FieldKind.BINARY) for site in SITES),
)
NEEDED = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "image_file")


def read(folder: Path) -> Collection:
    """The folder → two tasks. Raises BadInput for a missing column, picture or an unknown diagnosis."""
    first: dict[str, Row] = {}
    for row in _rows(folder / "lesions.csv"):
        kept = first.setdefault(row["lesion_id"], row)
        if row["image_id"] < kept["image_id"]:
            first[row["lesion_id"]] = row
    examples: dict[str, list[Example]] = {"malignant": [], "malignant_histology": []}
    for lesion, row in first.items():
        inputs = PatientInputs(
            key=lesion,
            fields=_fields(row),
            images=(
                listed_picture(folder / "images", row["image_file"], table="lesions.csv", is_colour=True),
            ),
        )
        label = int(row["dx"] in MALIGNANT)
        for name, wanted in (("malignant", True), ("malignant_histology", row["dx_type"] == "histo")):
            if wanted:
                examples[name].append(Example(inputs, {name: label}, lesion, _attributes(row)))
    labels = {"malignant": "Malignant", "malignant_histology": "Malignant, among lesions with histology"}
    return Collection(
        name="skin_ham10000",
        tasks={
            name: Task(name=name, label=labels[name], examples=tuple(found))
            for name, found in examples.items()
        },
        settings={
            "fields": FIELDS,
            "modalities": (Modality.TABULAR, Modality.IMAGE),
            "image_backbone": "efficientnet_lite0",
            "max_images": 1,
        },
        caveats=(
            "All malignant lesions were proved by histology, many naevi were not: see both tasks.",
            "No patient numbers upstream: two lesions of one patient may be on both sides of a split.",
        ),
        extra={"dx": {lesion: row["dx"] for lesion, row in first.items()}},
    )


def _rows(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as fault:
        raise BadInput(f"{path.name} cannot be read: {fault.strerror}") from fault
    if missing := [column for column in NEEDED if not rows or column not in rows[0]]:
        raise BadInput(f"{path.name} lacks the columns {', '.join(missing)}")
    if unknown := {row["dx"] for row in rows} - set(DIAGNOSES):
        raise BadInput(f"{path.name}: dx {', '.join(sorted(unknown))} is none of {', '.join(DIAGNOSES)}")
    return list(rows)


def _fields(row: Row) -> dict[str, float | None]:
    site = row["localization"].strip()
    fields: dict[str, float | None] = {
        "age": _number(row["age"]),
        "female": {"female": 1.0, "male": 0.0}.get(row["sex"]),
    }
    for name in SITES:
        fields[f"site_{name.replace(' ', '_')}"] = float(site == name) if site in SITES else None
    return fields


def _attributes(row: Row) -> dict[str, str]:
    age = _number(row["age"])
    return {
        "sex": row["sex"] or "unknown",
        "age": "unknown"
        if age is None
        else "under 50"
        if age < 50
        else "50 to 69"
        if age < 70
        else "70 and over",
        "site": row["localization"].strip() or "unknown",
        "proof": row["dx_type"],
    }


def _number(text: str) -> float | None:
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise BadInput(f"{text!r} stands where a number is expected") from None
