"""Claiming work, keeping the claim alive, giving it back, and sweeping up after workers that died.

A worker killed at any moment leaves a row in `running` whose lease runs out; the sweeper queues it again, and
after MAX_STARTS starts ends it as failed with a reason. Results are stored only while the lease is still ours
(`finish` is a compare-and-set), so a worker that was only slow cannot store a second result.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from django.apps import apps
from django.db import connection, transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from cds.jobs import QUEUES, outbox
from cds.jobs.models import LeasedWork, WorkState

WorkT = TypeVar("WorkT", bound=LeasedWork)
logger = logging.getLogger(__name__)
LEASE = timedelta(seconds=20)
HEARTBEAT_S = 5.0
FORGOTTEN_AFTER = timedelta(seconds=60)  # queued, fewer messages than work: some are lost
LONG_FORGOTTEN = timedelta(minutes=30)  # queued, and as many messages as work

TRANSITIONS: dict[WorkState, frozenset[WorkState]] = {
    WorkState.QUEUED: frozenset({WorkState.RUNNING, WorkState.CANCELLED, WorkState.FAILED}),
    WorkState.RUNNING: frozenset({WorkState.QUEUED, WorkState.DONE, WorkState.FAILED, WorkState.CANCELLED}),
    WorkState.DONE: frozenset(),
    WorkState.FAILED: frozenset({WorkState.QUEUED}),
    WorkState.CANCELLED: frozenset(),
}


class LeaseLost(Exception):
    """Somebody else holds the work now (we were too slow), or it was cancelled. Store nothing."""


def owner_name() -> str:
    """Who we are: host, process, and a random part, so that a recycled pid is never mistaken for us."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def claim(model: type[WorkT], pk: object) -> WorkT | None:
    """Take the work, or None when it is done, held, cancelled or unknown: there is nothing to do then."""
    now, owner = timezone.now(), owner_name()
    free = Q(work_state=WorkState.QUEUED) | Q(work_state=WorkState.RUNNING, lease_until__lt=now)
    taken = model._default_manager.filter(free, pk=pk, starts__lt=model.MAX_STARTS).update(
        work_state=WorkState.RUNNING,
        lease_owner=owner,
        lease_until=now + LEASE,
        starts=F("starts") + 1,
        started_at=now,
    )
    return model._default_manager.get(pk=pk) if taken else None


def extend(work: LeasedWork) -> bool:
    """Push the lease forward; False when it is no longer ours."""
    return bool(_ours(work).update(lease_until=timezone.now() + LEASE))


def check_still_ours(work: LeasedWork) -> None:
    """Lock the row inside the caller's transaction; raise LeaseLost when the work is no longer ours."""
    if not _ours(work).select_for_update().exists():
        raise LeaseLost(f"{work._meta.label} {work.pk}")


def finish(
    work: LeasedWork,
    *,
    now: datetime,
    state: WorkState = WorkState.DONE,
    failure: str = "",
    **results: Any,
) -> None:
    """End the work inside the caller's transaction, with its result. Raises LeaseLost, storing nothing.

    results  columns of the work's row that are set with it
    """
    if state not in TRANSITIONS[WorkState.RUNNING]:
        raise ValueError(f"running work cannot become {state}")
    columns = {
        "work_state": state,
        "failure": failure[:500],
        "finished_at": now,
        "lease_until": None,
        "lease_owner": "",
        **results,
    }
    if not _ours(work).update(**columns):
        raise LeaseLost(f"{work._meta.label} {work.pk}")
    for name, value in columns.items():
        setattr(work, name, value)


def give_back(work: LeasedWork, *, now: datetime, reason: str) -> None:
    """A retriable fault: queue again, or fail with the reason when MAX_STARTS is reached."""
    _retry_or_fail(work, now=now, reason=reason)


