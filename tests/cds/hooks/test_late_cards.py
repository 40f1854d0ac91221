"""A card that was kept, and then came too late for its caller, alerted nobody. INTEROP 23."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from datetime import timedelta
from typing import Any

import orjson
import pytest
from django.db import OperationalError
from django.utils import timezone

from cds.audit.models import AuditEvent
from cds.hooks import budget, figures, keeping, serving
from cds.hooks.models import CardShown, HookClient
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import SERVICE, Call, hook_body, make_score
from tests.cds.hooks.test_serving import ask

BODY = hook_body()


@pytest.fixture
def at_high_risk(call: Call, version: ModelVersion) -> Patient:
    call(SERVICE, BODY)
    patient = Patient.objects.get()
    make_score(patient, version)
    CardShown.objects.all().delete()
    return patient


def late_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch has answered while the next call's cards were being committed."""
    keep, calls = keeping._keep, list[int]()

    def slowly(*args: Any, time_left: budget.Budget, **more: Any) -> None:
        keep(*args, time_left=time_left, **more)
        calls.append(1)
        assert time_left.handover is not None
        if len(calls) == 1:
            assert time_left.handover.take()

    def watched(request: Any) -> budget.Budget:
        return budget.Budget(time.monotonic() + 60, handover=budget.Handover())

    monkeypatch.setattr(keeping, "_keep", slowly)
    monkeypatch.setattr("cds.hooks.views.budget.of", watched)


def test_an_alert_that_came_too_late_does_not_quiet_the_next(
    call: Call, at_high_risk: Patient, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_once(monkeypatch)
    response = call(SERVICE, BODY)
    assert response.status_code == 503
    assert response["Retry-After"]
    late = CardShown.objects.get()
    assert (late.was_late, late.indicator) == (True, "warning")
    event = AuditEvent.objects.get(action="hook.late")
    assert (event.patient_id, event.detail["cards"]) == (at_high_risk.pk, [str(late.pk)])
    since = timezone.now() - timedelta(days=1)
    assert (figures.by_hook(version, since=since), figures.kinds(version, since=since)) == ([], [])
    (card,) = call(SERVICE, BODY).json()["cards"]
    assert card["indicator"] == "warning"
    (card,) = call(SERVICE, BODY).json()["cards"]
    assert card["indicator"] == "info"
    (told,) = figures.by_hook(version, since=since)
    assert (told.cards, told.alerts) == (2, 1)


def test_what_cannot_be_marked_is_tried_again_and_then_said(
    call: Call,
    at_high_risk: Patient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    late_once(monkeypatch)
    record, left = keeping.recording.record, [1]

    def slow_still(*, action: str, **more: Any) -> Any:
        if action == "hook.late" and left[0]:
            left[0] -= 1
            raise OperationalError("the database is slow still")
        return record(action=action, **more)

    monkeypatch.setattr(keeping.recording, "record", slow_still)
    with caplog.at_level(logging.ERROR, logger="cds.hooks.keeping"):
        assert call(SERVICE, BODY).status_code == 503
        assert CardShown.objects.get().was_late
        assert "too late" not in caplog.text
        late_once(monkeypatch)
        left[0] = 2
        assert call(SERVICE, BODY).status_code == 503
    assert "1 cards that came too late count as shown" in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("watch_is_first", [True, False])
def test_the_watch_and_the_thread_never_say_two_things(
    hook_client: HookClient,
    version: ModelVersion,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    *,
    watch_is_first: bool,
) -> None:
    """A card counts as shown exactly when its caller gets it, whichever of the two is first by a hair."""
    settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S = 0, 60.0
    server = serving.HookServer(threads=1)
    kept, answered = threading.Event(), threading.Event()
    keep_shown, keep = keeping.keep_shown, keeping._keep

    def committed_late(*args: Any, **more: Any) -> None:
        keep(*args, **more)
        if watch_is_first:
            kept.set()
            assert answered.wait(60)

    def handed_over(*args: Any, **more: Any) -> Any:
        shown = keep_shown(*args, **more)
        kept.set()
        return shown

    async def over(work: set[Any], *, timeout: float) -> tuple[set[Any], set[Any]]:
        while not kept.is_set():
            await asyncio.sleep(0.01)
        return set(), work

    monkeypatch.setattr(keeping, "_keep", committed_late)
    monkeypatch.setattr(keeping, "keep_shown", handed_over)
    monkeypatch.setattr("cds.hooks.serving.asyncio.wait", over)
    status, _, body = ask(server, SERVICE, orjson.dumps(BODY))
    answered.set()
    server._threads.submit(lambda: None).result(60)
    assert status == (503 if watch_is_first else 200)
    assert CardShown.objects.get().was_late is watch_is_first
    assert ("cards" in orjson.loads(body)) is not watch_is_first
