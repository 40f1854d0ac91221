"""A folder of FHIR: many new patients at once, what is known passed over, what is not known read again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import DataError, IntegrityError

import ehr
from benchmarks import bulk_files
from cds import folders
from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import Conflict
from cds.jobs.models import OutboxMessage
from cds.patients import importing, importing_new, rows
from cds.patients.models import ImportedRecord, Observation, Patient, SetAside
from cds.taking import Tally
from tests.factories import NOW, TESTS, identity, make_record, make_source, observation

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).parents[2]


def take(folder: Path) -> Tally:
    return folders.take_folder(folder, source=make_source(), by=TESTS, now=NOW)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    bulk_files.write_export(tmp_path / "export", resources=300)
    return tmp_path / "export"


def kept() -> dict[str, list[Any]]:
    """Every row that an import writes, less what is made anew each time."""
    found: dict[str, list[Any]] = {}
    for kind in rows.KINDS:
        names = [
            field.name for field in kind.model._meta.concrete_fields if field.name not in ("id", "patient")
        ]
        held = kind.model._default_manager.order_by("resource_id", "part")
        found[kind.attribute] = list(held.values_list("patient__resource_id", *names))
    found["patients"] = list(
        Patient.objects.order_by("resource_id").values_list(
            "resource_id", "family", "birth_date", "sex", "unit__name", "revision", "digest",
            "identifiers__system", "identifiers__value",
        )
    )  # fmt: skip
    events = AuditEvent.objects.filter(action="patient.import").order_by("pk")
    found["audit"] = sorted(json.dumps(event.detail, sort_keys=True) for event in events)
    found["jobs"] = list(OutboxMessage.objects.values_list("job", flat=True))
    found["records"] = sorted(ImportedRecord.objects.filter(said={}).values_list("digest", flat=True))
    return found


def test_many_at_once_write_what_one_after_another_would(export: Path) -> None:
    records = list(ehr.read_fhir_folder(export))
    for record in records:
        importing.import_record(record, source=make_source(), by=TESTS, now=NOW)
    one_by_one = kept()
    Patient.objects.all().delete()
    OutboxMessage.objects.all().delete()
    told = AuditEvent.objects.count()
    importing_new.import_new(records, source=make_source(), by=TESTS, now=NOW)
    at_once = kept()
    assert AuditEvent.objects.count() == told + len(records)
    assert at_once.pop("audit") == [detail for detail in one_by_one.pop("audit") for _ in range(2)]
    assert at_once == one_by_one
    assert not [problem for chain in recording.verify() for problem in chain.problems]


def test_what_was_read_before_is_not_read_again(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = take(export)
    assert first.patients == 3

    def never(*_: Any) -> None:
        raise AssertionError("a known piece was read")

    monkeypatch.setattr(ehr.Piece, "read", never)
    again = take(export)
    assert (again.patients, again.changed, again.ignored) == (3, set(), first.ignored)
    assert {name: sum(states.values()) for name, states in again.resources.items()} == {
        name: sum(states.values()) for name, states in first.resources.items()
    }
    assert all(set(states) == {"unchanged"} for states in again.resources.values())


def test_what_is_known_begins_no_process(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = take(export)

    def never(*_: Any) -> None:
        raise AssertionError("a process began for what is known")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", never)
    again = folders.take_folder(export, source=make_source(), by=TESTS, now=NOW, processes=2)
    assert (again.patients, again.changed, again.ignored) == (3, set(), first.ignored)
    path = export / "Observation-00001.ndjson"
    path.write_text(path.read_text().replace('"status":"final"', '"status":"amended"'))
    with pytest.raises(AssertionError, match="a process began"):
        folders.take_folder(export, source=make_source(), by=TESTS, now=NOW, processes=2)


def test_a_known_folder_costs_as_many_queries_however_many_patients(
    tmp_path: Path, django_assert_max_num_queries: Any
) -> None:
    for patients in (2, 6):
        export = tmp_path / str(patients)
        bulk_files.write_export(export, resources=100 * patients)
        take(export)
        with django_assert_max_num_queries(4):
            assert take(export).patients == patients


def test_only_the_patient_with_a_changed_line_is_read(export: Path) -> None:
    take(export)
    path = export / "Observation-00001.ndjson"
    lines = path.read_text().splitlines()
    changed = json.loads(lines[0])
    changed["valueQuantity"]["value"] = 81.5
    path.write_text("\n".join([json.dumps(changed), *lines[1:]]))
    again = take(export)
    assert len(again.changed) == 1
    assert again.resources["Observation"]["changed"] == 1
    assert Observation.objects.get(resource_id=changed["id"], part="").value == 81.5


def test_a_patient_whom_somebody_else_changed_is_read_again(export: Path) -> None:
    take(export)
    patient = Patient.objects.order_by("resource_id")[0]
    held = Observation.objects.filter(patient=patient, part="").order_by("resource_id")[0]
    other = observation(held.code, 0.5 * (held.value or 0), held.unit, resource_id=held.resource_id)
    stub = identity(patient.resource_id, is_stub=True)
    record = make_record(patient.resource_id, patient=stub, observations=[other])
    importing.import_record(record, source=make_source(), by=TESTS, now=NOW)
    again = take(export)
    assert again.changed == {patient.pk}
    assert Observation.objects.get(pk=held.pk).value == held.value


def test_what_was_set_aside_is_set_aside_each_time(export: Path) -> None:
    with (export / "Observation-00001.ndjson").open("a") as file:
        file.write(json.dumps({"resourceType": "Observation", "id": "bad"}) + "\n")
    bad = json.loads((export / "Observation-00001.ndjson").read_text().splitlines()[0])
    bad |= {"id": "wrong-unit", "valueQuantity": {"value": 1, "code": "kg"}}
    with (export / "Observation-00001.ndjson").open("a") as file:
        file.write(json.dumps(bad) + "\n")
    assert sorted(item.identity for item in take(export).refused) == ["bad", "wrong-unit"]
    again = take(export)
    assert sorted(item.identity for item in again.refused) == ["bad", "wrong-unit"]
    assert again.changed == set()
    assert SetAside.objects.count() == 2


def test_when_one_cannot_be_stored_the_others_are(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> list[importing.Imported]:
        raise IntegrityError

    monkeypatch.setattr(importing_new, "import_new", refuse)
    assert take(export).patients == 3
    assert Patient.objects.count() == 3


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (IntegrityError("a value"), "the database refuses it (a constraint)"),
        (DataError("a value"), "have the source send it within FHIR's limits"),
        (Conflict("held by another"), "held by another"),
    ],
)
def test_a_record_that_cannot_be_stored_says_what_to_change(
    export: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, advice: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise fault

    monkeypatch.setattr(importing_new, "import_new", refuse)
    monkeypatch.setattr(importing, "import_record", refuse)
    reasons = {item.reason for item in take(export).refused}
    assert len(reasons) == 1
    assert advice in (said := reasons.pop())
    assert "a value" not in said


def test_of_much_that_is_set_aside_the_first_is_listed_and_the_rest_counted(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cds.taking.MOST_LISTED", 3)
    with (export / "Observation-00001.ndjson").open("a") as file:
        for number in range(10):
            file.write(json.dumps({"resourceType": "Observation", "id": f"bad-{number}"}) + "\n")
    for _ in range(2):
        tally = take(export)
        assert (len(tally.refused), tally.unlisted, tally.all_refused) == (3, 7, 10)
        assert tally.resources["Observation"]["set_aside"] == 10
    assert SetAside.objects.count() == 10


def test_the_later_of_two_bundles_counts_each_time(tmp_path: Path) -> None:
    patient = {"resourceType": "Patient", "id": "p1"}
    for name, value in (("a", 120), ("b", 130)):
        pressure = {
            "resourceType": "Observation", "id": "o1", "status": "final", 
            "subject": {"reference": "Patient/p1"},
            "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
            "effectiveDateTime": "2026-03-01T08:00:00Z", "valueQuantity": {"value": value, "code": "mm[Hg]"},
        }  # fmt: skip
        bundle = {"resourceType": "Bundle", "entry": [{"resource": patient}, {"resource": pressure}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(bundle))
    for _ in range(3):
        take(tmp_path)
        assert Observation.objects.get().value == 130


def test_what_a_killed_run_left_is_removed(export: Path, settings: Any, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path / "data"
    left = settings.DATA_DIR / "sorting" / "left"
    left.mkdir(parents=True)
    (left / "0000").write_text("p1\t0\t1\t{}")
    take(export)
    assert list((settings.DATA_DIR / "sorting").iterdir()) == []


# Like manage.py, and unlike a test, it sets Django up in its own process only.
SCRIPT = """
import sys
from datetime import UTC, datetime
from pathlib import Path
if __name__ == "__main__":
    import django
    django.setup()
    from django.core.management import call_command
    from cds import folders
    from cds.audit import recording
    from cds.patients import importing
    call_command("migrate", verbosity=0)
    known = {"source": importing.get_source("x", now=datetime.now(UTC)), "by": recording.system("x")}
    for _ in range(2):
        taken = folders.take_folder(Path(sys.argv[1]), now=datetime.now(UTC), processes=2, **known)
        print(taken.patients, len(taken.changed), sum(states["new"] for states in taken.resources.values()))
    print(sum(len(chain.problems) for chain in recording.verify()))
"""


@pytest.mark.timeout(300)
def test_two_processes_take_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = bulk_files.write_export(tmp_path / "export", resources=1000)
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"} | {
        "TESSERA_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT), "LOG_LEVEL": "CRITICAL",
        "DJANGO_SETTINGS_MODULE": "cds.settings", "REDIS_URL": "redis://127.0.0.1:1/0",
    }  # fmt: skip
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "export")]
    done = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=280
    )
    first, again, problems = done.stdout.strip().splitlines()
    assert first == f"10 10 {count - 30}"  # less the immunisations
    assert again == "10 0 0"
    assert problems == "0"
