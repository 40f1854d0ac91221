"""What an EHR's sign-in says of itself, discovery and keys: read once for everybody, and kept.

Anybody may open `/launch?iss=…`, so a server that does not answer must cost little. One thread of a process
asks it; MOST_WAITING others wait for its answer, and whoever comes besides is told to come again. That it
failed is kept for FAILED_S.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Event, Lock
from typing import Any, TypeVar

import ehr

T = TypeVar("T")
CACHED_S = 3600.0  # keys are read anew at once when a token names another
FAILED_S = 30.0
MOST_CACHED = 32
MOST_WAITING = 4  # threads of this process, for one answer
WAIT_S = 7.0  # two documents, three seconds each, and a little

MOST_AT_ONCE = 8  # codes that this process exchanges at the same time: anybody can come with one

_Key = tuple[str, str, tuple[str, ...]]


@dataclass(slots=True)
class _Reading:
    """One thread asks; the others wait for what comes of it."""

    done: Event = field(default_factory=Event)
    waiting: int = 0
    found: Any = None
    error: ehr.EhrError | None = None


_held: dict[_Key, tuple[float, Any]] = {}
_failed: dict[_Key, tuple[float, ehr.EhrError]] = {}
_readings: dict[_Key, _Reading] = {}
_lock = Lock()


def cached(
    issuer: str, what: str, read: Callable[[], T], *, origins: Collection[str] = (), fresh: bool = False
) -> T:
    """What a server said, for an hour: at most MOST_CACHED answers in this process.

    origins  those registered beside it, against which the answer was checked: with others it is read anew
    raises   what `read` raises, for FAILED_S without asking again; Retriable while too many wait for it
    """
    key = (issuer, what, tuple(sorted(origins)))
    with _lock:
        now = time.monotonic()
        at, found = _held.get(key, (now - CACHED_S, None))
        if not fresh and now - at < CACHED_S:
            return found  # type: ignore[no-any-return]
        at, fault = _failed.get(key, (now, None))
        if not fresh and fault is not None and now - at < FAILED_S:
            raise copy.copy(fault)
        reading = _readings.get(key)
        is_ours = reading is None
        if reading is None:
            reading = _readings[key] = _Reading()
        elif reading.waiting >= MOST_WAITING:
            raise ehr.Retriable("it is being asked just now, and others wait for it: try again in a moment")
        else:
            reading.waiting += 1
    if is_ours:
        _read(key, reading, read)
    elif not reading.done.wait(WAIT_S):
        raise ehr.Retriable("it is being asked just now, and has not answered yet: try again in a moment")
    if reading.error is not None:
        raise copy.copy(reading.error)
    return reading.found  # type: ignore[no-any-return]


class NoRoom(ehr.Retriable):
    """Too many codes are being exchanged."""


@contextmanager
def room(exchanges: BoundedSemaphore) -> Iterator[None]:
    """A sign-in that does not answer must not hold every thread. Raises NoRoom while too many wait for it."""
    if not exchanges.acquire(blocking=False):
        raise NoRoom("too many are coming at once")
    try:
        yield
    finally:
        exchanges.release()


def forget() -> None:
    """Ask every server anew."""
    with _lock:
        _held.clear()
        _failed.clear()


def _read(key: _Key, reading: _Reading, read: Callable[[], Any]) -> None:
    """Ask, and tell those who wait; whatever happens, the next one may ask again."""
    reading.error = ehr.Retriable("the question was broken off: try again")  # unless one of these comes first
    try:
        reading.found, reading.error = read(), None
    except ehr.EhrError as error:
        reading.error = error
        _keep(_failed, key, copy.copy(error))
    else:
        _keep(_held, key, reading.found)
    finally:
        with _lock:
            _readings.pop(key, None)
        reading.done.set()


def _keep(kept: dict[_Key, tuple[float, Any]], key: _Key, value: Any) -> None:
    with _lock:
        if len(kept) >= MOST_CACHED and key not in kept:
            kept.pop(next(iter(kept)))
        kept[key] = (time.monotonic(), value)
