"""Batches of feedback through the server as production runs it: what was kept, and what the EHR is told."""

from __future__ import annotations

import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import orjson
import pytest
from django.db import connection, transaction
from django.utils import timezone

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.hooks import answering, serving
from cds.hooks.models import CardShown, Feedback, HookClient
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk import responding
from cds.risk.models import Response
from tests.cds.hooks.conftest import SERVICE, make_score
from tests.cds.hooks.test_serving import ask

pytestmark = pytest.mark.django_db(transaction=True)
URL = f"{SERVICE}/feedback"
only_postgres = pytest.mark.skipif("connection.vendor != 'postgresql'", reason="SQLite has one lock for all")


@pytest.fixture
def server(settings: Any) -> serving.HookServer:
    """With time enough for a busy machine."""
    settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S, settings.HOOKS_FEEDBACK_S = 0, 60.0, 120.0
    return serving.HookServer(threads=2)


def batch(client: HookClient, version: ModelVersion, *, patients: int, items: int) -> list[dict[str, Any]]:
    """Items about cards of so many patients, in no order."""
    now = timezone.now()
    cards = []
    for number in range(patients):
        patient = Patient.objects.create(source=client.source, resource_id=f"p{number}", changed_at=now)
        cards += CardShown.objects.bulk_create(
            CardShown(
                client=client,
                service=SERVICE.rpartition("/")[2],
                hook_instance="h",
                prediction=make_score(patient, version).predictions.get(),
                kind="risk",
                patient=patient,
                version=version,
                shown_at=now - timedelta(hours=1),
            )
            for _ in range(1)
        )
    reason = {"code": "patient-refuses", "system": responding.REASON_SYSTEM}
    sent = [
        {
            "card": str(cards[number % patients].pk),
            "outcome": "overridden",
            "overrideReason": {"reason": reason},
            "outcomeTimestamp": (now - timedelta(seconds=number + 1)).isoformat(),
        }
        for number in range(items)
    ]
    random.Random(5).shuffle(sent)
    return sent


def tell(server: serving.HookServer, items: list[dict[str, Any]]) -> tuple[int, list[dict[str, Any]]]:
    """Status, and issues of the answer."""
    status, headers, body = ask(server, URL, orjson.dumps({"feedback": items}))
    assert status != 503 or headers["retry-after"]
    return status, orjson.loads(body)["issue"] if body else []


def check(kept: int) -> None:
    """So many items are kept whole: with the answer on the panel, and the events of both."""
    assert Feedback.objects.count() == Response.objects.count() == kept
    assert AuditEvent.objects.filter(action="hook.feedback").count() == kept
    assert AuditEvent.objects.filter(action="score.overridden").count() == kept
    assert not [problem for chain in recording.verify() for problem in chain.problems]


def test_a_thousand_items_are_kept_and_others_get_in_between(
    server: serving.HookServer,
    hook_client: HookClient,
    version: ModelVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = batch(hook_client, version, patients=20, items=1000)
    held: list[int] = []
    keep_some = answering._keep_some

    def note(told: Any, **more: Any) -> None:
        held.append(len(told))
        assert len({one.chain for one in told}) == 1, "no transaction holds two chains"
        keep_some(told, **more)

    monkeypatch.setattr(answering, "AT_ONCE", 7)  # does not divide the 50 items of a patient
    monkeypatch.setattr(answering, "_keep_some", note)
    assert tell(server, sent) == (200, [])
    check(1000)
    assert sum(held) == 1000
    assert max(held) <= answering.AT_ONCE
    held.clear()
    assert tell(server, sent) == (200, [])
    assert held == [], "sent once more: nobody is kept waiting"
    check(1000)


def test_out_of_time_says_what_is_kept_and_once_more_goes_on(
    server: serving.HookServer,
    hook_client: HookClient,
    version: ModelVersion,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = batch(hook_client, version, patients=4, items=50)
    sent[7] = {**sent[7], "outcome": "ignored"}
    keep_some, times = answering._keep_some, iter((0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0))

    def slowly(told: Any, **more: Any) -> None:
        keep_some(told, **more)
        if next(times):
            time.sleep(settings.HOOKS_FEEDBACK_S)

    monkeypatch.setattr(answering, "_keep_some", slowly)
    settings.HOOKS_FEEDBACK_S = 3.0
    status, (late, bad) = tell(server, sent)
    kept = Feedback.objects.count()
    assert 0 < kept < 49
    assert (status, late["code"]) == (503, "transient")
    assert late["diagnostics"].startswith(f"{kept} of 50 items are kept")
    assert len(late["expression"]) == 49 - kept
    assert bad["expression"] == ["feedback[7].outcome"]
    check(kept)
    left = [sent[int(where[len("feedback[") : -1])] for where in late["expression"]]
    settings.HOOKS_FEEDBACK_S = 120.0
    assert tell(server, left) == (200, [])
    check(49)


@only_postgres
def test_what_waits_too_long_for_a_lock_is_503_with_what_is_kept(
    server: serving.HookServer, hook_client: HookClient, version: ModelVersion, settings: Any
) -> None:
    sent = batch(hook_client, version, patients=12, items=60)
    chains = sorted(
        {recording.chain_of(one, "Patient", one) for one in Patient.objects.values_list("pk", flat=True)}
    )
    assert len(chains) > 1
    last = next(
        one for one in Patient.objects.all() if recording.chain_of(one.pk, "Patient", one.pk) == chains[-1]
    )
    settings.HOOKS_BUDGET_S = 0.5
    locked, answered = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            recording.hold(patient_id=last.pk)
            locked.set()
            answered.wait(60)
        connection.close()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(hold)
        assert locked.wait(30)
        status, (late,) = tell(server, sent)
        answered.set()
        other.result(30)
    kept = Feedback.objects.count()
    assert status == 503
    assert late["diagnostics"].startswith(f"{kept} of 60 items are kept")
    check(kept)
    settings.HOOKS_BUDGET_S = 60.0
    assert tell(server, sent) == (200, [])
    check(60)


def test_two_batches_at_once_about_the_same_cards(
    server: serving.HookServer, hook_client: HookClient, version: ModelVersion
) -> None:
    sent = batch(hook_client, version, patients=6, items=120)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda items: tell(server, items), (sent, sent[::-1])))
    assert answers == [(200, []), (200, [])]
    check(120)


def test_cards_do_not_wait_for_feedback(
    server: serving.HookServer,
    hook_client: HookClient,
    version: ModelVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = batch(hook_client, version, patients=1, items=1)
    begun, ended = threading.Semaphore(0), threading.Event()

    def wait(*_: Any, **__: Any) -> None:
        begun.release()
        assert ended.wait(60)

    monkeypatch.setattr("cds.hooks.views.answering.keep", wait)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(tell, server, sent) for _ in range(4)]
        for _ in range(serving.FEEDBACK_THREADS):
            assert begun.acquire(timeout=60)
        assert ask(server, "/cds-services")[0] == 200
        ended.set()
        assert [one.result(60)[0] for one in waiting] == [200] * 4


def test_a_card_nobody_showed_is_named_by_its_place(
    server: serving.HookServer, hook_client: HookClient, version: ModelVersion
) -> None:
    sent = batch(hook_client, version, patients=2, items=4)
    sent[2] = {**sent[2], "card": str(uuid.uuid4())}
    status, (unknown, rest) = tell(server, sent)
    assert (status, unknown["code"], unknown["expression"]) == (404, "not-found", ["feedback[2].card"])
    assert rest["diagnostics"].startswith("3 of 4 items are kept")
    check(3)
