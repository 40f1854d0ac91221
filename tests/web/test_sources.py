"""The Sources screen: state, progress, reasons, the export, and what its buttons do."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
from django.test import Client
from django.utils import timezone

from cds.audit.models import AuditEvent
from cds.jobs import Job
from cds.jobs.models import OutboxMessage, WorkState
from cds.patients import sources
from cds.patients.models import NOT_READ, RunKind, SetAside, Source
from cds.sending import destinations
from cds.sending.models import Destination, Document
from cds.subscriptions.models import Subscription
from tests.cds.sending import results
from tests.web.clinic import BY, Clinic

pytestmark = pytest.mark.django_db


def text(client: Client, address: str, **headers: str) -> str:
    answer = client.get(address, headers=headers)
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_running_export_is_seen_on_both_pages(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    source, client = Source.objects.get(), sign_in("admin")
    run = sources.begin(source, kind=RunKind.BULK, where="https://ehr.example", by=BY, now=timezone.now())
    sources.beat(run, stage="Export files", done=3, total=8, now=timezone.now())
    assert "Export files: 3 of 8" in text(client, "/sources")
    page = text(client, f"/sources/{source.pk}")
    assert "Export files: 3 of 8" in page
    assert "under way" in page
    part = text(client, f"/sources/{source.pk}", **{"HX-Request": "true"})
    assert "Export files: 3 of 8" in part
    assert "<html" not in part


def test_set_aside_is_grouped_and_taken_away_as_harmless_csv(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    source, client, now = Source.objects.get(), sign_in("admin"), timezone.now()
    for number in range(3):
        SetAside.objects.create(
            source=source, where=f"file:{number}", kind="Observation", identity=f"=o{number}",
            reason="unit 'kg' does not fit", first_at=now, last_at=now,
        )  # fmt: skip
    page = text(client, f"/sources/{source.pk}")
    assert page.count('data-testid="reason-row"') == 1
    answer = client.get(f"/sources/{source.pk}/set-aside.csv")
    lines = b"".join(answer.streaming_content).decode().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 4
    assert all(",'=o" in line for line in lines[1:])


def test_what_a_server_promised_to_tell_and_does_not(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    source, client, now = Source.objects.get(), sign_in("admin"), timezone.now()
    held = Subscription.objects.create(
        source=source, base_url="https://ehr.example/fhir", shape="r4", criteria="Observation?",
        status="error", server_id="s1", secret_digest="0" * 64, gap="events between 3 and <5> did not arrive",
        last_error="the server answered 401", good_until=now, created_at=now,
    )  # fmt: skip
    page = text(client, f"/sources/{source.pk}", **{"HX-Request": "true"})
    assert page.count('data-testid="subscription-row"') == 1
    for said in ("it is &#x27;error&#x27;", "between 3 and &lt;5&gt; did not arrive", "answered 401"):
        assert said in page
    assert "https://ehr.example/fhir" in page
    assert "Failing" in text(client, "/sources")
    held.delete()
    assert "subscription-row" not in text(client, f"/sources/{source.pk}")


def test_what_was_not_read_is_told_from_what_was_refused(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    source, client, now = Source.objects.get(), sign_in("admin"), timezone.now()
    for kind in (NOT_READ, NOT_READ, "DICOM"):
        SetAside.objects.create(
            source=source, where=f"C-STORE from PACS {SetAside.objects.count()}", kind=kind,
            reason=f"because it is {kind}", first_at=now, last_at=now,
        )  # fmt: skip
    page = text(client, f"/sources/{source.pk}")
    assert "2 DICOM files without a picture" in page
    assert "because it is DICOM, not read" in page
    assert '<td class="num">1</td></tr>' in text(client, "/sources")


def test_pause_resume_and_test_connection(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    source, client = Source.objects.get(), sign_in("admin")
    client.post(f"/sources/{source.pk}/pause")
    assert "Paused" in text(client, "/sources")
    client.post(f"/sources/{source.pk}/resume")
    source.refresh_from_db()
    assert source.paused_at is None
    client.post(f"/sources/{source.pk}/check")
    assert "Being asked" in text(client, f"/sources/{source.pk}")
    assert OutboxMessage.objects.filter(job=Job.CHECK_SOURCE).count() == 1
    assert client.post(f"/sources/{source.pk}/explode").status_code == 404


@pytest.fixture
def destination(ward: Clinic) -> Destination:
    return results.add_destination(source=ward.patients[0].source)


def test_where_results_go_with_what_waits_and_what_was_refused(
    destination: Destination, sign_in: Callable[[str], Client]
) -> None:
    client = sign_in("admin")
    assert "Nothing sent yet" in text(client, "/sources")
    for _ in range(3):
        results.refuse(destination, "POST /fhir/Device: 422: <b>not</b> here")
    results.refuse(destination, "", state=WorkState.QUEUED)
    Destination.objects.update(last_error="POST /fhir/Device: 422: not here", last_error_at=timezone.now())
    page = text(client, "/sources")
    assert "Refusing" in page
    assert "POST /fhir/Device: 422: not here" in page
    page = text(client, "/destinations/ehr")
    assert page.count('data-testid="refused-row"') == 1
    assert "&lt;b&gt;not&lt;/b&gt;" in page
    part = text(client, "/destinations/ehr", **{"HX-Request": "true"})
    assert "<html" not in part
    assert "the oldest made" in part
    client.post("/destinations/ehr/retry")
    assert not Document.objects.filter(work_state=WorkState.FAILED).exists()
    assert "Sending" in text(client, "/destinations", **{"HX-Request": "true"})
    assert client.get("/destinations")["Location"] == "/sources#destinations", "whoever types it"


def test_a_destination_is_paused_resumed_and_asked(
    destination: Destination, sign_in: Callable[[str], Client]
) -> None:
    client = sign_in("admin")
    client.post("/destinations/ehr/pause")
    assert "Paused" in text(client, "/destinations", **{"HX-Request": "true"})
    client.post("/destinations/ehr/resume")
    destination.refresh_from_db()
    assert destination.is_active
    client.post("/destinations/ehr/check")
    assert "Being asked" in text(client, "/destinations/ehr")
    message = OutboxMessage.objects.get(job=Job.CHECK_DESTINATION)
    with patch("cds.sending.clients.list_problems", return_value=["Device: not offered", "second"]):
        destinations.check(message.kwargs["destination_id"], now=timezone.now())
    assert "Device: not offered<br>second" in text(client, "/destinations/ehr")
    acts = AuditEvent.objects.filter(object_type="Destination", actor__startswith="user:")
    assert set(acts.values_list("action", flat=True)) == {
        "destination.pause", "destination.resume", "destination.check",
    }  # fmt: skip
