"""Tables of measurements, each beside its limit."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Table:
    """What was measured, ready to print and to keep."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """One row; numbers with three significant digits."""
        self.rows.append(tuple(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))

    def to_markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        lines = [f"## {self.title}", "", f"| {' | '.join(self.columns)} |"]
        lines.append(f"|{'---|' * len(self.columns)}")
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of `times` calls, one after another."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


def spread(seconds: Sequence[float]) -> tuple[str, str, str]:
    """p50, p95 and the worst, in milliseconds."""
    ms = np.array(seconds) * 1000
    return f"{np.percentile(ms, 50):.1f}", f"{np.percentile(ms, 95):.1f}", f"{ms.max():.1f}"


def machine() -> str:
    """What it was measured on, without naming it."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
