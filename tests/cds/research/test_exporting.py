"""`manage.py export_research` and `relink`: what goes out comes in again in other names; one can go on."""

from __future__ import annotations

import csv
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from django.core.management import CommandError, call_command

import ehr
from cds import ingesting
from cds.audit.models import AuditEvent
from cds.patients.models import Note, Patient
from cds.registry.models import Cohort, CohortMember
from cds.research import exporting
from cds.research.models import ResearchExport, ResearchSubject
from cds.studies import receiving
from cds.studies.models import Study
from tests import factories
from tests.ehr.dicom.making import make_file
from tests.factories import NOW, TESTS, make_patient, make_source, make_user

pytestmark = pytest.mark.django_db
BEFORE = NOW - timedelta(days=100)


@pytest.fixture(autouse=True)
def people() -> None:
    make_user("admin", name="curator")
    make_user("approver", name="keeper")


@pytest.fixture
def ward(tmp_path: Path) -> list[Patient]:
    """Three patients; each with a result, a condition, a note; the first with a radiograph."""
    found = [
        make_patient(
            f"p{number}",
            patient=factories.identity(f"p{number}", birth_date=born),
            observations=[factories.observation("8480-6", 120.0 + number, "mm[Hg]", at=BEFORE)],
            conditions=[factories.condition("73211009", at=BEFORE)],
            notes=[factories.note("Testperson is well.", at=BEFORE)],
            encounters=[factories.encounter(BEFORE, NOW, kind=ehr.EncounterKind.INTENSIVE_CARE)],
        )
        for number, born in enumerate(
            (datetime(1950, 6, 1).date(), datetime(1925, 1, 1).date(), datetime(1980, 2, 29).date())
        )
    ]
    shoot(found[0], tmp_path)
    return found


def shoot(patient: Patient, folder: Path, **elements: Any) -> receiving.Received:
    known: dict[str, Any] = {
        "PatientID": f"MRN-{patient.resource_id}", "BurnedInAnnotation": "NO", "PatientAge": "101Y",
        "PatientSex": "F", "StudyDate": "20251120", "StudyTime": "120000", "ViewPosition": "PA",
    }  # fmt: skip
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    path = make_file(folder, pixels, f"{patient.pk}.dcm", **{**known, **elements})
    return receiving.receive_file(path, source=patient.source, by=TESTS, now=NOW)


