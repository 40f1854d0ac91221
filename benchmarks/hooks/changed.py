"""Prefetches that change with every call, each rescored by the worker, at a steady rate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from joserfc.jwk import ECKey

from benchmarks import measuring, scratch
from benchmarks.hooks import bodies, calling, memory, pacing

RATE, GOAL_P95, GOAL_P99 = 20, 250.0, 500.0
COLUMNS = ("calls/s", "minutes", "answered", "p50 ms", "p95 ms", "p99 ms", "worst ms", "fresh", "goal", "met")


def measure(
    sent: Sequence[bodies.Sent], clinic: scratch.Clinic, key: ECKey, url: str, *, minutes: float
) -> measuring.Table:
    """Call for so many minutes; every call brings a new value, so every call needs a new score."""
    table = measuring.Table("Hook calls, changed prefetch, rescored by the worker", COLUMNS)
    values = np.random.default_rng(0)
    tokens = [bodies.token(key, url) for _ in range(int(RATE * minutes * 60))]

    def make(number: int) -> tuple[bytes, str]:
        at, newest = datetime.now(UTC) - timedelta(minutes=1), round(60 + 60 * values.random(), 3)
        return sent[number % len(sent)].large(newest=newest, at=at), tokens[number]

    spent, seconds = calling.processor_ms(clinic), minutes * 60
    with memory.Watch(lambda: calling.memory(clinic), seconds=seconds) as watch:
        found = pacing.post(url, make, per_second=RATE, seconds=seconds)
    ms = np.array(found.ms)
    p50, p95, p99 = np.percentile(ms, [50, 95, 99])
    fresh = sum("%" in one and not one.startswith("Stale") for one in found.summaries)
    is_met = p95 <= GOAL_P95 and p99 <= GOAL_P99  # whether memory is flat is said by itself
    table.add(
        RATE, f"{minutes:g}", len(ms), p50, p95, p99, ms.max(), f"{fresh / len(found.summaries):.1%}",
        f"p95 ≤ {GOAL_P95:g}, p99 ≤ {GOAL_P99:g}", "yes" if is_met else "**no**",
    )  # fmt: skip
    if found.refused:
        told = "; ".join(f"{often} × {reason}" for reason, often in found.refused.items())
        table.notes.append(f"Not 200, and not among these times: {told}.")
    if found.broken:
        table.notes.append(f"Connections that broke: {len(found.broken)} ({', '.join(set(found.broken))}).")
    table.notes += [
        f"Each body of {len(sent[0].large()) // 1000} KB holds one value that is new; times count from when "
        "a call was due. One worker answers.",
        f"Processor time of a call: {calling.per_call(spent, calling.processor_ms(clinic), len(ms))}.",
        memory.in_words(watch.samples),
    ]
    return table
