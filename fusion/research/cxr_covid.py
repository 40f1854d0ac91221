"""Chest radiographs with clinical facts and outcomes (COVID-19 image data collection, arXiv 2006.11988).

Read from images.csv (a row a picture), patients.csv (a row a patient, with the outcomes) and images/.

One row a *picture*: `icu`, `icu_before` (only pictures taken before intensive care), `intubation`, `death`,
`covid` (COVID-19 against other pneumonia). One row a *patient*, their first picture: `severe_outcome`,
`icu_patient`. Outcomes are "at any time in the illness"; all pictures of a patient are one group.

The record is as of the picture: age, sex, day of illness, and the latest of each measurement known at or
before it. View, hospital and licence are attributes, never inputs. Notes stand on each row as `leak_free`
leaves them, for an arm that asks for them; not on `covid`, whose diagnosis they name.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusion.config import FieldKind, FieldSpec
from fusion.errors import BadInput
from fusion.inputs import Modality, NoteInput, PatientInputs
from fusion.research import Collection, Task
from fusion.research.leak_free import leak_free
from fusion.research.pictures import listed_picture
from fusion.train import Example

Row = Mapping[str, str]

MEASURED = (
    FieldSpec("temperature", "Temperature", "Cel", low=30, high=45),
    FieldSpec("pO2_saturation", "Oxygen saturation", "%", low=20, high=100),
    FieldSpec("leukocyte_count", "Leukocytes", "10*3/uL", low=0, high=100),
    FieldSpec("neutrophil_count", "Neutrophils", "10*3/uL", low=0, high=100),
    FieldSpec("lymphocyte_count", "Lymphocytes", "10*3/uL", low=0, high=100),
)
FIELDS = (
    FieldSpec("age", "Age", "a", low=0, high=120),
    FieldSpec("female", "Female", kind=FieldKind.BINARY),
    FieldSpec("offset_days", "Days since onset or admission", "d", low=-30, high=365),
    *MEASURED,
)
TASKS = {  # name → (label, column of patients.csv, its yes, its no, one row a patient)
    "icu": ("Intensive care, ever", "went_icu", "Y", "N", False),
    "icu_before": ("Intensive care, picture taken before it", "went_icu", "Y", "N", False),
    "intubation": ("Intubation, ever", "intubated", "Y", "N", False),
    "death": ("Death", "survival", "N", "Y", False),
    "covid": ("COVID-19 against other pneumonia", "finding", "", "", False),
    "severe_outcome": ("Intensive care, intubation or death", "severe_outcome", "1.0", "0.0", True),
    "icu_patient": ("Intensive care, one row a patient", "went_icu", "Y", "N", True),
}
NEEDED = {
    "images.csv": ("image_file", "patient_id", "view", "offset_days", "in_icu_at_image", "finding"),
    "patients.csv": (
        "patient_id",
        "age",
        "sex",
        "went_icu",
        "intubated",
        "survival",
        "severe_outcome",
        "url",
    ),
}


def read(folder: Path) -> Collection:
    """The folder → its seven tasks. Raises BadInput for a missing table, column or picture."""
    patients = {row["patient_id"]: row for row in _table(folder, "patients.csv")}
    pictures: dict[str, list[Row]] = {}
    for row in _table(folder, "images.csv"):
        if row["patient_id"] not in patients:
            raise BadInput(f"images.csv: patient {row['patient_id']!r} is not in patients.csv")
        pictures.setdefault(row["patient_id"], []).append(row)
    for rows in pictures.values():
        rows.sort(key=lambda row: (_number(row["offset_days"]) or 0.0, row["image_file"]))
    groups = _groups(list(patients.values()))
    examples: dict[str, list[Example]] = {name: [] for name in TASKS}
    for patient, rows in pictures.items():
        for place, picture in enumerate(rows):
            facts = patients[patient]
            inputs = _inputs(folder, facts, picture, rows)
            for name, (_, _, _, _, first_only) in TASKS.items():
                label = _label(name, facts, picture)
                if label is None or (first_only and place):
                    continue
                shown = inputs if name != "covid" else _without_notes(inputs)
                examples[name].append(
                    Example(shown, {name: label}, groups[patient], _attributes(facts, picture))
                )
    tasks = {name: Task(name=name, label=TASKS[name][0], examples=tuple(examples[name])) for name in TASKS}
    return Collection(
        name="cxr_covid",
        tasks=tasks,
        settings={
            "fields": FIELDS,
            "modalities": (Modality.TABULAR, Modality.IMAGE),
            "image_backbone": "efficientnet_lite0",
            "max_images": 1,
            "max_notes": 1,
        },
        caveats=(
            "Published cases: severe ones are over-represented, and hospitals differ in their share of them.",
            "Tubes, lines and burned-in words show in some pictures and may tell the outcome.",
            "Notes are judged as an arm of their own; a rule by words may leave hints.",
        ),
        extra={"arms": {"fused, with leak-free notes": (Modality.TABULAR, Modality.IMAGE, Modality.TEXT)}},
    )


def _table(folder: Path, name: str) -> list[Row]:
    try:
        with (folder / name).open(newline="", encoding="utf-8") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except OSError as fault:
        raise BadInput(f"{name} cannot be read: {fault.strerror}") from fault
    missing = [column for column in NEEDED[name] if not rows or column not in rows[0]]
    if missing:
        raise BadInput(f"{name} lacks the columns {', '.join(missing)}")
    return rows


def _groups(patients: Sequence[Row]) -> dict[str, str]:
    """Patient → split unit. Two numbers of one published case (same page, age and sex) are one patient."""
    first: dict[tuple[str, str, str], str] = {}
    found = {}
    for row in patients:
        told = (row["url"], row["age"], row["sex"])
        found[row["patient_id"]] = (
            first.setdefault(told, row["patient_id"]) if row["url"] and row["age"] else row["patient_id"]
        )
    return found


def _label(name: str, facts: Row, picture: Row) -> int | None:
    if name == "covid":
        finding = picture["finding"].strip()
        return None if finding in ("", "No Finding") else int("COVID-19" in finding)
    if name == "icu_before" and picture["in_icu_at_image"] != "N":
        return None
    _, column, yes, no, _ = TASKS[name]
    said = facts[column]
    return 1 if said == yes else 0 if said == no else None


def _inputs(folder: Path, facts: Row, picture: Row, rows: Sequence[Row]) -> PatientInputs:
    at = _number(picture["offset_days"])
    fields: dict[str, float | None] = {
        "age": _number(facts["age"]),
        "female": {"F": 1.0, "M": 0.0}.get(facts["sex"]),
        "offset_days": at,
    }
    for spec in MEASURED:
        known = [row for row in rows if row is picture or (at is not None and _is_before(row, at))]
        values = [v for row in known if (v := _number(row.get(spec.name, ""))) is not None]
        fields[spec.name] = values[-1] if values else None
    note = leak_free(picture.get("clinical_notes", ""))
    return PatientInputs(
        key=picture["image_file"],
        fields=fields,
        images=(listed_picture(folder / "images", picture["image_file"], table="images.csv"),),
        notes=(NoteInput(hashlib.sha256(note.encode()).hexdigest(), note),) if note else (),
    )


def _without_notes(inputs: PatientInputs) -> PatientInputs:
    return PatientInputs(key=inputs.key, fields=inputs.fields, images=inputs.images)


def _is_before(row: Row, at: float) -> bool:
    when = _number(row["offset_days"])
    return when is not None and when <= at


def _attributes(facts: Row, picture: Row) -> dict[str, str]:
    place = facts.get("location", "").strip().rstrip(".")
    age = _number(facts["age"])
    return {
        "view": picture["view"].strip() or "unknown",
        "location": place.split(",")[-1].strip() or "unknown",
        "sex": {"F": "female", "M": "male"}.get(facts["sex"], "unknown"),
        "age": "unknown"
        if age is None
        else "under 50"
        if age < 50
        else "50 to 69"
        if age < 70
        else "70 and over",
    }


def _number(text: str) -> float | None:
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise BadInput(f"{text!r} stands where a number is expected") from None
