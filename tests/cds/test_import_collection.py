"""The public chest X-ray collection: when intensive care began, and that nothing tells it beforehand."""

from __future__ import annotations

import csv
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from PIL import Image

from cds.collections_in import cxr_covid, fhir_out
from cds.collections_in.cxr_covid import DAY_ZERO, HALF_A_DAY, Picture, Stay, intensive_stays, read_cases
from cds.errors import Invalid
from cds.patients.models import Encounter, Note, Observation, Patient
from cds.studies.models import Series, Study
from tests.shared import shared

DAY = timedelta(days=1)
PATIENT = dict.fromkeys(
    (
        *("patient_id", "age", "sex", "went_icu", "survival", "finding", "intubated"),
        *("needed_supplemental_O2", "clinical_notes", "clinical_notes_masked"),
    ),
    "",
)
IMAGE = dict.fromkeys(
    (
        *("image_file", "patient_id", "view", "offset_days", "in_icu_at_image"),
        *("temperature", "pO2_saturation", "leukocyte_count", "neutrophil_count", "lymphocyte_count"),
    ),
    "",
)


def _day(number: float) -> datetime:
    return DAY_ZERO + number * DAY


def _pictures(*flags: tuple[float, str]) -> list[Picture]:
    known = {"Y": True, "N": False, "": None}
    return [
        Picture(Path(f"{n}.jpg"), n, "PA", _day(day), known[flag], {}) for n, (day, flag) in enumerate(flags)
    ]


@pytest.mark.parametrize(
    ("went", "flags", "stays"),
    [
        (False, [(0, "N")], []),
        (None, [(0, "")], []),
        (True, [(0, ""), (3, "")], [Stay(None)]),
        (True, [(0, "N"), (4, "N")], [Stay(_day(4) + HALF_A_DAY)]),
        (True, [(2, "Y"), (4, "Y")], [Stay(_day(2) - HALF_A_DAY)]),
        (True, [(0, "N"), (2, "N"), (4, "Y")], [Stay(_day(3))]),
        (True, [(4, "Y"), (0, "N")], [Stay(_day(2))]),
        (True, [(0, "N"), (2, "Y"), (6, "N")], [Stay(_day(1), _day(4))]),
        (True, [(0, "Y"), (2, "N"), (4, "Y")], [Stay(_day(0) - HALF_A_DAY, _day(1)), Stay(_day(3))]),
        (True, [(0, ""), (2, "Y")], [Stay(_day(2) - HALF_A_DAY)]),
    ],
    ids=[
        "never", "nobody knows", "but when?", "after the last picture", "before the first", "in between",
        "out of order", "and out again", "twice", "unflagged says nothing",
    ],
)  # fmt: skip
def test_when_intensive_care_began(
    went: bool | None, flags: list[tuple[float, str]], stays: list[Stay]
) -> None:
    assert intensive_stays(went, _pictures(*flags)) == stays


