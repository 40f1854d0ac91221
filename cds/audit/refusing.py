"""Refusals at our doors of callers nobody vouches for: noted one by one up to a bound, then counted.

Anybody who reaches an address can be refused as often as they like. Were each refusal a row, a flood would
fill the trail and wait in line with real calls for the heads of its chains. So of one kind of act and address
(of IPv6: its /64) EACH rows a minute are written, of all addresses together ALL; the others are counted, and
one row an address tells how many once the minute is over. Each process counts for itself, so the bounds hold
for each: shared, a flood would cost a round trip a call, and have no bound while Redis is away. A warning in
its log says that counting has begun, so that a count lost with its process is known to be missing. Signed-in
people, registered clients and our own processes are noted each time.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest

from cds.audit import callers, recording

logger = logging.getLogger(__name__)
EACH = 10  # rows a minute for one kind of act and address
ALL = 200  # rows a minute for all addresses together
MINUTE_S = 60
NOBODY = frozenset({"client:unknown", "user:anonymous"})
_ELSEWHERE = "several"  # addresses that came after the rows of all together were used up


@dataclass(slots=True)
class _Count:
    """Refusals of one kind and address in this minute; `left_out` have no row of their own."""

    rows: int = 0
    left_out: int = 0


def unknown_client(request: HttpRequest) -> recording.Actor:
    """Whoever calls as an EHR and has not shown to be one."""
    return recording.Actor("client:unknown", address=recording.client(None, request).address)


def note(
    *,
    by: recording.Actor,
    action: str,
    object_type: str,
    object_id: object,
    now: datetime,
    outcome: str = "refused",
    **detail: Any,
) -> None:
    """Note that something was refused, in a transaction of its own (see `recording.record`).

    raises  DatabaseError where the trail cannot be written
    """
    if by.name in NOBODY:
        _tell(_minutes.over(now))
        if not _minutes.has_room(_Kind(action, object_type, by, callers.network_of(by.address)), now):
            return
    with transaction.atomic():
        recording.record(
            by=by,
            action=action,
            object_type=object_type,
            object_id=object_id,
            now=now,
            outcome=outcome,
            **detail,
        )


def forget() -> None:
    """Begin anew, as a process that has just started."""
    _minutes.forget()


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is counted together."""

    action: str
    object_type: str
    by: recording.Actor
    address: str


_Counted = tuple[_Kind, int, int]


class _Minutes:
    """What was refused in this minute; the summaries of the one before are handed out once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._untold: list[_Counted] = []
        self.begin()

    def forget(self) -> None:
        """Nothing has ever been refused."""
        with self._lock:
            self._untold = []
            self.begin()

    def keep(self, counted: list[_Counted]) -> None:
        """Summaries that could not be written: told with the next ones."""
        with self._lock:
            self._untold = [*self._untold, *counted][-ALL:]

    def begin(self) -> None:
        """Nothing has been refused yet in this minute."""
        self._minute, self._rows = 0, 0
        self._counts: dict[tuple[str, str], tuple[_Kind, _Count]] = {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def has_room(self, kind: _Kind, now: datetime) -> bool:
        """Whether a refusal gets a row of its own; else it is counted."""
        with self._lock:
            self._minute = max(self._minute, _minute_of(now))
            key = (kind.action, kind.address)
            if key not in self._counts and self._rows >= ALL:
                key = (kind.action, _ELSEWHERE)
                kind = replace(kind, by=replace(kind.by, address=""), address=_ELSEWHERE)
            _, count = self._counts.setdefault(key, (kind, _Count()))
            if count.rows < EACH and self._rows < ALL:
                count.rows += 1
                self._rows += 1
                return True
            count.left_out += 1
            self._tell_later(kind, now)
            return False

    def over(self, now: datetime) -> list[_Counted]:
        """Kind, refusals that were only counted, and the minute, when that is over; else nothing."""
        with self._lock:
            if _minute_of(now) <= self._minute:
                return []
            found, self._untold = self._untold, []
            found += [
                (kind, count.left_out, self._minute)
                for kind, count in self._counts.values()
                if count.left_out
            ]
            self.begin()
            return found

    def _tell_later(self, kind: _Kind, now: datetime) -> None:
        """Where nobody else is refused, the count is written all the same."""
        if self._timer is None:
            logger.warning(
                "refusals come in a flood (%s, from %s): they are counted now, and told in the audit trail "
                "when the minute is over",
                kind.action,
                kind.address or "nowhere",
            )
            left = (self._minute + 1) * MINUTE_S - now.timestamp() + 1
            self._timer = threading.Timer(max(1.0, left), _tell_at_the_end, args=[self._minute])
            self._timer.daemon = True
            self._timer.start()


_minutes = _Minutes()


def _tell_at_the_end(minute: int) -> None:
    try:
        _tell(_minutes.over(datetime.fromtimestamp((minute + 1) * MINUTE_S, tz=UTC)))
    finally:
        connection.close()


def _tell(counted: list[_Counted]) -> None:
    """A row for each kind and address, with how many had none of their own; kept where the trail is away."""
    for place, (kind, left_out, minute) in enumerate(counted):
        try:
            with transaction.atomic():
                recording.record(
                    by=kind.by,
                    action=kind.action,
                    object_type=kind.object_type,
                    object_id=_ELSEWHERE,
                    now=datetime.fromtimestamp((minute + 1) * MINUTE_S, tz=UTC),
                    outcome="refused",
                    count=left_out,
                    minute=datetime.fromtimestamp(minute * MINUTE_S, tz=UTC),
                    network=kind.address,
                )
        except DatabaseError:
            logger.exception("refusals that were only counted could not be audited; told with the next ones")
            _minutes.keep(counted[place:])
            return


def _minute_of(now: datetime) -> int:
    return int(now.timestamp() // MINUTE_S)
