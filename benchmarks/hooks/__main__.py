"""`python -m benchmarks.hooks`: hook calls over HTTP, beside a bare Django view and beside another service.

Ours as in production: gunicorn with two uvicorn workers, PostgreSQL with durable commits, Redis; each call
with a fresh ES384 token that is verified and used up, audited in its hash chain, its cards kept. The same
bodies (a small one and one of 161 KB) go to all, from wrk, at 1, 8 and 32 connections, all on this one
machine. Then prefetches that change, each rescored by the worker, at a steady rate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from joserfc.jwk import ECKey

from benchmarks import __main__ as page
from benchmarks import measuring, postgres, scratch
from benchmarks.hooks import bodies, load, pacing, peers

CONNECTIONS = (1, 8, 32)
GOAL_RATE, GOAL_P95 = 450, 60.0
RATE, GOAL_CHANGED_P95, GOAL_CHANGED_P99 = 20, 250.0, 500.0
COLUMNS = ("what", "body", "connections", "calls/s", "p50 ms", "p95 ms", "p99 ms", "worst ms", "goal", "met")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hooks", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=8, help="of each row (8)")
    parser.add_argument("--minutes", type=float, default=10, help="of changed prefetches at 20 calls/s (10)")
    parser.add_argument(
        "--clinic",
        type=Path,
        help="data directory of a clinic made before by `manage.py demo --once` in BENCHMARK_DATABASE_URL",
    )
    parser.add_argument("--no-peer", action="store_true", help="without the other service")
    parser.add_argument("--keep", action="store_true", help="into docs/benchmarks.md")
    asked = parser.parse_args()
    if not load.available():
        raise SystemExit("wrk is not installed (Debian: apt-get install wrk)")
    with tempfile.TemporaryDirectory(prefix="tessera-hooks-") as folder:
        os.chmod(folder, 0o755)
        tables = _measure(Path(folder), asked)
    for name, table in tables.items():
        table.notes.append(f"{datetime.now(UTC):%Y-%m-%d}; {measuring.machine()}.")
        print(table.to_markdown())
        if asked.keep:
            page.keep(name, table.to_markdown())


def _measure(folder: Path, asked: argparse.Namespace) -> dict[str, measuring.Table]:
    calls = measuring.Table("Hook calls, unchanged prefetch", COLUMNS)
    small = [bodies.small(place) for place in range(bodies.PATIENTS)]
    large = [bodies.large(place) for place in range(bodies.PATIENTS)]
    kinds = {f"{len(small[0])} B": small, f"{len(large[0]) // 1000} KB": large}
    with peers.bare(folder) as url:
        for kind, sent in kinds.items():
            for connections in CONNECTIONS:
                run = load.post(
                    url, sent, [], connections=connections, seconds=asked.seconds, folder=folder / "bare"
                )
                _row(calls, "limit: bare Django view that parses", kind, connections, run)
    if not asked.no_peer:
        _measure_peer(calls, kinds, folder, asked.seconds)
    more = {"LOG_LEVEL": "INFO", "HOOKS_CALLS_PER_MINUTE": "0"}
    with (
        postgres.running(folder / "postgres") as database,
        scratch.clinic(database_url=database, more=more, made=asked.clinic) as clinic,
    ):
        key, service = _register(), _service()
        url = f"{clinic.url}/cds-services/{service}"
        for kind, sent in kinds.items():
            _settle(key, url, sent)
            for connections in CONNECTIONS:
                tokens = [bodies.token(key, url) for _ in range(int(asked.seconds * 700))]
                before = _memory(clinic)
                run = load.post(
                    url, sent, tokens, connections=connections, seconds=asked.seconds, folder=folder / "ours"
                )
                is_goal = connections == 8 and sent is large
                _row(calls, "ours: score stored", kind, connections, run, is_goal=is_goal)
                print(f"web processes: {before} → {_memory(clinic)} MiB", flush=True)
        changed = _measure_changed(clinic, key, url, asked.minutes)
    calls.notes += [
        "Ours: ES384 verified, jti used up in Redis, cards kept, audited, PostgreSQL with durable commits; "
        f"{bodies.PATIENTS} patients in turn; wrk, its tokens signed beforehand, on the same cores.",
    ]
    return {"hooks": calls, "hooks_changed": changed}


def _measure_peer(calls: measuring.Table, kinds: dict[str, list[bytes]], folder: Path, seconds: int) -> None:
    with peers.healthchain(folder, next(iter(kinds.values()))[0]) as url:
        if url is None:
            calls.notes.append(f"{peers.PEER} could not be installed or started here.")
            return
        for kind, sent in kinds.items():
            for connections in CONNECTIONS:
                run = load.post(
                    url, sent, [], connections=connections, seconds=seconds, folder=folder / "peer"
                )
                _row(calls, f"{peers.PEER}: one static card", kind, connections, run)


def _measure_changed(clinic: scratch.Clinic, key: ECKey, url: str, minutes: float) -> measuring.Table:
    table = measuring.Table(
        "Hook calls, changed prefetch, rescored by the worker",
        (
            "calls/s asked",
            "minutes",
            "answered",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "worst ms",
            "fresh",
            "goal",
            "met",
        ),
    )
    values = np.random.default_rng(0)

    def make(number: int) -> tuple[bytes, str]:
        at = (datetime.now(UTC) - timedelta(minutes=1)).isoformat(timespec="seconds")
        place = number % bodies.PATIENTS
        return bodies.large(place, newest=round(60 + 60 * values.random(), 3), at=at), bodies.token(key, url)

    before = _memory(clinic)
    found = pacing.post(url, make, per_second=RATE, seconds=minutes * 60)
    ms = np.array(found.ms)
    p50, p95, p99 = np.percentile(ms, [50, 95, 99])
    fresh = sum("%" in one and not one.startswith("Stale") for one in found.summaries)
    is_met = p95 <= GOAL_CHANGED_P95 and p99 <= GOAL_CHANGED_P99
    table.add(
        RATE, f"{minutes:g}", len(ms), p50, p95, p99, ms.max(), f"{fresh / len(found.summaries):.1%}",
        f"p95 ≤ {GOAL_CHANGED_P95:g}, p99 ≤ {GOAL_CHANGED_P99:g}", "yes" if is_met else "**no**",
    )  # fmt: skip
    if found.refused:
        table.notes.append(f"Not 200: {found.refused}.")
    table.notes.append(
        f"Resident memory of the web processes: {before} MiB before, {_memory(clinic)} MiB after."
    )
    return table


def _row(
    table: measuring.Table, what: str, kind: str, connections: int, run: load.Run, *, is_goal: bool = False
) -> None:
    goal = f"≥ {GOAL_RATE}/s, p95 ≤ {GOAL_P95:g}" if is_goal else ""
    met = ("yes" if run.per_second >= GOAL_RATE and run.p["95"] <= GOAL_P95 else "**no**") if is_goal else ""
    spread = (run.p["50"], run.p["95"], run.p["99"], run.worst)
    table.add(what, kind, connections, f"{run.per_second:.0f}", *spread, goal, met)
    print(table.rows[-1], flush=True)
    if run.refused or run.errors:
        table.notes.append(
            f"{what}, {kind}, {connections}: {run.refused} refused, {run.errors} errors. {run.said[:300]}"
        )


def _register() -> ECKey:
    from django.utils import timezone

    from cds.audit import recording
    from cds.hooks import registering
    from cds.patients import importing

    key, now = ECKey.generate_key("P-384", parameters={"kid": "b1"}), timezone.now()
    registering.register(
        "Benchmark",
        issuer=bodies.ISSUER,
        jwks={"keys": [key.as_dict(private=False)]},
        source=importing.get_source("benchmark", simulated=True, now=now),
        by=recording.system("benchmark"),
        now=now,
    )
    return key


def _service() -> str:
    from cds.hooks import offering

    return next(one.id for one in offering.list_services() if one.hook == "patient-view")


def _settle(key: ECKey, url: str, sent: list[bytes]) -> None:
    """Every patient has a stored score for this very prefetch."""
    with httpx.Client(timeout=10) as http:
        until = time.monotonic() + 120
        for body in sent:
            while True:
                headers = {
                    "Authorization": f"Bearer {bodies.token(key, url)}",
                    "Content-Type": "application/json",
                }
                answer = http.post(url, content=body, headers=headers)
                said: Any = answer.json()
                if answer.status_code == 200 and "not yet known" not in said["cards"][0]["summary"]:
                    break
                if time.monotonic() > until:
                    raise RuntimeError(f"no score within two minutes: {said}")
                time.sleep(0.05)


def _memory(clinic: scratch.Clinic) -> int:
    """Resident MiB of gunicorn and its workers."""
    master = clinic.pids["web"]
    found = [str(master), *Path(f"/proc/{master}/task/{master}/children").read_text().split()]
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in found)
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


if __name__ == "__main__":
    main()
