"""Where the time of one call goes: the same code as behind the web server, one call at a time, in here.

Each stage is timed without what it calls that is a stage of its own; so the stages add up to the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import numpy as np
from joserfc.jwk import ECKey
from numpy.typing import NDArray

from benchmarks import measuring
from benchmarks.hooks import bodies

CALLS, WARM = 600, 100
STAGES = {
    "token: signature and claims": "cds.hooks.client_auth._read_token",
    "token: jti used up (Redis)": "cds.hooks.spending.spend",
    "prefetch: known by its bytes; newest score and answer": "cds.hooks.prefetching._read_before",
    "prefetch: SHA-256": "cds.hooks.prefetching._digest_of",
    "score: how it stands": "cds.risk.assessing.current_one",
    "score: answers given to it": "cds.hooks.views._answer",
    "card: alert or not": "cds.hooks.alerting.decide",
    "card: words": "cds.hooks.cards.card_for",
    "kept, audited, committed": "cds.hooks.keeping.keep_shown",
}
REST = "request, middleware, log, answer"
COLUMNS = ("stage", "mean ms", "of it our CPU ms", "p95 ms", "statements")
_Taken = tuple[dict[str, float], dict[str, float], dict[str, int]]


@dataclass(slots=True)
class _Watch:
    """Seconds, those of this thread's own CPU, and SQL statements of each stage of the call that runs."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    statements: dict[str, int] = field(default_factory=dict)
    open: list[str] = field(default_factory=lambda: [REST])
    since: tuple[float, float] = (0.0, 0.0)

    def enter(self, stage: str) -> None:
        self._settle()
        self.open.append(stage)

    def leave(self) -> None:
        self._settle()
        self.open.pop()

    def _settle(self) -> None:
        stage, clock, cpu = self.open[-1], time.perf_counter(), time.thread_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + clock - self.since[0]
        self.cpu[stage] = self.cpu.get(stage, 0.0) + cpu - self.since[1]
        self.since = clock, cpu

    def count(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        """A wrapper of Django's: one statement more."""
        self.statements[self.open[-1]] = self.statements.get(self.open[-1], 0) + 1
        return execute(sql, params, many, context)

    def start(self) -> None:
        self.seconds, self.cpu, self.statements = {}, {}, {}
        self.since = time.perf_counter(), time.thread_time()

    def end(self) -> None:
        self._settle()


def measure(key: ECKey, url: str, sent: Sequence[bytes], *, over_http_ms: float | None) -> measuring.Table:
    """A table of stages for calls of these bodies, all of them answered 200.

    over_http_ms  p50 of the same call over HTTP at one connection, measured just before
    """
    watch, taken = _Watch(), list[_Taken]()
    tokens = [bodies.token(key, url) for _ in range(CALLS + WARM)]
    with ExitStack() as stack:
        for stage, path in STAGES.items():
            stack.enter_context(_timed(watch, stage, path))
        answer = _handler(url, watch, stack)
        for number, token in enumerate(tokens):
            answer(sent[number % len(sent)], token)
            if number >= WARM:
                taken.append((watch.seconds, watch.cpu, watch.statements))
    return _table(taken, len(sent[0]), over_http_ms)


def _timed(watch: _Watch, stage: str, path: str) -> Any:
    module, _, name = path.rpartition(".")
    whole = getattr(__import__(module, fromlist=[name]), name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        watch.enter(stage)
        try:
            return whole(*args, **kwargs)
        finally:
            watch.leave()

    return mock.patch(path, timed)


def _handler(url: str, watch: _Watch, stack: ExitStack) -> Callable[[bytes, str], None]:
    from django.db import connection

    from cds.hooks import serving

    handler = serving.HookHandler()
    stack.enter_context(connection.execute_wrapper(watch.count))
    parts = urlsplit(url)

    def answer(body: bytes, token: str) -> None:
        headers = {
            "host": parts.netloc,
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            "content-length": str(len(body)),
        }
        scope = {
            "type": "http", "method": "POST", "path": parts.path, "raw_path": parts.path.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "client": ("127.0.0.1", 1),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        watch.start()
        response = handler.answer(scope, body, time.monotonic() + 60)
        watch.end()
        if response.status_code != 200:
            raise RuntimeError(f"a call was answered {response.status_code}")

    return answer


def _table(taken: Sequence[_Taken], size: int, over_http_ms: float | None) -> measuring.Table:
    table = measuring.Table("Hook calls, where the time goes", COLUMNS)
    for stage in (*STAGES, REST):
        ms, cpu, statements = (np.array([one[what].get(stage, 0) for one in taken]) for what in range(3))
        table.add(stage, *_row(ms, cpu, statements))
    ms, cpu, statements = (np.array([sum(one[what].values()) for one in taken]) for what in range(3))
    table.add("together", *_row(ms, cpu, statements))
    if over_http_ms is not None:
        table.add("the same over HTTP at 1 connection, p50", over_http_ms, "", "", "")
    table.notes.append(
        f"{len(taken)} calls of {size // 1000} KB, one after another, score stored; a stage counts without "
        "the stages within it. What is kept is one statement, committed by itself."
    )
    return table


def _row(
    seconds: NDArray[np.float64], cpu: NDArray[np.float64], statements: NDArray[np.float64]
) -> tuple[object, ...]:
    p95 = np.percentile(seconds, 95) * 1000
    return seconds.mean() * 1000, cpu.mean() * 1000, p95, f"{statements.mean():.2g}"
