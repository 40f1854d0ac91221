"""Sending jobs: written with the work, published after commit, sent again by the sweeper when that failed."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import redis
import structlog
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from kombu.exceptions import ChannelError, OperationalError

from cds.celery import app
from cds.jobs import FIRST_PRIORITY, LAST, LAST_PRIORITY, QUEUES, Job, Queue
from cds.jobs.models import LiveEvent, OutboxMessage
from cds.statements import Insertion

logger = logging.getLogger(__name__)
RESEND_AFTER = timedelta(seconds=10)
KEEP_SENT = timedelta(hours=1)
PUBLISH_BATCH = 500
PAUSE_S = 2.0  # after the broker refused, nobody else waits for it that long: the sweeper sends what piled up
_away_until = 0.0  # time.monotonic()
KNOCK_S = 0.3
_messages, _events = Insertion(OutboxMessage), Insertion(LiveEvent)


def enqueue(job: Job, *, now: datetime, **ids: str) -> None:
    """Ask for `job` to run after this transaction commits. `ids` are strings; no patient data."""
    enqueue_many(job, [ids], now=now)


def enqueue_many(job: Job, wanted: Iterable[Mapping[str, str]], *, now: datetime) -> None:
    """Ask for `job` once for each of these ids."""
    context = structlog.contextvars.get_contextvars()
    correlation_id = str(context.get("correlation_id") or context.get("request_id") or "")
    messages = [
        OutboxMessage(job=job, kwargs={**ids, "correlation_id": correlation_id}, created_at=now)
        for ids in wanted
    ]
    if len(messages) == 1:
        _messages.insert(messages[0])
    else:
        OutboxMessage.objects.bulk_create(messages)
    if messages:
        transaction.on_commit(lambda: _publish_unless_away(messages), robust=True)


def _publish_unless_away(messages: Iterable[OutboxMessage]) -> None:
    sent = []
    for message in messages:
        if time.monotonic() < _away_until or not _publish(message):
            break
        sent.append(message.pk)
    OutboxMessage.objects.filter(pk__in=sent).update(sent_at=timezone.now())


def publish(message: OutboxMessage) -> bool:
    """Hand one message to the broker; False when the broker is out of reach (the sweeper tries again)."""
    is_sent = _publish(message)
    if is_sent:
        OutboxMessage.objects.filter(pk=message.pk).update(sent_at=timezone.now())
    return is_sent


def _publish(message: OutboxMessage) -> bool:
    global _away_until
    job = Job(message.job)
    try:
        _check_broker()
        app.signature(job.value, kwargs=message.kwargs).apply_async(
            queue=QUEUES[job].value,
            retry=False,
            priority=LAST_PRIORITY if job in LAST else FIRST_PRIORITY,
        )
    except (OperationalError, OSError):
        _away_until = time.monotonic() + PAUSE_S
        OutboxMessage.objects.filter(pk=message.pk).update(tries=F("tries") + 1)
        logger.warning("broker out of reach; job kept in the outbox", extra={"job": message.job})
        return False
    return True


def _check_broker() -> None:
    """Knock before publishing, and wait for an answer, whatever a Redis says to PING. Raises OSError.

    The client would try a dead address for six seconds, and wait five for one that is silent.
    """
    broker = urlsplit(str(app.conf.broker_url))
    if broker.scheme not in ("redis", "rediss") or not broker.hostname:
        return
    with socket.create_connection((broker.hostname, broker.port or 6379), timeout=KNOCK_S) as door:
        if broker.scheme == "redis":  # not through TLS: there the connection has to do
            door.sendall(b"PING\r\n")
            if not door.recv(1):
                raise ConnectionError("the broker closed the connection")


def messages_in(queue: Queue) -> int | None:
    """How many messages wait in a queue; None while the broker is out of reach."""
    try:
        _check_broker()
        with app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            return int(channel.queue_declare(queue.value, passive=True).message_count)
    except ChannelError:
        return 0  # nobody has used it yet
    except (OperationalError, OSError, redis.RedisError):
        return None


def resend(now: datetime) -> int:
    """Publish what is still unsent; stop at the first refusal of the broker. Returns how many went out."""
    sent = 0
    waiting = OutboxMessage.objects.filter(sent_at=None, created_at__lt=now - RESEND_AFTER).order_by("pk")
    for message in waiting[:PUBLISH_BATCH]:
        if not publish(message):
            break
        sent += 1
    OutboxMessage.objects.filter(sent_at__lt=now - KEEP_SENT).delete()
    LiveEvent.objects.filter(at__lt=now - KEEP_SENT).delete()
    return sent


def tell(kind: str, subject: object, *, now: datetime, patient_id: UUID | str | None = None) -> None:
    """Note a change for the screens' event stream, in the caller's transaction."""
    _events.insert(LiveEvent(kind=kind, subject=str(subject), patient_id=patient_id, at=now))
