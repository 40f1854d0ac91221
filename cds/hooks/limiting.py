"""How long one statement of a hook call may keep its thread: the call's whole budget, and no longer.

The watch of `serving` answers the caller in time whatever happens; this ends the work as well, so that a slow
database, or a lock that somebody holds, does not keep the few threads that answer hooks. PostgreSQL gets a
`statement_timeout` (waiting for a lock is part of a statement), SQLite a `busy_timeout`.

A thread that answers hooks keeps its connection from one call to the next, for KEPT_S: to take it from the
pool and give it back is a good part of what a call costs, and the pool is large enough for all of them
(`DATABASES` in settings). One that failed goes back after the call; one that PostgreSQL has ended meanwhile
is noticed before the next, so that no call pays for a restart. Each connection remembers its limit, so that
setting it costs a statement only where a connection changes sides, and a page or a worker never has the limit
of a hook.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.db import connection as current
from django.db.backends.base.base import BaseDatabaseWrapper

NONE = 0
KEPT_S = 600.0
_limit_ms: ContextVar[int] = ContextVar("statement_limit_ms", default=NONE)
_HELD = "tessera_statement_limit_ms"
BUSY = frozenset({"57014", "55P03", "40P01"})  # SQLSTATE: statement cancelled, lock not available, deadlock


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Connections opened here, in this thread, give up a statement after `seconds`."""
    token = _limit_ms.set(max(1, int(seconds * 1000)))
    _leave_one_that_ended()
    try:
        yield
    finally:
        _limit_ms.reset(token)


def _leave_one_that_ended() -> None:
    """PostgreSQL says nothing unasked but that it ends a connection; what it said waits to be read."""
    held: Any = current.connection
    if current.vendor == "postgresql" and held is not None and not held.closed:
        asked = select.poll()
        asked.register(held.fileno(), select.POLLIN)
        if asked.poll(0):
            held.close()  # the pool throws a closed one away
            current.close()


def apply_limit(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Receiver of Django's `connection_created`: sent each time a connection is taken from the pool."""
    wanted = _limit_ms.get()
    held: Any = connection.connection
    if connection.vendor == "sqlite":
        if wanted:  # each connection is a new one, and without a hook keeps the time that settings give
            connection.cursor().execute(f"PRAGMA busy_timeout = {wanted}")
    elif connection.vendor == "postgresql":
        if getattr(held, _HELD, NONE) != wanted:
            with connection.cursor() as cursor:
                cursor.execute(f"SET statement_timeout = {wanted or 'DEFAULT'}")  # else the site's own
            setattr(held, _HELD, wanted)
        if wanted:
            connection.close_at = time.monotonic() + KEPT_S  # Django's, which would close it after the call


def is_overdue(error: BaseException) -> bool:
    """Whether the database is there, and only took longer than it may, or was in the way of others."""
    return getattr(error.__cause__, "sqlstate", None) in BUSY or (
        current.vendor == "sqlite" and "locked" in str(error)
    )
