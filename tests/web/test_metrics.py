"""`/metrics`: how the work stands, in Prometheus' format, and what is left out while nobody knows."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.db import DatabaseError, InterfaceError
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from cds import metrics
from cds.jobs import Job, Queue, outbox, queues
from cds.jobs.models import OutboxMessage, WorkState
from cds.risk.models import RiskAssessment
from tests.web import clinic


def scrape() -> dict[tuple[str, str], float]:
    """(name, queue) → value, of what is ours."""
    answer = Client().get("/metrics")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain")
    return {
        (sample.name, sample.labels.get("queue", "")): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
        if sample.name.startswith("tessera_")
    }


def all_but_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_alive", lambda: {queue: queue is not Queue.TRAIN for queue in Queue})
    monkeypatch.setattr(outbox, "messages_in", lambda queue: 7 if queue is Queue.BATCH else 0)


@pytest.mark.usefixtures("transactional_db")
def test_queues_workers_and_the_outbox_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    all_but_train(monkeypatch)
    clinic.build(patients=2)
    one = RiskAssessment.objects.filter(work_state=WorkState.DONE)[:1]
    RiskAssessment.objects.filter(pk__in=[made.pk for made in one]).update(work_state=WorkState.RUNNING)
    since = timezone.now() - timedelta(minutes=5)
    OutboxMessage.objects.create(job=Job.ENCODE, kwargs={"encoding_id": 1}, created_at=since)
    told = scrape()
    assert told["tessera_database_up", ""] == told["tessera_broker_up", ""] == 1
    assert told["tessera_queue_running", "interactive"] == 1
    assert told["tessera_queue_waiting", "batch"] == 7
    assert told["tessera_queue_has_worker", "interactive"] == 1
    assert told["tessera_queue_has_worker", "train"] == 0
    assert told["tessera_outbox_unsent", ""] == 1
    assert 300 <= told["tessera_outbox_oldest_seconds", ""] < 400
    assert "django_http_responses_total_by_status_total" in Client().get("/metrics").content.decode()


@pytest.mark.usefixtures("transactional_db")
def test_without_a_broker_nobody_knows_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_alive", lambda: dict.fromkeys(Queue))
    told = scrape()
    assert told["tessera_broker_up", ""] == 0
    assert told["tessera_database_up", ""] == 1
    assert told["tessera_queue_waiting", "interactive"] == 0
    assert not [name for name, _ in told if name == "tessera_queue_has_worker"]


def fails() -> list[queues.QueueState]:
    raise DatabaseError("away")


def is_closed() -> list[queues.QueueState]:
    raise InterfaceError("the connection is closed")


def hangs() -> list[queues.QueueState]:
    time.sleep(1.0)
    return []


@pytest.mark.parametrize("ask", [fails, is_closed, hangs])
@pytest.mark.usefixtures("transactional_db")
def test_a_database_that_is_away_or_hangs_is_told_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, ask: object
) -> None:
    monkeypatch.setattr(queues, "list_states", ask)
    monkeypatch.setattr(metrics, "WITHIN_S", 0.2)
    assert scrape() == {("tessera_database_up", ""): 0}
    if ask is hangs:
        time.sleep(1.0)  # the one thread is free again for whoever comes next
