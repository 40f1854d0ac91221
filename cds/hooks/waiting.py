"""How many calls of one process may wait for somebody else at once: a FHIR server, or a worker's score.

A call that waits keeps its thread and its database connection. Without a limit one EHR with a slow FHIR
server would take all of them, and the calls of every other EHR would be answered 503 unread. A call that
finds no place goes on at once, as one whose time to wait is over.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from cds.hooks.client_auth import Caller

MOST = 6  # of the eight threads of `serving`: two are always left for calls that need not wait
MOST_EACH = 5  # of one EHR, so that a call of another one finds a place beside it


class Places:
    """Places to wait at: `most` altogether, `each` of them for one and the same EHR."""

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._lock = threading.Lock()
        self._held: Counter[Hashable] = Counter()

    @contextmanager
    def one_of(self, whose: Hashable) -> Iterator[bool]:
        """Whether there is a place; it is kept until the end of the `with`."""
        is_free = self._take(whose)
        try:
            yield is_free
        finally:
            if is_free:
                self._give_back(whose)

    def _take(self, whose: Hashable) -> bool:
        with self._lock:
            if self._held.total() >= self._most or self._held[whose] >= self._each:
                return False
            self._held[whose] += 1
        return True

    def _give_back(self, whose: Hashable) -> None:
        with self._lock:
            self._held[whose] -= 1
            if not self._held[whose]:
                del self._held[whose]


PLACES = Places(MOST, MOST_EACH)


def of(caller: Caller) -> Hashable:
    """Whose places a call takes."""
    return None if caller.client is None else caller.client.pk
