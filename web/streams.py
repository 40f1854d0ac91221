"""The event stream of the screens: rows of LiveEvent, as server-sent events, to those who may know of them.

A stream carries ids only; a screen then asks for the part that changed, and access is checked again there.
All streams of a process read through one thread with one database connection, and ask for rows only when the
newest id has moved. A stream ends by itself after LIFETIME_S so that browsers reconnect (to another process
after a deployment), and at once when the process is told to stop.
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import ParamSpec, TypeVar

from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.db import close_old_connections
from django.db.models import Max

from cds.jobs.models import LiveEvent
from cds.patients import access, merging

P = ParamSpec("P")
R = TypeVar("R")

POLL_S = 1.0
HEARTBEAT_S = 15.0
LIFETIME_S = 600.0
RETRY_MS = 3000
BEHIND = 50  # ids looked back over: on PostgreSQL a smaller id may be committed after a larger one
PATIENT_KINDS = frozenset({"assessment", "study", "patient", "response"})

_reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="live-events")
_stopping = threading.Event()
_newest: tuple[float, int] = (0.0, 0)  # when it was read (monotonic seconds), the id


def newest() -> int:
    """The id of the newest event: a page notes it, so that its stream misses nothing since."""
    return LiveEvent.objects.aggregate(newest=Max("pk"))["newest"] or 0


async def events_for(
    user: User, since: int | None, *, session_key: str | None = None, only: str | None = None
) -> AsyncIterator[bytes]:
    """The stream of one screen, from after event `since` (None: from now).

    session_key  of the session it belongs to, for what was granted to that; the stream ends with it
    only         the patient of a launch: of nobody else, and of no run or source, does its screen hear
    """
    _stop_with_the_process()
    began = spoke = time.monotonic()
    last = await _read(_newest_cached) if since is None else since
    sent: set[int] = set(await _read(_ids_before, last))
    yield f"retry: {RETRY_MS}\nid: {last}\nevent: hello\ndata: {{}}\n\n".encode()
    while time.monotonic() - began < LIFETIME_S and not _stopping.is_set():
        if await _read(_newest_cached) > last:
            rows = await _read(_visible_after, user.pk, last, frozenset(sent), session_key, only)
            if rows is None:
                return
            for event in rows:
                yield _as_message(event)
            last = max([last, *(event.pk for event in rows)])
            last = max(last, await _read(_newest_cached))
            sent = {pk for pk in sent | {event.pk for event in rows} if pk > last - BEHIND}
            spoke = time.monotonic()
        elif time.monotonic() - spoke > HEARTBEAT_S:
            yield b": still here\n\n"
            spoke = time.monotonic()
        await asyncio.sleep(POLL_S)


def _as_message(event: LiveEvent) -> bytes:
    body = {"subject": event.subject, "patient": str(event.patient_id) if event.patient_id else None}
    return f"id: {event.pk}\nevent: {event.kind}\ndata: {json.dumps(body)}\n\n".encode()


def _visible_after(
    user_id: int, last: int, sent: frozenset[int], session_key: str | None, only: str | None
) -> list[LiveEvent] | None:
    """Events this person may know of; None: they have signed out, or their account is closed.

    Both are read anew, and what they may see: rights may have been taken away meanwhile.
    """
    user = User.objects.filter(pk=user_id, is_active=True).first()
    if user is None or (session_key is not None and not SessionStore().exists(session_key)):
        return None
    access.look_from(user, session_key)
    rows = [
        e for e in LiveEvent.objects.filter(pk__gt=last - BEHIND).order_by("pk")[:500] if e.pk not in sent
    ]
    concerned = {event.patient_id for event in rows if event.patient_id}
    alone = merging.survivor_key(only) if only is not None and concerned else only
    patients = {patient for patient in concerned if alone in (None, str(patient))}
    visible = set(access.visible_patients(user).filter(pk__in=patients).values_list("pk", flat=True))
    models = only is None and access.can_view_models(user)
    return [
        event
        for event in rows
        if (event.patient_id in visible if event.patient_id else models or event.kind == "model")
    ]


def _ids_before(last: int) -> list[int]:
    return list(LiveEvent.objects.filter(pk__gt=last - BEHIND, pk__lte=last).values_list("pk", flat=True))


def _newest_cached() -> int:
    """One look a second for all streams of this process. Runs in the reader thread only."""
    global _newest
    if time.monotonic() - _newest[0] > POLL_S * 0.8:
        _newest = (time.monotonic(), newest())
    return _newest[1]


async def _read(query: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    def run() -> R:
        close_old_connections()
        return query(*args, **kwargs)

    return await asyncio.get_running_loop().run_in_executor(_reader, run)


def _stop_with_the_process() -> None:
    """Let streams end when the server is asked to stop: it waits for them otherwise."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if callable(before) and not getattr(before, "ends_streams", False):
            signal.signal(number, _then(before))


def _then(before: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], None]:
    def stop(number: int, frame: FrameType | None) -> None:
        _stopping.set()
        before(number, frame)

    stop.ends_streams = True  # type: ignore[attr-defined]
    return stop
