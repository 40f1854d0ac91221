"""The public chest X-ray collection of Cohen et al. (2020), as FHIR R4 resources and DICOM instances.

The collection is a table of pictures with facts, some of them known only later. What becomes what, and
when:

- Day 0 is 2020-03-01, 12:00 UTC, for everybody: a picture of offset d was taken d days later (the k-th
  picture of the same day k hours later). A patient's first picture without an offset was taken on day 0;
  any further one without an offset stays undated, and so is never used in a prediction.
- Temperature, saturation and blood counts are Observations at the time of their picture. Values that
  cannot be what their column says (a saturation above 100 %) are left out and counted.
- Notes are the leak-reduced ones (`clinical_notes_masked`). They are case reports, and even masked they tell
  of later treatment, so they are dated a day after the last thing known: there to read, never in a
  prediction about a picture. The unmasked ones are never read.
- Oxygen, intubation, ARDS and severity never become facts: they are, or tell, the outcome.
- The hospital stay is an inpatient Encounter from an hour before the first dated picture. It has finished
  a day after the last thing known where intensive care is known to have happened or not; else its status
  is `unknown` and it has no end.
- Intensive care is an Encounter within that stay. In order of time, each run of pictures flagged "in
  intensive care" is one stay there. It begins midway between the last picture before and the first in it;
  half a day before the first, when none is before it (so that picture is not usable for a prediction);
  half a day after the last picture when all are flagged as before it. It ends midway to the next picture
  flagged as not in it. Somebody who went to intensive care, with no picture flagged at all, has an
  Encounter without a start: when is unknown, so nothing can be learned from it.
- Death is known (Patient.deceasedBoolean), its date is not.

Everything is derived from the table alone, so a second conversion gives the same resources, UIDs and
bytes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

from cds.errors import Invalid

DAY_ZERO = datetime(2020, 3, 1, 12, tzinfo=UTC)
HALF_A_DAY = timedelta(hours=12)
DAY = timedelta(days=1)

# column -> LOINC, what it is called, UCUM unit, plausible range, FHIR category
MEASUREMENTS: dict[str, tuple[str, str, str, tuple[float, float], str]] = {
    "temperature": ("8310-5", "Body temperature", "Cel", (25.0, 45.0), "vital-signs"),
    "pO2_saturation": ("59408-5", "Oxygen saturation by pulse oximetry", "%", (0.0, 100.0), "vital-signs"),
    "leukocyte_count": ("6690-2", "Leukocytes", "10*3/uL", (0.0, 500.0), "laboratory"),
    "neutrophil_count": ("751-8", "Neutrophils", "10*3/uL", (0.0, 300.0), "laboratory"),
    "lymphocyte_count": ("731-0", "Lymphocytes", "10*3/uL", (0.0, 300.0), "laboratory"),
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One radiograph. `at` is None when nobody said when; `in_icu` is True, False or None (not said)."""

    file: Path
    number: int
    view: str  # "PA" | "AP"
    at: datetime | None
    in_icu: bool | None
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Stay:
    """A time in intensive care; `start` None = it happened, but when is not known."""

    start: datetime | None
    end: datetime | None = None


@dataclass(slots=True)
class Case:
    """One patient of the collection."""

    patient_id: str
    age: float | None
    sex: str  # FHIR administrative gender
    finding: str
    note: str  # leak-reduced
    went_icu: bool | None
    survived: bool | None
    pictures: list[Picture]
    implausible: int = 0
    intensive: list[Stay] = field(default_factory=list)

    @property
    def first_at(self) -> datetime:
        """When the first dated picture was taken."""
        return min(picture.at for picture in self.pictures if picture.at is not None)

    @property
    def last_at(self) -> datetime:
        """The last moment anything is known of."""
        known = [picture.at for picture in self.pictures if picture.at is not None]
        known += [
            moment for stay in self.intensive for moment in (stay.start, stay.end) if moment is not None
        ]
        return max(known)

    def usable(self) -> list[Picture]:
        """Dated pictures taken before intensive care, of patients of whom it is known whether they went."""
        if self.went_icu is None or any(stay.start is None for stay in self.intensive):
            return []
        starts = [stay.start for stay in self.intensive if stay.start is not None]
        first = min(starts, default=None)
        return [
            picture
            for picture in self.pictures
            if picture.at is not None and (first is None or picture.at < first)
        ]


