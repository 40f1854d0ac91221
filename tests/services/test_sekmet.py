"""Against a FHIR server nobody here wrote: pull, increments, includes, Bulk Data, Subscriptions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from cds.patients.models import Observation, Patient, SetAside
from cds.sending.models import Document
from cds.subscriptions import errands
from cds.subscriptions.models import Errand, Subscription
from tests.cds.registry.rows import make_version
from tests.cds.risk.scores import say, score_by_hand
from tests.cds.sending.results import send_all, states
from tests.hospital import a_patient, a_pressure
from tests.services.conftest import missing
from tests.services.sekmet import Sekmet, command, running

pytestmark = [pytest.mark.service, pytest.mark.django_db(transaction=True)]
TOPIC = "http://sekmet.dev/fhir/SubscriptionTopic/patient-change"
MEDICATION = {
    "resourceType": "Medication",
    "id": "m1",
    "code": {"coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "4603"}]},
}
REQUEST = {
    "resourceType": "MedicationRequest",
    "id": "r1",
    "status": "active",
    "intent": "order",
    "subject": {"reference": "Patient/p1"},
    "authoredOn": "2026-03-01",
    "medicationReference": {"reference": "Medication/m1"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sekmet]:
    if not command():
        missing("no sekmet-fhir: TESSERA_TEST_SEKMET names its command")
    with running(tmp_path_factory.mktemp("sekmet")) as found:
        yield found


@pytest.fixture
def hospital(server: Sekmet, settings: Any, tmp_path: Path) -> Sekmet:
    settings.DATA_DIR = tmp_path
    server.put(a_patient(), MEDICATION, REQUEST, *(a_pressure(f"o{n}") for n in range(250)))
    return server


def held(**wanted: Any) -> int:
    return Observation.objects.filter(**wanted).count()


def test_pages_includes_and_increments(hospital: Sekmet) -> None:
    call_command("ingest", "--fhir", hospital.base, "--source", "ward", "--changed")
    assert held() == 250, "two pages"
    assert Patient.objects.get().medications.get().code == "4603", "the Medication came by _include"
    aside = SetAside.objects.get()  # what it cannot be searched by is not passed over in silence
    assert aside.kind == "FamilyMemberHistory"
    assert "Unknown search parameter 'patient'" in aside.reason
    hospital.put(a_patient("p2"), a_pressure("o-p2", patient="p2"), a_pressure("o0", 155))
    call_command("ingest", "--fhir", hospital.base, "--source", "ward", "--changed")
    assert Observation.objects.get(resource_id="o0").value == 155
    assert set(Patient.objects.values_list("resource_id", flat=True)) == {"p1", "p2"}


def test_bulk_data_and_what_changed_since(hospital: Sekmet) -> None:
    call_command("ingest", "--bulk", hospital.base, "--source", "ward")
    assert held(patient__resource_id="p1") == 250
    hospital.put(a_pressure("o1", 166))
    call_command("ingest", "--bulk", hospital.base, "--source", "ward")
    assert Observation.objects.get(resource_id="o1").value == 166


def test_rest_hooks_with_and_without_payload(hospital: Sekmet, live_server: Any, settings: Any) -> None:
    settings.PUBLIC_URL = live_server.url
    for payload in ("empty", "full-resource"):
        made = subscribe(hospital, "--criteria", "Observation?", "--payload", payload)
        hospital.put(a_pressure(f"o-{payload}", 177))
        wait_for(lambda: Errand.objects.exists())
        work()
        assert held(resource_id=f"o-{payload}", value=177) == 1
        call_command("fhir_subscription", "remove", str(made.pk))


def test_topics_of_the_backport(hospital: Sekmet, live_server: Any, settings: Any) -> None:
    settings.PUBLIC_URL = live_server.url
    made = subscribe(
        hospital, "--shape", "backport", "--topic", TOPIC, "--payload", "id-only", "--heartbeat", "10"
    )
    wait_for(lambda: hospital.read("Subscription", made.server_id)["status"] == "active")
    hospital.put(a_patient("p1", birthDate="1951-01-01"))
    wait_for(lambda: Subscription.objects.get().events_seen == 1)
    work()
    assert Patient.objects.get(resource_id="p1").birth_date.year == 1951
    made.refresh_from_db()
    assert (made.status, made.gap, made.last_error) == ("active", "", "")
    call_command("fhir_subscription", "remove", str(made.pk))


def subscribe(hospital: Sekmet, *options: str) -> Subscription:
    call_command("fhir_subscription", "add", hospital.base, "--source", "ward", *options)
    return Subscription.objects.get()


def work() -> None:
    """As a worker would, until nothing is left to do."""
    for _ in range(5):
        for errand in Errand.objects.order_by("queued_at"):
            errands.run(str(errand.pk))


def wait_for(is_so: Callable[[], bool], *, at_most_s: float = 30) -> None:
    until = time.monotonic() + at_most_s
    while not is_so():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.1)


def test_a_score_goes_back_as_a_report_where_no_risk_assessment_is_taken(hospital: Sekmet) -> None:
    call_command("ingest", "--fhir", hospital.base, "--source", "ward")
    patient = Patient.objects.get(resource_id="p1")
    call_command("destination", "add", "ehr", hospital.base, "--source", "ward")
    with pytest.raises(CommandError, match="does not know this type; with --kind diagnostic-report"):
        call_command("destination", "test", "ehr")
    call_command("destination", "remove", "ehr")
    kinds = ("--kind", "diagnostic-report", "--kind", "provenance")
    call_command("destination", "add", "ehr", hospital.base, "--source", "ward", *kinds)
    call_command("destination", "test", "ehr")
    now = timezone.now()
    score_by_hand(patient, make_version(), say(risk=0.42), now=now)
    send_all(now=now + timedelta(seconds=1))
    send_all(now=now + timedelta(seconds=2))
    assert states() == dict.fromkeys(("device", "diagnostic-report", "provenance"), "done")
    remote = Document.objects.get(kind="diagnostic-report").remote
    report = hospital.read(*remote.split("/"))
    assert report["subject"] == {"reference": f"Patient/{patient.resource_id}"}
    assert report["conclusion"].startswith("42% (")
