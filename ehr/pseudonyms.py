"""Other names for the same things in a research copy: the same in every file of it, and in no other copy.

Everything is derived from one key (HMAC-SHA-256, RFC 2104), which stays with whoever holds the originals.
Without it nobody can tell which UID, id or date became which; with it the same one comes out every time.
"""

from __future__ import annotations

import base64
import hmac
import uuid
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TypeVar

LEAST_SHIFT, MOST_SHIFT = 30, 3650  # days, into the past
TOP_AGE = 90  # years; who is older is shown as this old (45 CFR 164.514(b)(2)(i)(C))
KEY_BYTES = 32
_Moment = TypeVar("_Moment", date, datetime)


@dataclass(frozen=True, slots=True, repr=False)
class Pseudonyms:
    """The other names under one key. Raises ValueError for a key shorter than 32 bytes."""

    key: bytes

    def __post_init__(self) -> None:
        if len(self.key) < KEY_BYTES:
            raise ValueError(f"the key of a research copy has at least {KEY_BYTES} bytes")

    def person(self, who: str) -> str:
        """A patient's name in the copy: "R-" and 16 letters and digits."""
        return "R-" + base64.b32encode(self._digest("person", who)[:10]).decode()

    def identity(self, kind: str, what: str) -> str:
        """The id of a resource in the copy, 32 hexadecimal digits."""
        return self._digest(kind, what).hex()[:32]

    def uid(self, uid: str) -> str:
        """A DICOM UID under 2.25, from a UUID (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=4).int}"

    def shift_of(self, who: str) -> timedelta:
        """How far a patient's dates are moved: whole days, one number for all of theirs."""
        span = MOST_SHIFT - LEAST_SHIFT + 1
        days = LEAST_SHIFT + int.from_bytes(self._digest("shift", who)[:8], "big") % span
        return timedelta(days=-days)

    def _digest(self, kind: str, what: str) -> bytes:
        return hmac.digest(self.key, f"{kind}\0{what}".encode("utf-8", "surrogatepass"), "sha256")


def moved(at: _Moment, shift: timedelta) -> _Moment:
    """The moment or day after the shift; the earliest possible one when that is out of the calendar."""
    try:
        return at + shift
    except OverflowError:
        return at.min.replace(tzinfo=at.tzinfo) if isinstance(at, datetime) else date.min


def topped_birth_date(born: date, last: date) -> date:
    """A birth date that makes nobody older than `TOP_AGE` on the last day that is told of them."""
    try:
        limit = last.replace(year=last.year - TOP_AGE)
    except ValueError:  # 29 February, or before year 91
        limit = last - timedelta(days=round(TOP_AGE * 365.25)) if last.year > TOP_AGE + 1 else date.min
    return max(born, limit)
