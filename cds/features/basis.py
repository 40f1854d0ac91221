"""Where inputs come from: the resources used, and how long before the moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

USABLE_STATUS = frozenset({"final", "amended", "corrected", "preliminary"})  # of an Observation


@dataclass(eq=False, slots=True)
class Used:
    """Collects what was used while the inputs are built."""

    basis: dict[tuple[str, str], None] = field(default_factory=dict)
    until: datetime | None = None

    def add(self, kind: str, identity: str, known_at: datetime | None) -> None:
        self.basis[kind, identity] = None
        if known_at is not None and (self.until is None or known_at > self.until):
            self.until = known_at


def hours_before(as_of: datetime, at: datetime) -> float:
    """Hours from `at` to `as_of`; 0 where it is dated later."""
    return max(0.0, (as_of - at).total_seconds() / 3600)
