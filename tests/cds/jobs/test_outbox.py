"""The outbox: a job is as certain as the row it stands beside, whatever the broker does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from threading import Thread
from typing import Any
from unittest.mock import Mock

import pytest
import structlog
from celery import Celery
from django.db import transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from cds.jobs import QUEUES, Job, Queue, outbox, tasks
from cds.jobs.models import LiveEvent, OutboxMessage

pytestmark = pytest.mark.django_db(transaction=True)


class _Broker:
    """What was sent, and whether the broker is there."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any], str]] = []
        self.is_away = False

    def signature(self, name: str, kwargs: dict[str, Any]) -> _Broker:
        self.asked = (name, kwargs)
        return self

    def apply_async(self, queue: str, retry: bool, priority: int) -> None:
        assert retry is False
        assert priority == (9 if self.asked[0] == Job.EXPLAIN else 0)
        if self.is_away:
            raise OperationalError("refused")
        self.sent.append((*self.asked, queue))


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> _Broker:
    fake = _Broker()
    monkeypatch.setattr(outbox, "app", fake)
    monkeypatch.setattr(outbox, "_check_broker", lambda: None)
    monkeypatch.setattr(outbox, "_away_until", 0.0)
    return fake


@contextmanager
def at_the_door(answer: bytes | None) -> Iterator[str]:
    """The URL of somebody who takes connections and says this to whatever comes; None: nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as door, ExitStack() as taken:

        def take() -> None:
            with suppress(OSError):
                while True:
                    one = taken.enter_context(door.accept()[0])
                    if answer is not None:
                        one.recv(100)
                        one.sendall(answer)
                        one.close()

        Thread(target=take, daemon=True).start()
        yield f"redis://127.0.0.1:{door.getsockname()[1]}/0"


@pytest.mark.parametrize(
    ("answer", "is_there"),
    [(b"+PONG\r\n", True), (b"-NOAUTH Authentication required.\r\n", True), (b"", False), (None, False)],
)
def test_a_broker_that_takes_connections_and_is_silent_is_away(
    answer: bytes | None, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client would wait five seconds for it, and a hook call has half of one."""
    published: list[str] = []
    monkeypatch.setattr(outbox, "_away_until", 0.0)
    monkeypatch.setattr(outbox, "KNOCK_S", 0.3 if not is_there else 30.0)
    with at_the_door(answer) as url:
        fake = Mock(conf=Mock(broker_url=url))
        fake.signature.return_value.apply_async.side_effect = lambda **_: published.append("sent")
        monkeypatch.setattr(outbox, "app", fake)
        outbox.enqueue(Job.SCORE, now=timezone.now(), assessment_id="a1")
    assert bool(published) is is_there
    assert (OutboxMessage.objects.get().sent_at is not None) is is_there


def test_a_job_goes_out_after_the_commit_to_its_queue(broker: _Broker) -> None:
    with transaction.atomic(), structlog.contextvars.bound_contextvars(request_id="r1"):
        outbox.enqueue(Job.SCORE, now=timezone.now(), assessment_id="a1")
        assert broker.sent == []
    assert broker.sent == [
        (Job.SCORE.value, {"assessment_id": "a1", "correlation_id": "r1"}, Queue.INTERACTIVE.value)
    ]
    assert OutboxMessage.objects.get().sent_at is not None


def test_a_rolled_back_act_sends_nothing(broker: _Broker) -> None:
    with transaction.atomic():
        outbox.enqueue(Job.SCORE, now=timezone.now(), assessment_id="a1")
        transaction.set_rollback(True)
    assert broker.sent == []
    assert not OutboxMessage.objects.exists()


def test_while_the_broker_is_away_the_act_stands_and_the_job_waits(broker: _Broker) -> None:
    broker.is_away = True
    now = timezone.now()
    for number in range(3):
        outbox.enqueue(Job.ENCODE, now=now, encoding_id=str(number))
    kept = OutboxMessage.objects.order_by("pk")
    assert [message.sent_at for message in kept] == [None] * 3
    assert [message.tries for message in kept] == [1, 0, 0]  # after one refusal the others do not wait
    broker.is_away = False
    assert outbox.resend(now) == 0  # too fresh: its own publisher may still be at it
    assert outbox.resend(now + timedelta(seconds=11)) == 3
    assert [kwargs["encoding_id"] for _, kwargs, _ in broker.sent] == ["0", "1", "2"]
    assert outbox.resend(now + timedelta(seconds=22)) == 0


def test_resending_stops_at_the_first_refusal(broker: _Broker) -> None:
    broker.is_away = True
    now = timezone.now()
    for number in range(3):
        outbox.enqueue(Job.ENCODE, now=now, encoding_id=str(number))
    assert outbox.resend(now + timedelta(seconds=11)) == 0
    assert sorted(OutboxMessage.objects.values_list("tries", flat=True)) == [0, 0, 2]


def test_what_was_sent_is_forgotten_after_an_hour_and_the_rest_is_not(broker: _Broker) -> None:
    now = timezone.now()
    outbox.enqueue(Job.SCORE, now=now, assessment_id="a1")
    OutboxMessage.objects.create(job=Job.SCORE, kwargs={}, created_at=now + timedelta(hours=2))
    outbox.tell("study", "s1", now=now)
    outbox.resend(now + timedelta(hours=2))
    assert OutboxMessage.objects.get().sent_at is None
    assert not LiveEvent.objects.exists()


def test_every_job_has_a_queue() -> None:
    assert set(QUEUES) == set(Job)
    assert set(QUEUES.values()) <= set(Queue)


def test_a_task_gets_its_ids_under_one_correlation_id_and_drops_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "app", Celery("tests", set_as_current=False))
    seen: dict[str, Any] = {}

    @tasks.task(Job.EXPLAIN)
    def explain(assessment_id: str) -> None:
        seen.update(structlog.contextvars.get_contextvars(), id=assessment_id)

    explain.apply(kwargs={"assessment_id": "a1", "correlation_id": "c1", "added_later": "x"}, throw=True)
    assert (seen["id"], seen["correlation_id"], seen["job"]) == ("a1", "c1", Job.EXPLAIN.value)
    assert explain.acks_late
