"""The time one hook call may take (INTEROP 23): counted from its arrival, queueing included."""

from __future__ import annotations

import time
from dataclasses import dataclass

from django.conf import settings
from django.http import HttpRequest

from cds.errors import Unavailable

META_KEY = "tessera.hook_deadline"  # set by `serving`, when the body has come
HANDOVER_KEY = "tessera.hook_handover"  # set by `serving`
NO_WAIT_KEY = "tessera.hook_no_wait"  # set by `sandbox`
RESERVE_S = 0.08  # for the way back: reading the score, writing what was shown
COMMIT_S = 0.02  # of it, for what comes after the decision to keep: the commit, and sending the answer


class Handover:
    """Whether the answer of a call reaches its caller, or the 503 of the watch: whoever takes it first, of
    the thread that answers and the event loop that watches."""

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free = [True]

    def take(self) -> bool:
        """Whether nobody has taken it yet."""
        try:
            return self._free.pop()  # one of two threads gets it
        except IndexError:
            return False


@dataclass(frozen=True, slots=True)
class Budget:
    """until: `time.monotonic()` after which the caller has its 503 and nobody reads our answer.

    may_wait  False: what is not there already is not waited for
    handover  None where nobody watches
    """

    until: float
    may_wait: bool = True
    handover: Handover | None = None

    def left(self) -> float:
        """Seconds that may still be spent on waiting, 0 or more; the way back is set aside."""
        if not self.may_wait:
            return 0.0
        return max(0.0, self.until - RESERVE_S - time.monotonic())

    def spent_ms(self) -> float:
        """Milliseconds since the call arrived."""
        return (settings.HOOKS_BUDGET_S - (self.until - time.monotonic())) * 1000

    def to_keep(self) -> float:
        """Seconds within which it may still be decided that something is kept as shown."""
        return self.until - COMMIT_S - time.monotonic()

    def check(self) -> None:
        """Raise Unavailable when the time is over: nothing is shown, so nothing may be kept as shown."""
        if self.to_keep() <= 0:
            raise late()

    def hand_over(self) -> bool:
        """Whether the answer still reaches the caller; from then on the watch leaves it to us. Ask once."""
        return time.monotonic() < self.until and (self.handover is None or self.handover.take())


def late() -> Unavailable:
    """The call's time is over."""
    return Unavailable("the call took longer than its budget: try again")


def of(request: HttpRequest, seconds: float | None = None) -> Budget:
    """The budget of a call; it begins now, with so many seconds, where nobody noted its arrival."""
    until = request.META.get(META_KEY)
    seconds = settings.HOOKS_BUDGET_S if seconds is None else seconds
    return Budget(
        until if until is not None else time.monotonic() + seconds,
        may_wait=NO_WAIT_KEY not in request.META,
        handover=request.META.get(HANDOVER_KEY),
    )