def export(folder: Path, *options: str, user: str = "curator") -> dict[str, Any]:
    call_command("export_research", str(folder), "--as", user, *(options or ("--source", "ward")))
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_what_goes_out_comes_in_again(ward: list[Patient], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    export(folder, "--source", "ward", "--keep", "characteristics", "--keep", "notes")
    again = make_source("copy")
    tally = ingesting.ingest_fhir(folder / "fhir", source=again, by=TESTS, now=NOW)
    pictures = ingesting.ingest_dicom(folder / "dicom", source=again, by=TESTS, now=NOW)
    assert not tally.refused
    assert not pictures.refused
    copies = Patient.objects.filter(source=again)
    assert copies.count() == 3
    for original in ward:
        name = ResearchSubject.objects.get(patient=original).pseudonym
        copy = copies.get(resource_id=name)
        assert (copy.family, copy.given, copy.sex) == ("", "", original.sex)
        ours, theirs = original.observations.get(), copy.observations.get()
        assert (ours.value, ours.unit, ours.code) == (theirs.value, theirs.unit, theirs.code)
        shift = theirs.available_at - ours.available_at
        assert shift.seconds == 0
        assert -3650 <= shift.days <= -30
        for kind in ("conditions", "encounters", "notes"):
            mine, other = getattr(original, kind).get(), getattr(copy, kind).get()
            assert other.available_at - mine.available_at == shift
        assert copy.encounters.get().kind == ehr.EncounterKind.INTENSIVE_CARE
        assert "Testperson" not in Note.objects.get(patient=copy).text
    study = Study.objects.get(patient__source=again)
    mine = Study.objects.get(patient=ward[0])
    assert study.patient.resource_id == ResearchSubject.objects.get(patient=ward[0]).pseudonym
    assert study.started_at - mine.started_at == (
        study.patient.observations.get().available_at - ward[0].observations.get().available_at
    )


def test_nobody_is_older_than_ninety(ward: list[Patient], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    export(folder, "--source", "ward", "--keep", "characteristics")
    lines = [json.loads(line) for line in (folder / "fhir" / "records-0001.ndjson").read_text().splitlines()]
    latest: dict[str, datetime] = {}
    for one in lines:
        who = one.get("subject", {}).get("reference", "")
        at = one.get("period", {}).get("end")
        if at:
            latest[who] = datetime.fromisoformat(at)
    ages = [
        (latest[f"Patient/{one['id']}"].date() - datetime.fromisoformat(one["birthDate"]).date()).days
        / 365.25
        for one in lines
        if one["resourceType"] == "Patient"
    ]
    assert max(ages) < 90.1
    assert sorted(round(age) for age in ages) == [46, 76, 90]
    (picture,) = (folder / "dicom").rglob("*.dcm")
    assert pydicom.dcmread(picture).PatientAge == "090Y"


def test_without_being_asked_nothing_of_the_person_stays(ward: list[Patient], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    manifest = export(folder)
    held = (folder / "fhir" / "records-0001.ndjson").read_text()
    assert "birthDate" not in held
    assert "gender" not in held
    assert "DocumentReference" not in held
    assert manifest["counts"]["left_out"] == {"note: texts were not asked for": 3}
    assert [one["code"] for one in manifest["method"]] == ["113100", "113107"]
    key = bytes(ResearchExport.objects.get().key)
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert key not in content
            assert key.hex().encode() not in content
            assert not any(str(one.pk).encode() in content for one in ward)
            assert b"MRN-" not in content


def test_words_in_pictures_stay_unless_somebody_says_otherwise(ward: list[Patient], tmp_path: Path) -> None:
    shoot(ward[1], tmp_path, BurnedInAnnotation="YES")
    shoot(ward[2], tmp_path, Modality="US", BurnedInAnnotation=None)
    first = export(tmp_path / "first")["counts"]
    assert first["instances"] == 1
    assert len([reason for reason in first["left_out"] if "burned-in annotation" in reason]) == 2
    second = export(tmp_path / "second", "--source", "ward", "--keep", "unchecked-pixels")["counts"]
    assert second["instances"] == 3
    assert second["instances_that_say_they_show_words"] == 1


def test_broken_off_it_goes_on_and_ends_as_if_nothing_had_been(
    ward: list[Patient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "PART_PATIENTS", 1)
    folder, calls = tmp_path / "copy", 0
    write = exporting._write_part

    def dies(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            (folder / "fhir" / ".part-x").write_bytes(b"half")
            raise OSError("the disk is full")
        write(*args, **kwargs)

    monkeypatch.setattr(exporting, "_write_part", dies)
    with pytest.raises(CommandError, match="goes on from here"):
        export(folder)
    monkeypatch.setattr(exporting, "_write_part", write)
    with pytest.raises(CommandError, match="other options"):
        export(folder, "--source", "ward", "--keep", "notes")
    kept = (folder / "fhir" / "records-0001.ndjson").stat().st_mtime_ns
    manifest = export(folder)
    assert (folder / "fhir" / "records-0001.ndjson").stat().st_mtime_ns == kept
    assert manifest["state"] == "finished"
    assert manifest["counts"]["patients"] == manifest["counts"]["resources"]["Patient"] == 3
    assert sorted(path.name for path in (folder / "fhir").iterdir()) == [
        f"records-{number:04}.ndjson" for number in (1, 2, 3)
    ]
    ResearchExport.objects.update(finished_at=None)  # killed between the manifest and the last commit
    assert export(folder)["counts"] == manifest["counts"]
    assert AuditEvent.objects.filter(action="research.copy").count() == 3
    assert ResearchExport.objects.count() == 1


def test_a_folder_that_holds_anything_is_refused(ward: list[Patient], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs.txt").write_text("mine")
    with pytest.raises(CommandError, match="not empty"):
        export(tmp_path / "full")
    export(tmp_path / "copy")
    with pytest.raises(CommandError, match="not empty"):
        export(tmp_path / "copy")


def test_two_copies_share_no_name(ward: list[Patient], tmp_path: Path) -> None:
    export(tmp_path / "one")
    export(tmp_path / "two")
    one, two = (
        set(ResearchSubject.objects.filter(export=each).values_list("pseudonym", flat=True))
        for each in ResearchExport.objects.all()
    )
    assert not one & two


def test_of_a_cohort_labels_and_splits_go_too(ward: list[Patient], tmp_path: Path) -> None:
    cohort = Cohort.objects.create(outcomes=["icu-admission"], cutoff_at=NOW, frozen_at=NOW)
    for patient in ward[:2]:
        CohortMember.objects.create(
            cohort=cohort, patient=patient, as_of=BEFORE, labels={"icu-admission": 1}, split="train"
        )
    folder = tmp_path / "copy"
    assert export(folder, "--cohort", str(cohort.pk))["counts"]["patients"] == 2
    with (folder / "cohort.csv").open() as table:
        rows = list(csv.DictReader(table))
    names = set(ResearchSubject.objects.values_list("pseudonym", flat=True))
    assert {row["subject"] for row in rows} == names
    assert all((row["split"], row["icu-admission"]) == ("train", "1") for row in rows)
    lines = [json.loads(line) for line in (folder / "fhir" / "records-0001.ndjson").read_text().splitlines()]
    issued = {
        one["subject"]["reference"].removeprefix("Patient/"): one["issued"]
        for one in lines
        if "issued" in one
    }
    assert {row["subject"]: row["as_of"] for row in rows} == issued, "labels moved as the results are"


def test_only_listed_patients(ward: list[Patient], tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(f"{ward[1].pk}\n\n")
    options = ("--patients", str(tmp_path / "ids"))
    assert export(tmp_path / "copy", *options)["counts"]["patients"] == 1
    (tmp_path / "ids").write_text(f"{ResearchExport.objects.get().pk}\n")
    with pytest.raises(CommandError, match="1 of the patients listed are not known"):
        export(tmp_path / "other", *options)
    with pytest.raises(CommandError, match="either a cohort, or sources"):
        export(tmp_path / "other", "--source", "ward", *options)


def test_a_local_code_leaves_only_when_somebody_vouches(tmp_path: Path) -> None:
    local = ehr.OtherCode("K-POT", "Potassium", "urn:site:lab")
    make_patient(observations=[factories.observation("8480-6", 4.0, "mmol/L", code=local)])
    export(tmp_path / "one")
    assert b"K-POT" not in (tmp_path / "one" / "fhir" / "records-0001.ndjson").read_bytes()
    export(tmp_path / "two", "--source", "ward", "--code-system", "urn:site:lab")
    assert b"K-POT" in (tmp_path / "two" / "fhir" / "records-0001.ndjson").read_bytes()


def test_who_may_export_and_who_may_relink(ward: list[Patient], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    with pytest.raises(CommandError, match=r"research\.export"):
        export(folder, user="keeper")
    assert not folder.exists()
    manifest = export(folder)
    subject = ResearchSubject.objects.get(patient=ward[0])
    asked = (manifest["export"], subject.pseudonym, "--reason", "incidental finding")
    with pytest.raises(CommandError, match=r"research\.relink"):
        call_command("relink", *asked, "--as", "curator")
    with pytest.raises(CommandError, match="nobody is called that"):
        call_command("relink", asked[0], "R-NOBODY", "--reason", "x", "--as", "keeper")
    with pytest.raises(CommandError, match="manifest"):
        call_command("relink", "nonsense", "R-NOBODY", "--reason", "x", "--as", "keeper")
    call_command("relink", *asked, "--as", "keeper")
    looks = AuditEvent.objects.filter(action="research.relink").order_by("pk")
    assert [look.outcome for look in looks] == ["refused", "refused", "success"]
    assert [look.patient_id for look in looks] == [None, None, ward[0].pk]