def read_cases(folder: Path) -> Iterator[Case]:
    """Every patient of the collection with their pictures. Invalid when a table or column is missing."""
    try:
        patients = _rows(folder / "patients.csv")
        images = _rows(folder / "images.csv")
        by_patient: dict[str, list[dict[str, str]]] = {}
        for image in images:
            by_patient.setdefault(image["patient_id"], []).append(image)
        for row in patients:
            yield _case(row, by_patient.get(row["patient_id"], []), folder / "images")
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise Invalid(f"{folder} is not the chest X-ray collection: {error!r}") from error


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _case(row: dict[str, str], images: list[dict[str, str]], folder: Path) -> Case:
    case = Case(
        patient_id=row["patient_id"],
        age=_number(row["age"]),
        sex={"M": "male", "F": "female"}.get(row["sex"], "unknown"),
        finding=row["finding"],
        note=row["clinical_notes_masked"].strip(),
        went_icu=_yes_or_no(row["went_icu"]),
        survived=_yes_or_no(row["survival"]),
        pictures=[],
    )
    taken: dict[float, int] = {}
    for number, image in enumerate(images):
        offset = _number(image["offset_days"])
        if offset is None and number == 0:
            offset = 0.0
        values = {name: value for name in MEASUREMENTS if (value := _number(image[name])) is not None}
        plausible = {name: value for name, value in values.items() if _is_plausible(name, value)}
        case.implausible += len(values) - len(plausible)
        at = None
        if offset is not None:
            at = DAY_ZERO + timedelta(days=offset, hours=taken.get(offset, 0))
            taken[offset] = taken.get(offset, 0) + 1
        in_icu = _yes_or_no(image["in_icu_at_image"])
        view = "PA" if image["view"] == "PA" else "AP"
        case.pictures.append(Picture(folder / image["image_file"], number, view, at, in_icu, plausible))
    case.intensive = intensive_stays(case.went_icu, case.pictures)
    return case


def intensive_stays(went_icu: bool | None, pictures: list[Picture]) -> list[Stay]:
    """When a patient was in intensive care, by the rule above; [] when they were not, or nobody knows."""
    if not went_icu:
        return []
    flagged = [
        (picture.at, picture.in_icu) for picture in pictures if picture.at and picture.in_icu is not None
    ]
    flagged.sort()
    if not flagged:
        return [Stay(None)]
    runs = [(is_in, [at for at, _ in run]) for is_in, run in groupby(flagged, key=lambda one: one[1])]
    if runs == [(False, runs[0][1])]:
        return [Stay(runs[0][1][-1] + HALF_A_DAY)]
    stays = []
    for index, (is_in, moments) in enumerate(runs):
        if not is_in:
            continue
        before = runs[index - 1][1][-1] if index else None
        after = runs[index + 1][1][0] if index + 1 < len(runs) else None
        start = _midway(before, moments[0]) if before is not None else moments[0] - HALF_A_DAY
        stays.append(Stay(start, _midway(moments[-1], after) if after is not None else None))
    return stays


def _midway(one: datetime, other: datetime) -> datetime:
    return one + (other - one) / 2


def _is_plausible(name: str, value: float) -> bool:
    low, high = MEASUREMENTS[name][3]
    return low <= value <= high


def _number(text: str) -> float | None:
    return float(text) if text.strip() else None


def _yes_or_no(text: str) -> bool | None:
    return {"Y": True, "N": False}.get(text.strip())
