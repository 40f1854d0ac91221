"""`python -m benchmarks.hooks`: hook calls over HTTP, beside a bare Django view and beside another service.

Ours as in production: gunicorn with two uvicorn workers, PostgreSQL with durable commits, Redis; each call
with a fresh ES384 token that is verified and used up, audited in its hash chain, its cards kept. The same
bodies (a small one and one of 161 KB) go to all, from wrk, at 1, 8 and 32 connections, all on this one
machine. Then prefetches that change, each rescored by the worker, at a steady rate; then where the time goes.

The other service wants an environment of its own: `python3 -m venv FOLDER`, `FOLDER/bin/pip install
healthchain==0.16.1 uvicorn`, then `--peer FOLDER/bin/python`; without --peer one is made for this run.
In short: `python -m benchmarks.hooks --seconds 2 --minutes 0.5 --no-peer`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import __main__ as page
from benchmarks import measuring, postgres, scratch
from benchmarks.hooks import calling, changed, load, stages, unchanged

PARTS = ("unchanged", "stages", "changed")


def main() -> None:
    """Measure, print, keep."""
    asked = _arguments()
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


def _arguments() -> argparse.Namespace:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hooks", description=about)
    parser.add_argument("--seconds", type=int, default=8, help="of each row (8)")
    parser.add_argument("--minutes", type=float, default=10, help="of changed prefetches at 20 calls/s (10)")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="unchanged, stages, changed (all)"
    )
    parser.add_argument(
        "--clinic",
        type=Path,
        help="data directory of a clinic made before by `manage.py demo --once` in BENCHMARK_DATABASE_URL",
    )
    parser.add_argument("--peer", type=Path, help="python of an environment that has the other service")
    parser.add_argument("--no-peer", action="store_true", help="without the other service")
    parser.add_argument("--keep", action="store_true", help="into docs/benchmarks.md")
    return parser.parse_args()


def _measure(folder: Path, asked: argparse.Namespace) -> dict[str, measuring.Table]:
    tables: dict[str, measuring.Table] = {}
    calls = unchanged.table()
    more = {"LOG_LEVEL": "INFO", "HOOKS_CALLS_PER_MINUTE": "0"}
    with (
        postgres.running(folder / "postgres") as database,
        scratch.clinic(database_url=database, more=more, made=asked.clinic) as clinic,
    ):
        key = calling.register()
        url = f"{clinic.url}/cds-services/{calling.service()}"
        sent = calling.patients(clinic, key, url)
        kinds = unchanged.kinds(sent)
        if "unchanged" in asked.only:
            unchanged.measure(calls, kinds, clinic, key, url, folder=folder, asked=asked)
            tables["hooks"] = calls
        if "stages" in asked.only:
            large = list(kinds.values())[-1]
            calling.settle(key, url, large)
            alone = [float(row[4]) for row in calls.rows if row[0].startswith("ours") and row[2] == "1"]
            over_http_ms = alone[-1] if alone else None
            tables["hooks_stages"] = stages.measure(key, url, large, over_http_ms=over_http_ms)
        if "changed" in asked.only:
            tables["hooks_changed"] = changed.measure(sent, clinic, key, url, minutes=asked.minutes)
    return tables


if __name__ == "__main__":
    main()
