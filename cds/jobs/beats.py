"""Is a worker alive behind each queue? Workers say so in Redis every second or two; readiness reads it.

A worker counts only while the children of its pool are alive: a worker elsewhere stayed "healthy" for ten
hours with a dead pool. The word expires by itself, so a killed worker is missed within `EXPIRES_MS`.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import redis
from celery.signals import worker_ready, worker_shutdown
from django.conf import settings

from cds.jobs import Queue

logger = logging.getLogger(__name__)
EVERY_S = 1.5
EXPIRES_MS = 4500
_stop = threading.Event()


def connect(timeout_s: float = 1.0) -> redis.Redis:
    """The broker's Redis, for one quick question: no retries."""
    client: redis.Redis = redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    )
    return client


def beat(client: redis.Redis, queues: list[str]) -> None:
    """Say that somebody works on these queues."""
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.set(_key(queue), "1", px=EXPIRES_MS)
        pipe.execute()


def alive(client: redis.Redis) -> dict[Queue, bool]:
    """Which queues somebody works on. Raises redis.RedisError when the broker is out of reach."""
    answers = client.mget([_key(queue) for queue in Queue])
    return {queue: answer is not None for queue, answer in zip(Queue, answers, strict=True)}


def pool_is_alive(pool: Any) -> bool:
    """Whether work can be done: a pool of processes needs one that lives; threads live as the worker does."""
    children = getattr(getattr(pool, "_pool", None), "_pool", None)
    if not isinstance(children, list):
        return True
    return any(child.is_alive() for child in children if hasattr(child, "is_alive"))


def _key(queue: str) -> str:
    return f"tessera:alive:{queue}"


@worker_ready.connect
def _start(sender: Any = None, **_: Any) -> None:
    """Begin to beat once the worker takes jobs. `sender` is Celery's Consumer."""
    _stop.clear()
    queues = sorted(sender.app.amqp.queues.consume_from)
    threading.Thread(target=_keep_beating, args=(sender.pool, queues), name="alive", daemon=True).start()


@worker_shutdown.connect
def _end(**_: Any) -> None:
    _stop.set()


def _keep_beating(pool: Any, queues: list[str]) -> None:
    client = connect()
    while True:
        try:
            if pool_is_alive(pool):
                beat(client, queues)
        except redis.RedisError:  # the broker is away: readiness sees that by itself
            logger.debug("cannot say that we are alive: broker out of reach")
        if _stop.wait(EVERY_S):
            return