class _Pulse:
    """One thread of this process that extends every lease held in it, every few seconds.

    Most work is done before its first beat: then it has cost neither a thread nor a connection.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[LeasedWork, threading.Event]] = {}
        self._guard, self._thread = threading.Lock(), threading.Thread()

    def hold(self, work: LeasedWork) -> threading.Event:
        lost = threading.Event()
        with self._guard:
            self._held[id(work)] = (work, lost)
            if not self._thread.is_alive():  # the first, or a forked process
                self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)
                self._thread.start()
        return lost

    def let_go(self, work: LeasedWork) -> None:
        with self._guard:
            self._held.pop(id(work), None)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            with self._guard:
                held = list(self._held.values())
                if not held:  # whoever holds work next starts another thread
                    self._thread = threading.Thread()
                    return
            for work, lost in held:
                try:
                    if not extend(work):
                        lost.set()
                        self.let_go(work)
                except Exception:  # the database may be away for a while: keep beating
                    logger.warning("heartbeat failed", exc_info=True)
            connection.close()


_pulse = _Pulse()


@contextmanager
def heartbeat(work: LeasedWork) -> Iterator[threading.Event]:
    """Extend the lease every few seconds while the body runs. The event is set once the lease is lost."""
    lost = _pulse.hold(work)
    try:
        yield lost
    finally:
        _pulse.let_go(work)


def sweep(now: datetime) -> dict[str, int]:
    """Queue or fail work whose worker died, wake work nobody took, resend the outbox. Returns counts.

    Work that waits its turn behind other messages is not announced again: a queue would grow by all of it
    every minute.
    """
    counts = {"requeued": 0, "failed": 0, "woken": 0, "sent": outbox.resend(now)}
    for model in work_models():
        died = model._default_manager.filter(work_state=WorkState.RUNNING, lease_until__lt=now)
        for work in died[:500]:
            ended = _retry_or_fail(work, now=now, reason="the worker stopped while working on it")
            counts[ended] += 1
        for work in _forgotten(model, now):
            with transaction.atomic():
                if model._default_manager.filter(pk=work.pk, queued_at=work.queued_at).update(queued_at=now):
                    _enqueue(work, now=now)
                    counts["woken"] += 1
    return counts


def _forgotten(model: type[LeasedWork], now: datetime) -> QuerySet[LeasedWork]:
    waiting = model._default_manager.filter(work_state=WorkState.QUEUED).order_by("queued_at")
    forgotten = waiting.filter(queued_at__lt=now - FORGOTTEN_AFTER)
    late = forgotten.count()
    held = outbox.messages_in(QUEUES[model.JOB]) if late else 0
    if (
        held is None or 0 < late <= held
    ):  # each may have its message; more work than messages means some are lost
        forgotten = waiting.filter(queued_at__lt=now - LONG_FORGOTTEN)
    return forgotten[:500]


def work_models() -> list[type[LeasedWork]]:
    """Every model of leased work in the project."""
    return [model for model in apps.get_models() if issubclass(model, LeasedWork)]


def queue(work: LeasedWork, *, now: datetime) -> None:
    """Announce freshly created (or again queued) work, in the caller's transaction."""
    _enqueue(work, now=now)


def _retry_or_fail(work: LeasedWork, *, now: datetime, reason: str) -> str:
    held = type(work)._default_manager.filter(
        pk=work.pk, work_state=WorkState.RUNNING, lease_owner=work.lease_owner
    )
    with transaction.atomic():
        if work.starts >= work.MAX_STARTS:
            ended = held.update(
                work_state=WorkState.FAILED,
                failure=f"{reason} (tried {work.starts} times)"[:500],
                finished_at=now,
                lease_until=None,
                lease_owner="",
            )
            if ended:
                work.refresh_from_db()
                work.on_failed(now=now)
            return "failed"
        if held.update(work_state=WorkState.QUEUED, queued_at=now, lease_until=None, lease_owner=""):
            _enqueue(work, now=now)
    return "requeued"


def _enqueue(work: LeasedWork, *, now: datetime) -> None:
    outbox.enqueue(work.JOB, now=now, **{work.ID_KEYWORD: str(work.pk)})


def _ours(work: LeasedWork) -> QuerySet[LeasedWork]:
    return type(work)._default_manager.filter(
        pk=work.pk, work_state=WorkState.RUNNING, lease_owner=work.lease_owner
    )
