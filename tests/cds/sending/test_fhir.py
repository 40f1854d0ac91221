"""A score goes back to the FHIR server its patient came from: once, in order, amended where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

import ehr
from cds.audit.models import AuditEvent
from cds.errors import Conflict, Invalid, NotFound
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.risk.models import RiskAssessment
from cds.sending import clients, composing, delivering, destinations, queries
from cds.sending.models import Destination, Document, DocumentKind
from tests.cds.registry import ward
from tests.cds.registry.rows import make_version
from tests.cds.risk.scores import say, score_by_hand
from tests.cds.sending.results import add_destination, send_all, states
from tests.ehr.fhir.receiving_server import Hospital
from tests.ehr.fhir.validating import list_faults
from tests.factories import NOW, TESTS, make_patient, make_source

pytestmark = pytest.mark.django_db
BASIS = [{"type": "Observation", "id": "o1"}, {"type": "ImagingStudy", "id": "1.2.840.1.5"}]
LATER = timedelta(minutes=70)


@pytest.fixture
def hospital(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hospital]:
    server = Hospital()

    def writer(destination: Destination) -> ehr.FhirWriter:
        return ehr.FhirWriter(destination.address, transport=server.transport())

    monkeypatch.setattr(clients, "fhir_writer", writer)
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    return server


@pytest.fixture
def patient() -> Patient:
    return make_patient("p1", unit="Ward 3")


def score(
    patient: Patient, version: Any, *predictions: Any, now: Any = NOW, **changes: Any
) -> RiskAssessment:
    return score_by_hand(patient, version, *predictions, now=now, **{"basis": BASIS, **changes})


def try_now(now: Any = NOW) -> None:
    """As if the waiting had passed."""
    Destination.objects.update(not_before=None)
    Document.objects.filter(work_state=WorkState.QUEUED).update(due_at=None)
    send_all(now=now)


def test_where_no_risk_assessment_is_taken_the_report_says_the_number(
    hospital: Hospital, patient: Patient
) -> None:
    add_destination(kinds=["diagnostic-report", "provenance"])
    version = make_version()
    score(patient, version, say(risk=0.42))
    send_all()
    assert states() == dict.fromkeys(("device", "diagnostic-report", "provenance"), "done")
    report = hospital.resources["DiagnosticReport/1"]
    assert "extension" not in report
    assert report["conclusion"].startswith("42% (")
    assert hospital.resources["Provenance/1"]["target"] == [{"reference": "DiagnosticReport/1"}]
    assert [fault for one in hospital.resources.values() for fault in list_faults(one)] == []
    score(patient, version, say(risk=0.42), now=NOW + LATER)
    send_all(now=NOW + LATER + LATER)
    assert len(Document.objects.filter(kind="diagnostic-report")) == 1, "the same need not be said again"


def test_what_is_not_fhir_is_never_sent(
    hospital: Hospital, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ehr.build_risk_assessment
    monkeypatch.setattr(ehr, "build_risk_assessment", lambda **said: made(**said) | {"risk": 0.42})
    add_destination(kinds=["risk-assessment"])
    score(patient, make_version())
    send_all()
    assert states() == {"device": "done", "risk-assessment": "failed"}
    refused = Document.objects.get(kind="risk-assessment").failure
    assert refused == "a RiskAssessment of ours is not FHIR R4 at risk (extra_forbidden)"
    assert not [path for path in hospital.resources if path.startswith("RiskAssessment")]


def test_nothing_is_sent_until_a_destination_is_added_nor_what_was_made_before(
    hospital: Hospital, patient: Patient
) -> None:
    score(patient, make_version(), now=NOW - LATER)
    send_all()
    add_destination()
    send_all()
    assert hospital.asked == []
    assert not Document.objects.exists()


def test_a_score_arrives_as_four_linked_resources(hospital: Hospital, patient: Patient) -> None:
    add_destination()
    version = make_version()
    assessment = score(patient, version, say(risk=0.42))
    send_all()
    send_all()
    assert states() == dict.fromkeys(("device", "risk-assessment", "diagnostic-report", "provenance"), "done")
    assert set(hospital.resources) == {
        "Device/1", "RiskAssessment/1", "DiagnosticReport/1", "Provenance/1",
    }  # fmt: skip
    said = hospital.resources["RiskAssessment/1"]
    assert said["subject"] == {"reference": "Patient/p1"}
    assert said["encounter"]["reference"].startswith("Encounter/")
    assert said["prediction"][0]["probabilityDecimal"] == 42.0
    assert said["prediction"][0]["whenPeriod"]["start"] == assessment.as_of.isoformat()
    assert said["performer"]["reference"] == "Device/1"
    assert len(said["basis"]) == 2
    assert said["note"] == [{"text": "Research use only"}]
    made = hospital.resources["Provenance/1"]
    assert made["target"] == [{"reference": "RiskAssessment/1"}]
    assert made["entity"][0]["what"]["identifier"]["value"] == version.digest
    pointer = hospital.resources["DiagnosticReport/1"]
    assert pointer["presentedForm"][0]["url"].endswith(f"/patients/{patient.pk}/risk")
    assert [fault for one in hospital.resources.values() for fault in list_faults(one)] == []
    sent = AuditEvent.objects.filter(action="document.send", patient_id=patient.pk)
    assert sorted(event.detail["remote"] for event in sent) == [
        "DiagnosticReport/1",
        "Provenance/1",
        "RiskAssessment/1",
    ]


def test_another_hospitals_patient_stays_at_home(hospital: Hospital) -> None:
    add_destination()
    score(make_patient("p2", source=make_source("elsewhere")), make_version())
    send_all()
    assert hospital.asked == []


def test_an_answer_lost_after_creating_is_found_again(hospital: Hospital, patient: Patient) -> None:
    add_destination(kinds=["risk-assessment"])
    hospital.lose = 1
    score(patient, make_version())
    send_all()
    waiting = Document.objects.get(kind=DocumentKind.DEVICE)
    assert (waiting.work_state, waiting.tries) == (WorkState.QUEUED, 1)
    assert "ReadError" in waiting.failure
    assert waiting.due_at is not None
    hospital.lose = 1  # and once more, at the RiskAssessment
    try_now()
    try_now()
    assert states() == {"device": "done", "risk-assessment": "done"}
    assert (len(hospital.of("Device")), len(hospital.of("RiskAssessment"))) == (1, 1)


def test_busy_is_waited_for_as_long_as_it_asks(hospital: Hospital, patient: Patient) -> None:
    add_destination()
    hospital.busy, hospital.retry_after = 1, "900"
    score(patient, make_version())
    before = timezone.now()
    send_all()
    asked = len(hospital.asked)
    destination = Destination.objects.get()
    assert destination.not_before is not None
    assert timedelta(seconds=890) < destination.not_before - before < timedelta(seconds=960)
    send_all()
    assert len(hospital.asked) == asked  # nobody knocks meanwhile
    (view,) = queries.list_destinations(now=timezone.now())
    assert (view.waiting, view.accepted, view.refused) == (4, 0, 0)
    assert view.paused_until is not None
    assert "503" in view.last_error
    try_now()
    (view,) = queries.list_destinations(now=timezone.now())
    assert (view.waiting, view.accepted, view.paused_until) == (0, 4, None)


def test_a_refusal_is_kept_with_its_reason_and_sent_again(hospital: Hospital, patient: Patient) -> None:
    add_destination()
    hospital.refuse = {"RiskAssessment": 422}
    score(patient, make_version())
    send_all()
    assert states() == {
        "device": "done", "risk-assessment": "failed", "diagnostic-report": "failed", "provenance": "failed",
    }  # fmt: skip
    reasons = {one.kind: one.reason for one in queries.list_refused("ehr")}
    assert "422: invalid not here" in reasons["risk-assessment"]
    assert "was not accepted" in reasons["provenance"]
    hospital.refuse = {}
    out = StringIO()
    call_command("destination", "refused", "ehr", stdout=out)
    assert "422" in out.getvalue()
    call_command("destination", "retry", "ehr", stdout=out)
    send_all()
    assert set(states().values()) == {"done"}
    assert len(hospital.of("RiskAssessment")) == 1


def test_a_preliminary_one_is_updated_by_its_final(hospital: Hospital, patient: Patient) -> None:
    add_destination()
    version = make_version()
    score(patient, version, say(risk=0.3), pending=["image"])
    send_all()
    assert hospital.resources["RiskAssessment/1"]["status"] == "preliminary"
    score(patient, version, say(risk=0.5), now=NOW + LATER)
    send_all(now=NOW + LATER)
    assert [one["status"] for one in hospital.versions["RiskAssessment/1"]] == ["preliminary", "final"]
    assert len(hospital.of("RiskAssessment")) == len(hospital.of("DiagnosticReport")) == 1
    operations = [one["activity"]["coding"][0]["code"] for one in hospital.of("Provenance")]
    assert operations == ["CREATE", "UPDATE"]
    score(patient, version, say(risk=0.6), now=NOW + 2 * LATER)
    send_all(now=NOW + 2 * LATER)
    assert [one["status"] for one in hospital.of("RiskAssessment")] == ["final", "final"]


def test_a_preliminary_one_that_still_waits_gives_way(hospital: Hospital, patient: Patient) -> None:
    add_destination(kinds=["risk-assessment"])
    version = make_version()
    hospital.busy = 1
    score(patient, version, pending=["image"])
    send_all()
    score(patient, version, say(risk=0.5), now=NOW + LATER)
    try_now(NOW + LATER)
    assert [one["status"] for one in hospital.of("RiskAssessment")] == ["final"]
    ended = (
        Document.objects.filter(kind="risk-assessment").order_by("order").values_list("work_state", flat=True)
    )
    assert list(ended) == ["cancelled", "done"]


def test_the_same_again_is_not_said_again(hospital: Hospital, patient: Patient) -> None:
    add_destination(kinds=["risk-assessment"])
    version = make_version()
    for hours in range(3):
        score(patient, version, say(risk=0.3), now=NOW + hours * LATER)
        send_all(now=NOW + hours * LATER)
    assert len(hospital.of("RiskAssessment")) == 1


def test_paused_waits_and_removed_is_dropped(hospital: Hospital, patient: Patient) -> None:
    add_destination()
    destinations.set_active("ehr", False, by=TESTS, now=NOW)
    version = make_version()
    score(patient, version)
    send_all()
    assert hospital.asked == []
    destinations.set_active("ehr", True, by=TESTS, now=NOW)
    send_all()
    assert len(hospital.of("RiskAssessment")) == 1
    score(patient, version, say(risk=0.9), now=NOW + LATER)
    composing.compose_all(now=NOW + LATER)
    assert destinations.remove("ehr", by=TESTS, now=NOW) == 3
    send_all()
    assert len(hospital.of("RiskAssessment")) == 1
    assert queries.list_destinations(now=timezone.now()) == []
    add_destination()  # the name is free again


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://ehr.example/fhir", "plain http is refused"),
        ("https://a:b@ehr.example/fhir", "without a user name"),
        ("ehr.example/fhir", "an address is a FHIR base URL"),
        ("dicomweb+http://pacs.example/dicom-web", "plain http is refused"),
        ("dimse://pacs.example:104", "TITLE@host"),
    ],
)
def test_an_address_we_may_not_call_is_refused_saying_why(address: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        add_destination(address)


def test_what_cannot_be_asked_for_is_told(hospital: Hospital) -> None:
    with pytest.raises(Invalid, match="a fhir destination takes device"):
        add_destination(kinds=["outlines"])
    add_destination()
    with pytest.raises(Conflict, match="there is a destination 'ehr'"):
        add_destination()
    with pytest.raises(NotFound, match="no destination 'pacs'"):
        destinations.get("pacs")
    with pytest.raises(CommandError, match="no source 'nowhere'"):
        call_command("destination", "add", "x", "https://ehr.example/fhir", "--source", "nowhere")
    with pytest.raises(CommandError, match="Provenance: the server does not know this type"):
        call_command("destination", "test", "ehr")
    out = StringIO()
    call_command("destination", "list", stdout=out)
    assert "https://ehr.example/fhir" in out.getvalue()


def test_a_secret_that_is_not_there_is_waited_for(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    add_destination(secret_env="TESSERA_TEST_NO_SUCH_TOKEN")
    score(patient, make_version())
    send_all()
    assert "TESSERA_TEST_NO_SUCH_TOKEN is not set" in Document.objects.get(kind="device").failure
    assert states()["device"] == "queued"


def test_a_sender_that_died_is_replaced(hospital: Hospital, patient: Patient) -> None:
    add_destination()
    score(patient, make_version())
    composing.compose_all(now=NOW)
    device = Document.objects.get(kind="device")
    assert leases.claim(Document, device.pk) is not None
    Document.objects.filter(pk=device.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    assert leases.sweep(timezone.now())["requeued"] == 1
    try_now()
    assert set(states().values()) == {"done"}
    delivering.deliver(device.pk)  # asked again: nothing is left to do
    assert len(hospital.of("Device")) == 1
