"""Something is away, and the answer still says what is known. INTEROP 11, 23."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone

from cds.celery import app
from cds.hooks import spending
from cds.hooks.models import HookClient
from cds.jobs import outbox
from cds.jobs.models import OutboxMessage
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import SERVICE, Call, heart_rate, hook_body, make_score, searchset
from tests.flows.workers import free_port


@pytest.mark.django_db(transaction=True)
def test_without_a_broker_the_card_comes_and_the_work_is_kept(
    call: Call, version: ModelVersion, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setattr(app.conf, "broker_url", nobody)
    monkeypatch.setattr(outbox, "_away_until", 0.0)
    spending._view.cache_clear()
    settings.HOOKS_REDIS_URL = nobody
    assert call(SERVICE, hook_body()).status_code == 503  # its token may have been used in Redis: sign anew
    HookClient.objects.update(database_from=timezone.now() - timedelta(minutes=1))  # all know by now
    response = call(SERVICE, hook_body())
    assert response.status_code == 200
    assert "not yet known" in response.json()["cards"][0]["summary"]
    assert OutboxMessage.objects.filter(sent_at=None).exists()


def test_without_a_worker_the_last_number_comes_as_stale(
    call: Call, version: ModelVersion, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("cds.risk.assessing.time.sleep", waited.append)
    clock = iter(range(1000))
    monkeypatch.setattr("cds.risk.assessing.time.monotonic", lambda: next(clock) / 100)
    call(SERVICE, hook_body())
    make_score(Patient.objects.get(), version)
    settings.HOOKS_WAIT_S = 0.3
    vitals = searchset(heart_rate(131, at=Patient.objects.get().changed_at, resource_id="hr2"))
    (card,) = call(SERVICE, hook_body(prefetch={"vitals": vitals})).json()["cards"]
    assert card["summary"].startswith("Stale: was 31 %")
    assert 10 < len(waited) < 40  # bounded: as long as the setting says, and no longer


def test_with_no_time_left_the_score_is_not_waited_for(
    call: Call, version: ModelVersion, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.HOOKS_WAIT_S = 0.3
    monkeypatch.setattr("cds.hooks.budget.RESERVE_S", 1000.0)
    monkeypatch.setattr("cds.risk.assessing.time.sleep", lambda _: pytest.fail("waited"))
    assert call(SERVICE, hook_body()).status_code == 200


@pytest.mark.parametrize(
    "place", ["cds.hooks.keeping.recording.record", "cds.hooks.views.assessing.current_of"]
)
def test_a_database_that_goes_away_in_the_middle_is_503(
    call: Call, version: ModelVersion, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("server closed the connection")

    monkeypatch.setattr(place, away)
    response = call(SERVICE, hook_body(), Origin="https://ehr.example.org")
    assert response.status_code == 503
    assert response["Retry-After"]
    assert response["Access-Control-Allow-Origin"] == "https://ehr.example.org"
