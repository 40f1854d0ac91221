"""Taking in FHIR: resources a second on SQLite and PostgreSQL, the same again, memory from 10,000 up.

`python -m benchmarks.ingest [--resources N …] [--postgres URL]`, or `python -m benchmarks ingest`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson

from benchmarks import bulk_files, measuring

GOAL_PER_S, GOAL_AGAIN = 3000, 5.0
SIZES = (10_000, 50_000)
POSTGRES = "TESSERA_BENCHMARK_DATABASE_URL"
PARSED = 4000  # resources that fhir.resources is given: it is slow


def main() -> None:
    """Measure, print, and keep the table."""
    from benchmarks.__main__ import keep

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--resources", nargs="*", type=int, default=list(SIZES), metavar="N")
    parser.add_argument("--postgres", default=os.environ.get(POSTGRES, ""), metavar="URL")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(_one(**json.loads(asked.one))))
        return
    table = run(asked.resources, asked.postgres)
    table.notes.append(f"{datetime.now(UTC):%Y-%m-%d}; {measuring.machine()}.")
    said = table.to_markdown()
    print(said)
    keep("ingest", said)


def run(sizes: list[int] | None = None, postgres: str = "") -> measuring.Table:
    """Each size on each database, in processes of their own; every database is made empty and removed."""
    columns = ("what", "resources", "s", "resources/s", "µs a resource", "peak MB", "goal", "met")
    table = measuring.Table("Ingest of FHIR", columns)
    postgres = postgres or os.environ.get(POSTGRES, "")
    with tempfile.TemporaryDirectory(prefix="tessera-benchmark-") as name:
        first = True
        for size in sizes or list(SIZES):
            folder = Path(name) / str(size)
            count = bulk_files.write_export(folder, resources=size)
            common = {"folder": str(folder), "count": count, "scratch": name, "postgres": ""}
            if first:
                _limits(table, common, postgres)
                first = False
            _ours(table, "SQLite, one process", {**common, "what": "ours", "processes": 1})
            if postgres:
                for processes in (1, 2):
                    label = f"PostgreSQL, {'one process' if processes == 1 else 'two processes'}"
                    _ours(
                        table, label, {**common, "what": "ours", "processes": processes, "postgres": postgres}
                    )
    table.notes.append(
        "Simulated Bulk Data export, 100 resources a patient. Ours: sorted by patient, checked, units "
        "and codes converted, refusals kept, stored as the rows that features are built from, audited."
    )
    table.notes.append("Peak: the largest of our processes; without the database server's.")
    if not postgres:
        table.notes.append(f"PostgreSQL was not measured: name an empty database's URL in {POSTGRES}.")
    return table


def _limits(table: measuring.Table, common: dict[str, Any], postgres: str) -> None:
    limits = [("limit: orjson + executemany, SQLite", {"what": "bare"})]
    if postgres:
        limits.append(("limit: orjson + COPY, PostgreSQL", {"what": "bare", "postgres": postgres}))
    limits.append(("fhir.resources (R4B) parsing alone", {"what": "parse"}))
    for label, job in limits:
        done = _in_process({**common, **job})
        table.add(label, *_cells(done["count"], done["seconds"], done["peak"]), "", "")


def _ours(table: measuring.Table, label: str, job: dict[str, Any]) -> None:
    done = _in_process(job)
    count = done["count"]
    rate, times = count / done["first"], done["first"] / done["again"]
    goal = (f"{GOAL_PER_S}/s", _met(rate >= GOAL_PER_S)) if job["processes"] == 2 else ("", "")
    table.add(label, *_cells(count, done["first"], done["peak"]), *goal)
    again = (f"{GOAL_AGAIN:g} x as fast", f"{_met(times >= GOAL_AGAIN)} ({times:.1f} x)")
    table.add("– the same again", *_cells(count, done["again"], done["peak"]), *again)


def _cells(count: int, seconds: float, peak: float) -> tuple[object, ...]:
    return count, seconds, f"{count / seconds:.0f}", f"{seconds / count * 1e6:.0f}", f"{peak:.0f}"


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def _in_process(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.ingest", "--one", json.dumps(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _one(
    *, what: str, folder: str, count: int, scratch: str, postgres: str, processes: int = 1
) -> dict[str, Any]:
    """One measurement, in this process."""
    with tempfile.TemporaryDirectory(dir=scratch) as own, _Database(postgres) as url:
        if what == "parse":
            count = min(count, PARSED)
            began = time.perf_counter()
            _parse(Path(folder), count)
            done = {"seconds": time.perf_counter() - began}
        elif what == "bare":
            began = time.perf_counter()
            _bare(Path(folder), Path(own), url)
            done = {"seconds": time.perf_counter() - began}
        else:
            done = _ingest(Path(folder), Path(own), url, processes)
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"count": count, "peak": max(usage) / 1024, **done}


def _ingest(folder: Path, own: Path, url: str, processes: int) -> dict[str, float]:
    """First time and again; loading the table of units is part of the first time."""
    for unset in ("DATABASE_URL", "REDIS_URL"):
        os.environ.pop(unset, None)
    os.environ.update(
        TESSERA_DATA_DIR=str(own), LOG_LEVEL="CRITICAL", **({"DATABASE_URL": url} if url else {})
    )
    from benchmarks import scratch

    scratch.set_up()
    from django.core.management import call_command
    from django.db import connections

    from cds import folders
    from cds.audit import recording
    from cds.patients import importing

    call_command("migrate", verbosity=0)
    source, by = importing.get_source("benchmark", now=datetime.now(UTC)), recording.system("benchmark")
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        folders.take_folder(folder, source=source, by=by, now=datetime.now(UTC), processes=processes)
        seconds.append(time.perf_counter() - began)
    connections["default"].close()
    if url:
        connections["default"].close_pool()  # type: ignore[attr-defined]
    return {"first": seconds[0], "again": seconds[1]}


def _bare(folder: Path, own: Path, url: str) -> None:
    """Parse each line, and put each resource into one table."""
    rows = (
        (found["resourceType"], found["id"], line)
        for path in sorted(folder.glob("*.ndjson"))
        for line in path.open("rb")
        if (found := orjson.loads(line))
    )
    create = "create table resource (kind text, id text, body text, primary key (kind, id))"
    if not url:
        import sqlite3

        with sqlite3.connect(own / "bare.sqlite3") as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(create)
            connection.executemany("insert into resource values (?, ?, ?)", rows)
        return
    import psycopg

    with psycopg.connect(url) as server, server.cursor() as cursor:
        cursor.execute(create)
        with cursor.copy("COPY resource FROM STDIN") as copy:
            for kind, number, line in rows:
                copy.write_row((kind, number, line.decode()))


def _parse(folder: Path, count: int) -> None:
    """The R4B models of fhir.resources, some of each type, nothing else done with them."""
    from fhir.resources.R4B import get_fhir_model_class

    paths = sorted(folder.glob("*.ndjson"))
    total = sum(path.stat().st_size for path in paths)
    for path in paths:
        model = get_fhir_model_class(path.name.split("-")[0])
        share = count * path.stat().st_size // total + 1
        with path.open("rb") as file:
            for _, line in zip(range(share), file, strict=False):
                model.model_validate_json(line)


class _Database:
    """A database of its own on the server of `url`, removed afterwards; "" where there is none."""

    def __init__(self, url: str) -> None:
        self._url, self._name = url, f"tessera_benchmark_{os.getpid()}"

    def __enter__(self) -> str:
        if not self._url:
            return ""
        self._do(f'create database "{self._name}"')
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{self._name}"))

    def __exit__(self, *_: object) -> None:
        if self._url:
            self._do(f'drop database "{self._name}" with (force)')

    def _do(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self._url, autocommit=True) as server:
            server.execute(statement)


if __name__ == "__main__":
    main()