def _collection(folder: Path, patients: list[dict[str, str]], images: list[dict[str, str]]) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, rows, columns in (("patients", patients, PATIENT), ("images", images, IMAGE)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows([{**columns, **row} for row in rows])
    for number, row in enumerate(images):
        Image.new("L", (20, 30), 10 * number).save(folder / "images" / row["image_file"])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One who went to intensive care between two pictures, one who never did, one of whom nobody knows."""
    return _collection(
        tmp_path / "cxr",
        [
            {
                "patient_id": "CX0001", "age": "60", "sex": "M", "went_icu": "Y", "survival": "N",
                "intubated": "Y", "finding": "COVID-19, ARDS", "clinical_notes": "Was intubated and died.",
                "clinical_notes_masked": "Cough for 3 days.",
            },
            {"patient_id": "CX0002", "went_icu": "N", "survival": "Y", "finding": "No Finding"},
            {"patient_id": "CX0003", "finding": "Klebsiella"},
        ],
        [
            {
                "image_file": "CX0001_0.jpg", "patient_id": "CX0001", "view": "PA", "offset_days": "2.0",
                "in_icu_at_image": "N", "temperature": "38.5", "pO2_saturation": "340.0",
                "lymphocyte_count": "0.8",
            },
            {
                "image_file": "CX0001_1.jpg", "patient_id": "CX0001", "view": "AP Supine",
                "offset_days": "4.0", "in_icu_at_image": "Y", "pO2_saturation": "80.0",
            },
            {"image_file": "CX0002_0.jpg", "patient_id": "CX0002", "view": "AP", "in_icu_at_image": "N"},
            {"image_file": "CX0003_0.jpg", "patient_id": "CX0003", "view": "PA", "offset_days": "-1.0"},
            {"image_file": "CX0003_1.jpg", "patient_id": "CX0003", "view": "PA"},
        ],
    )  # fmt: skip


def _import(folder: Path, settings: Any, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path / "data"
    call_command("import_collection", "cxr_covid", folder)


@pytest.mark.django_db
def test_it_goes_through_the_doors_of_the_clinic(
    folder: Path, settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _import(folder, settings, tmp_path)
    printed = capsys.readouterr().out
    assert "2 images of 2 patients were taken before intensive care" in printed
    assert "1 images of 1 patients who were admitted to it later" in printed
    assert "1 values left out" in printed
    ill = Patient.objects.get(resource_id="CX0001")
    assert (ill.family, ill.given, ill.sex, ill.deceased, ill.deceased_at) == (
        "CX0001",
        "",
        "male",
        True,
        None,
    )
    assert ill.birth_date == (_day(2) - timedelta(days=round(60 * 365.25))).date()
    stay, care = ill.encounters.order_by("start")
    assert (stay.kind, stay.status, stay.start) == ("inpatient", "finished", _day(2) - timedelta(hours=1))
    assert (care.kind, care.start, care.end, care.part_of) == (
        "intensive-care", _day(3), _day(5), stay.resource_id,
    )  # fmt: skip
    assert set(ill.observations.values_list("code", "value", "unit", "available_at")) == {
        ("8310-5", 38.5, "Cel", _day(2)),
        ("731-0", 0.8, "10*3/uL", _day(2)),
        ("59408-5", 80.0, "%", _day(4)),
    }
    assert ill.conditions.get().code == "840539006"
    assert set(ill.studies.values_list("started_at", flat=True)) == {_day(2), _day(4)}
    assert set(Series.objects.filter(study__patient=ill).values_list("imaging_modality", "view")) == {
        ("CR", "PA"), ("CR", "AP"),
    }  # fmt: skip
    well = Patient.objects.get(resource_id="CX0002")
    assert (well.deceased, well.conditions.count(), well.studies.get().started_at) == (False, 0, _day(0))
    assert well.encounters.get().status == "finished"
    unknown = Patient.objects.get(resource_id="CX0003")
    assert (unknown.encounters.get().status, unknown.encounters.get().end) == ("unknown", None)
    assert set(unknown.studies.values_list("started_at", flat=True)) == {_day(-1), None}


@pytest.mark.django_db
def test_nothing_that_tells_the_outcome_gets_in(folder: Path, settings: Any, tmp_path: Path) -> None:
    _import(folder, settings, tmp_path)
    assert [note.text for note in Note.objects.all()] == ["Cough for 3 days."]
    note = Note.objects.get()  # a case report: written when the case was over
    assert note.available_at is not None
    assert note.available_at > max(
        at for at in note.patient.studies.values_list("started_at", flat=True) if at
    )
    assert set(Observation.objects.values_list("code", flat=True)) <= {
        code for code, *_ in cxr_covid.MEASUREMENTS.values()
    }
    written = " ".join(path.read_text() for path in (settings.DATA_DIR / "collections").rglob("*.json"))
    for word in ("intubat", "ARDS", "died", "supplemental", "Supine"):
        assert word not in written
    known_then = Encounter.objects.filter(patient__resource_id="CX0001", available_at__lte=_day(2))
    assert [encounter.kind for encounter in known_then] == ["inpatient"]


@pytest.mark.django_db
def test_the_second_import_is_the_same_to_the_byte(folder: Path, settings: Any, tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        files = sorted((settings.DATA_DIR / "collections").rglob("*.*"))
        digests = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
        return (
            digests,
            list(Patient.objects.order_by("pk").values_list("pk", "revision")),
            Study.objects.count(),
        )

    _import(folder, settings, tmp_path)
    before = state()
    _import(folder, settings, tmp_path)
    assert state() == before
    assert len(before[0]) == 8


@pytest.mark.django_db
def test_a_picture_that_is_broken_is_set_aside(
    folder: Path, settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "images" / "CX0002_0.jpg").write_bytes(b"not a picture")
    (folder / "images" / "CX0003_1.jpg").unlink()
    _import(folder, settings, tmp_path)
    printed = capsys.readouterr().out
    assert "CX0002_0.jpg is not a picture" in printed
    assert "CX0003_1.jpg: DICOM the picture cannot be read" in printed
    assert Study.objects.count() == 3


@pytest.mark.django_db
def test_a_folder_that_is_not_the_collection(tmp_path: Path, settings: Any) -> None:
    settings.DATA_DIR = tmp_path / "data"
    with pytest.raises(CommandError, match="is not the chest X-ray collection"):
        call_command("import_collection", "cxr_covid", tmp_path)


def test_the_instances_are_plain_computed_radiography(folder: Path, tmp_path: Path) -> None:
    from cds.collections_in import dicom_out

    case = next(iter(read_cases(folder)))
    dicom_out.write_instance(case, case.pictures[1], tmp_path / "one.dcm")
    dataset = pydicom.dcmread(tmp_path / "one.dcm")
    assert (dataset.Modality, dataset.PatientID, dataset.ViewPosition) == ("CR", "CX0001", "AP")
    assert (dataset.StudyDate, dataset.StudyTime, dataset.TimezoneOffsetFromUTC) == (
        "20200305",
        "120000",
        "+0000",
    )
    assert dataset.PhotometricInterpretation == "MONOCHROME2"
    assert dataset.pixel_array.shape == (30, 20)
    Image.new("RGB", (20, 30)).save(case.pictures[1].file)
    with pytest.raises(Invalid, match="8-bit grey"):
        dicom_out.write_instance(case, case.pictures[1], tmp_path / "one.dcm")


@pytest.mark.real_data
def test_the_real_collection_gives_what_can_be_learned_from() -> None:
    cases = list(read_cases(shared("data/cxr_covid")))
    usable = [(case, pictures) for case in cases if (pictures := case.usable())]
    assert (len(cases), sum(len(case.pictures) for case in cases)) == (230, 383)
    assert (sum(len(pictures) for _, pictures in usable), len(usable)) == (84, 56)
    assert sum(len(pictures) for case, pictures in usable if case.went_icu) == 24
    for case, pictures in usable:
        for stay in case.intensive:
            assert stay.start is not None
            assert all(picture.at is not None and picture.at < stay.start for picture in pictures)
    text = json.dumps([fhir_out.build_bundle(case) for case in cases])
    assert "supplemental_O2" not in text
    assert datetime(2020, 3, 1, 12, tzinfo=UTC) == DAY_ZERO
