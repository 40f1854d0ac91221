"""A slow EHR holds a launch for some seconds, not for as long as it likes; what came in time is kept."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from cds.launch.models import SmartServer
from cds.patients.models import Patient
from cds.subscriptions.models import Errand, Subscription
from tests.launching_ehr import LaunchingEhr
from tests.web import launches


@pytest.fixture
def slow(server: LaunchingEhr, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer about a record takes three seconds of a clock of its own."""
    now = 0.0
    monkeypatch.setattr("ehr.calling.monotonic", lambda: now)
    answer = server.read

    def read(*args: Any) -> tuple[int, dict[str, Any]]:
        nonlocal now
        now += 3
        return answer(*args)

    monkeypatch.setattr(server, "read", read)


def _records_asked(server: LaunchingEhr) -> list[str]:
    return [path for path in server.asked if path.startswith("/fhir/") and ".well-known" not in path]


def test_what_came_in_time_is_shown_and_said(
    registered: SmartServer, server: LaunchingEhr, slow: None
) -> None:
    client = Client()
    there = launches.launch(client, server)["Location"]
    assert _records_asked(server) == ["/fhir/Patient/p1", "/fhir/Encounter", "/fhir/Condition"]
    page = client.get(there).content.decode()
    assert "Sommer" in page
    assert "did not give the whole record within 8 seconds" in page
    assert "the rest is being fetched" not in page


def test_a_worker_fetches_the_rest_where_it_can_sign_in(
    registered: SmartServer, server: LaunchingEhr, slow: None
) -> None:
    """By the sign-in of a Subscription to that server: the launch's token is never kept."""
    held = Subscription.objects.create(
        source=registered.source, base_url=server.fhir, secret_digest="x", shape="r4",
        created_at=timezone.now(), good_until=timezone.now(),
    )  # fmt: skip
    client = Client()
    there = launches.launch(client, server)["Location"]
    assert "the rest is being fetched" in client.get(there).content.decode()
    errand = Errand.objects.get()
    assert (errand.subscription, errand.foci) == (held, [["Patient", "p1", "p1", False]])


def test_without_even_the_patient_nobody_is_let_in(
    registered: SmartServer, server: LaunchingEhr, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cds.ingesting.AWAITED_IN_ALL_S", 0.0)
    answer = launches.launch(Client(), server)
    assert answer.status_code == 503
    assert not Patient.objects.exclude(digest="").exists()
