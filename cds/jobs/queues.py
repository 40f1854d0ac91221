"""How much waits behind each queue, by rows and by the broker, and whether anybody works on it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import redis
from django.db.models import Count, Min, Q

from cds.jobs import QUEUES, Queue, beats, leases, outbox
from cds.jobs.models import OutboxMessage, WorkState


@dataclass(frozen=True, slots=True)
class QueueState:
    """Work of one queue. `is_alive` is None while the broker is out of reach.

    waiting  rows of leased work, or messages where they are more: some jobs (heat maps) have no row
    """

    queue: Queue
    waiting: int
    running: int
    is_alive: bool | None


@dataclass(frozen=True, slots=True)
class Unsent:
    """Jobs that no broker has taken yet, and since when the oldest waits."""

    count: int
    oldest: datetime | None


def list_states() -> list[QueueState]:
    """Every queue, in its order. One query for each kind of work, one question to Redis for each queue."""
    waiting, running = dict.fromkeys(Queue, 0), dict.fromkeys(Queue, 0)
    for model in leases.work_models():
        counted = model._default_manager.filter(
            work_state__in=[WorkState.QUEUED, WorkState.RUNNING]
        ).aggregate(
            waiting=Count("pk", filter=Q(work_state=WorkState.QUEUED)),
            running=Count("pk", filter=Q(work_state=WorkState.RUNNING)),
        )
        queue = QUEUES[model.JOB]
        waiting[queue] += counted["waiting"]
        running[queue] += counted["running"]
    alive = _alive()
    for queue, is_alive in alive.items():
        if is_alive is not None:
            waiting[queue] = max(waiting[queue], outbox.messages_in(queue) or 0)
    return [QueueState(queue, waiting[queue], running[queue], alive[queue]) for queue in Queue]


def unsent() -> Unsent:
    """What the outbox still holds: nothing, unless the broker is away."""
    found = OutboxMessage.objects.filter(sent_at=None).aggregate(count=Count("pk"), oldest=Min("created_at"))
    return Unsent(found["count"], found["oldest"])


def _alive() -> dict[Queue, bool | None]:
    try:
        with beats.connect() as client:
            return dict(beats.alive(client))
    except (redis.RedisError, OSError):
        return dict.fromkeys(Queue)
