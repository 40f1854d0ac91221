"""What a worker takes first from a real Redis: heat maps wait for whatever else waits in their queue."""

from __future__ import annotations

import uuid
from unittest.mock import patch

import pytest
from celery import Celery
from django.utils import timezone
from kombu import Connection

from cds.jobs import QUEUES, Job, Queue, outbox
from cds.jobs.models import OutboxMessage
from tests.services.conftest import Services

pytestmark = [pytest.mark.service, pytest.mark.django_db(transaction=True)]


def test_heat_maps_hold_up_nothing(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = f"test-{uuid.uuid4()}"
    redis_app = Celery(broker=services.redis_url, set_as_current=False)
    monkeypatch.setattr(outbox, "app", redis_app)
    now = timezone.now()
    with patch.dict(QUEUES, dict.fromkeys(QUEUES, _Named(queue))), Connection(services.redis_url) as broker:
        for number in range(3):
            outbox.enqueue(Job.EXPLAIN, now=now, assessment_id=str(number))
        outbox.enqueue(Job.ASSESS_ALL, now=now, outcome="death")
        outbox.enqueue(Job.EXPLAIN, now=now, assessment_id="3")
        outbox.enqueue(Job.ENCODE, now=now, encoding_id="4")
        assert OutboxMessage.objects.filter(sent_at=None).count() == 0
        assert outbox.messages_in(_Named(queue)) == 6  # type: ignore[arg-type]
        taken = []
        with broker.SimpleQueue(queue) as waiting:
            for _ in range(6):
                message = waiting.get(timeout=5)
                taken.append(message.headers["task"])
                message.ack()
            waiting.queue.delete()
    assert taken == [Job.ASSESS_ALL, Job.ENCODE, *[Job.EXPLAIN] * 4]


class _Named(str):
    """A queue of this test's own, in the place of one of `Queue`."""

    value = property(str)


def test_what_is_last_shares_its_queue() -> None:
    assert QUEUES[Job.EXPLAIN] == QUEUES[Job.ENCODE] == Queue.BATCH
