"""A hospital that errs: whatever goes wrong on the way, the same command again brings all of it, once."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

import ehr
from cds import ingesting, signing
from cds.patients.models import Note, Observation, Patient, SetAside, Source
from tests.factories import NOW, TESTS, make_source
from tests.hospital import Fault, Hospital, a_patient, a_pressure

pytestmark = pytest.mark.django_db
EVERYBODY = {f"p{number}" for number in range(5)}


@pytest.fixture
def hospital(settings: Any, tmp_path: Path, monkeypatch: Any) -> Iterator[Hospital]:
    settings.DATA_DIR, settings.FHIR_KEYS = tmp_path, tmp_path / "keys.json"
    monkeypatch.setattr("ehr.fhir.rest.time.sleep", lambda _: None)
    with Hospital(page_size=2) as found:
        for one in sorted(EVERYBODY):
            found.put(a_patient(one), *(a_pressure(f"{one}-{n}", patient=one) for n in range(3)))
        yield found


def pull(hospital: Hospital, *options: str, way: str = "--fhir") -> None:
    call_command("ingest", way, hospital.base, "--source", "ward", *options)


def assert_everything_is_here_once() -> None:
    assert set(Patient.objects.values_list("resource_id", flat=True)) == EVERYBODY
    assert Observation.objects.count() == 15
    assert not SetAside.objects.exists()


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.DOWN, Fault.CUT])
@pytest.mark.parametrize("way", ["--fhir", "--bulk"])
def test_a_passing_fault_costs_a_second_call(hospital: Hospital, fault: Fault, way: str) -> None:
    where = "/Observation" if way == "--fhir" else "/files/"
    hospital.fail(where, fault, times=2, after=1)
    pull(hospital, way=way)
    assert_everything_is_here_once()


@pytest.mark.parametrize("fault", [Fault.DOWN, Fault.CUT, Fault.UNAUTHORISED])
def test_a_pull_that_broke_off_goes_on_where_it_was(hospital: Hospital, fault: Fault) -> None:
    hospital.fail("/Condition", fault, times=5, after=2)
    with pytest.raises(CommandError, match="un the same command again"):
        pull(hospital)
    assert Patient.objects.count() == 2
    before = len(hospital.asked)
    hospital._planned.clear()
    pull(hospital)
    assert_everything_is_here_once()
    later = hospital.asked[before:]
    assert not any("patient=p0" in asked or "patient=p1" in asked for asked in later), "those were in already"


def test_what_changed_while_it_was_broken_off_comes_with_the_next_poll(
    hospital: Hospital, monkeypatch: Any
) -> None:
    source = make_source()
    hospital.fail("/Condition", Fault.DOWN, times=5, after=2)
    hospital.clock = NOW
    first = ingesting.ingest_fhir(hospital.base, source=source, by=TESTS, now=NOW, only_changed=True)
    assert first.interrupted
    hospital.put(a_pressure("p0-new", patient="p0"))
    hour_later = NOW.replace(hour=NOW.hour + 1)
    second = ingesting.ingest_fhir(hospital.base, source=source, by=TESTS, now=hour_later, only_changed=True)
    assert (second.interrupted, second.passed_over) == ("", 2)
    assert not Observation.objects.filter(resource_id="p0-new").exists()
    ingesting.ingest_fhir(
        hospital.base, source=source, by=TESTS, now=hour_later.replace(minute=9), only_changed=True
    )
    assert Observation.objects.filter(resource_id="p0-new").exists(), "polled from when the first run began"


def test_a_stalling_server_is_given_up_on(hospital: Hospital) -> None:
    hospital.fail("/Patient", Fault.STALL, times=5)
    with (
        ehr.FhirClient(hospital.base, timeout_s=0.2, sleep=lambda _: None) as client,
        pytest.raises(ehr.Retriable),
    ):
        list(client.patients())


def test_a_type_that_is_denied_is_said_and_the_rest_comes(hospital: Hospital) -> None:
    hospital.fail("/Condition", Fault.DENIED, times=5)
    pull(hospital)
    assert Observation.objects.count() == 15
    assert {one.kind for one in SetAside.objects.all()} == {"Condition"}
    assert "planned fault 403" in SetAside.objects.all()[0].reason


def test_an_answer_that_is_no_fhir_is_said(hospital: Hospital) -> None:
    hospital.fail("/Condition", Fault.GARBAGE)
    pull(hospital)
    assert "not JSON" in SetAside.objects.get().reason


def test_an_export_that_failed_is_asked_for_anew(hospital: Hospital) -> None:
    hospital.fail("/jobs/", Fault.FAILED, times=5)
    with pytest.raises(CommandError, match=r"could not make the export.*planned fault 500.*new export"):
        pull(hospital, way="--bulk")
    pull(hospital, way="--bulk")
    assert_everything_is_here_once()
    assert hospital.times("$export") == 2


def test_an_export_that_expired_between_runs_is_asked_for_anew(hospital: Hospital) -> None:
    hospital.fail("/jobs/", Fault.DOWN, times=5)
    with pytest.raises(CommandError, match="503"):
        pull(hospital, way="--bulk")
    hospital.jobs.clear()
    pull(hospital, way="--bulk")
    assert_everything_is_here_once()
    assert hospital.times("$export") == 2


def test_the_whole_system_can_be_exported(hospital: Hospital) -> None:
    pull(hospital, "--bulk-of", "system", way="--bulk")
    assert_everything_is_here_once()
    assert hospital.times("GET /fhir/$export") == 1


def test_files_that_are_packed_without_saying_so_are_read(hospital: Hospital) -> None:
    hospital.packs = True
    pull(hospital, way="--bulk")
    assert_everything_is_here_once()


def test_an_export_that_comes_short_is_asked_for_again_from_the_same_moment(hospital: Hospital) -> None:
    hospital.loses = 1
    with pytest.raises(CommandError, match=r"came short.*the manifest promised 5.*from the same moment"):
        pull(hospital, way="--bulk")
    assert Patient.objects.count() == 5, "four, and one by what is said of them"
    assert Observation.objects.count() == 14, "what came is in"
    assert Source.objects.get(slug="ward").exports == {}
    assert hospital.jobs == {}
    hospital.loses = 0
    pull(hospital, way="--bulk")
    assert Observation.objects.count() == 15
    assert Source.objects.get(slug="ward").exports


def test_an_export_that_stalls_is_given_up_on(hospital: Hospital, tmp_path: Path) -> None:
    for where in ("$export", "/jobs/", "/files/"):
        hospital._planned.clear()
        hospital.fail(where, Fault.STALL, times=5)
        with (
            ehr.BulkClient(hospital.base, timeout_s=0.2, sleep=lambda _: None) as client,
            pytest.raises(ehr.Retriable, match="ReadTimeout"),
        ):
            client.export(tmp_path / "x")
    hospital._planned.clear()
    with ehr.BulkClient(hospital.base) as client:
        client.export(tmp_path / "x")
    assert hospital.times("$export") == 5 + 1, "goes on with the same job"


@pytest.mark.parametrize("way", ["--fhir", "--bulk"])
@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ((), "--client-id"),
        (("--token-env", "WARD_TOKEN"), "put a fresh one into WARD_TOKEN"),
        (("--client-id", "tessera"), r"allow the client 'tessera' there system/\*\.rs"),
    ],
)
def test_who_is_not_let_in_reads_what_to_change(
    hospital: Hospital, monkeypatch: Any, way: str, options: tuple[str, ...], advice: str
) -> None:
    monkeypatch.setenv("WARD_TOKEN", "old")
    signing.add_key("EC")
    hospital.fail("/Patient", Fault.DENIED, times=5)
    if "--client-id" in options:
        hospital.keys = lambda: ehr.public_keys(signing.private_keys())
    with pytest.raises(CommandError, match=f"403.*{advice}.*Then run the same command again"):
        pull(hospital, *options, way=way)


def test_files_that_expired_mean_a_new_export(hospital: Hospital) -> None:
    hospital.fail("/files/", Fault.EXPIRED, after=1)
    with pytest.raises(CommandError, match="no longer there"):
        pull(hospital, way="--bulk")
    pull(hospital, way="--bulk")
    assert_everything_is_here_once()
    assert hospital.times("$export") == 2
    assert hospital.jobs == {}, "deleted at the end"


def test_keys_rotate_and_tokens_run_out_in_the_middle(hospital: Hospital, monkeypatch: Any) -> None:
    signing.add_key("EC")
    frozen = ehr.public_keys(signing.private_keys())
    hospital.keys = lambda: frozen  # as a server holds our set for as long as we said
    signing.add_key("RSA")
    hospital.fail("/Observation", Fault.UNAUTHORISED, times=1, after=3)
    pull(hospital, "--client-id", "tessera")
    assert_everything_is_here_once()
    assert hospital.times("POST /token") == 2
    later = timezone.now() + timedelta(seconds=signing.SETTLED_S)
    monkeypatch.setattr("cds.signing.timezone.now", lambda: later)
    with pytest.raises(CommandError, match="has our key"):
        pull(hospital, "--client-id", "tessera", "--changed")
    hospital.keys = lambda: ehr.public_keys(signing.private_keys())  # it has read the set anew
    pull(hospital, "--client-id", "tessera", "--changed")


@pytest.mark.parametrize("way", ["--fhir", "--bulk"])
def test_the_text_of_a_note_is_fetched_from_its_binary(hospital: Hospital, way: str) -> None:
    words = base64.b64encode(b"Short of breath.").decode()
    attachment = {"contentType": "text/plain", "url": f"{hospital.base}/Binary/b1"}
    hospital.put(
        {"resourceType": "Binary", "id": "b1", "contentType": "text/plain", "data": words},
        {
            "resourceType": "DocumentReference",
            "id": "d1",
            "status": "current",
            "subject": {"reference": "Patient/p1"},
            "date": "2026-03-01T08:00:00Z",
            "content": [{"attachment": attachment}],
        },
    )
    pull(hospital, way=way)
    assert Note.objects.get().text == "Short of breath."
    assert not SetAside.objects.exists()


@pytest.mark.parametrize("includes", [True, False])
def test_what_is_referred_to_comes_along_in_the_same_search(hospital: Hospital, includes: bool) -> None:
    hospital.includes = includes
    hospital.put(
        {"resourceType": "Medication", "id": "m1", "code": {"text": "Furosemide"}},
        {
            "resourceType": "MedicationRequest",
            "id": "r1",
            "status": "active",
            "subject": {"reference": "Patient/p1"},
            "authoredOn": "2026-03-01",
            "medicationReference": {"reference": "Medication/m1"},
        },
    )
    pull(hospital)
    assert Patient.objects.get(resource_id="p1").medications.get().code == "Furosemide"
    assert hospital.times("GET /fhir/Medication/") == (0 if includes else 1)


def test_a_page_over_the_cap_is_asked_for_in_smaller_ones(hospital: Hospital) -> None:
    hospital.page_size = 50
    for number in range(20):
        hospital.put(a_pressure(f"p3-many-{number}", patient="p3"))
    with ehr.FhirClient(hospital.base, max_page_bytes=4000) as client:
        records = list(client.patients())
    assert sum(len(record.observations) for record in records) == 15 + 20
    assert not any(record.set_aside for record in records)
