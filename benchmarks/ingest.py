"""Taking in FHIR: resources a second on SQLite and PostgreSQL, the same again, growth, memory, stages.

`python -m benchmarks.ingest [--resources N …] [--postgres URL]`, or `python -m benchmarks ingest`. Sizes that
take long may be measured one at a time: with `--results FILE` earlier measurements stay in the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson

from benchmarks import bulk_files, ingest_stages, measuring

GOAL_PER_S, GOAL_AGAIN = 3000, 5.0
SIZES = (10_000, 100_000)
POSTGRES = "TESSERA_BENCHMARK_DATABASE_URL"
PARSED = 4000  # resources that fhir.resources is given: it is slow
SQLITE, ONE, TWO = "SQLite, one process", "PostgreSQL, one process", "PostgreSQL, two processes"
BARE, COPY, PARSE = (
    "limit: orjson + executemany, SQLite",
    "limit: orjson + COPY, PostgreSQL",
    "fhir.resources (R4B) parsing alone",
)
STAGES = "stages"
ON_POSTGRES = (COPY, ONE, TWO, STAGES)


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: seconds for the first time and the same again, and of features for one patient.

    peak  MB that all our processes held together at the worst moment, without the database server's
    how   what else went on on the machine
    """

    what: str
    size: int
    count: int
    first: float
    peak: float
    how: str
    again: float = 0.0
    features: float = 0.0


def main() -> None:
    """Measure, print, and keep the tables."""
    from benchmarks.__main__ import keep

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--resources", nargs="*", type=int, default=list(SIZES), metavar="N")
    parser.add_argument("--postgres", default=os.environ.get(POSTGRES, ""), metavar="URL")
    parser.add_argument("--only", nargs="*", default=[], help="these rows of the table only")
    parser.add_argument("--results", type=Path, help="where measurements are kept")
    parser.add_argument("--how", default="alone", help="what else goes on on the machine, for the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(_one(**json.loads(asked.one))))
        return
    said = run(asked.resources, asked.postgres, only=asked.only, results=asked.results, how=asked.how)
    print(said)
    keep("ingest", said)


def run(
    sizes: list[int] | None = None,
    postgres: str = "",
    *,
    only: list[str] | None = None,
    results: Path | None = None,
    how: str = "alone",
) -> str:
    """Each size on each database, in processes of their own; every database is made empty and removed."""
    postgres = postgres or os.environ.get(POSTGRES, "")
    held: dict[str, Any] = json.loads(results.read_text()) if results and results.exists() else {}
    with tempfile.TemporaryDirectory(prefix="tessera-benchmark-") as name:
        for place, size in enumerate(sizes or list(SIZES)):
            folder = Path(name) / str(size)
            common = {"folder": str(folder), "scratch": name, "postgres": postgres}
            common["count"] = bulk_files.write_export(folder, resources=size)
            wanted = (BARE, COPY, PARSE, SQLITE, ONE, TWO, STAGES) if place == 0 else (ONE, TWO)
            for what in wanted:
                if (only and what not in only) or (what in ON_POSTGRES and not postgres):
                    continue
                done = _in_process({**common, "what": what})
                if what == STAGES:
                    held[STAGES] = done["stages"]
                else:
                    held[f"{what} {size}"] = asdict(Measured(what, size, how=how, **done))
    if results:
        results.write_text(json.dumps(held, indent=1))
    stages = held.pop(STAGES, [])
    measured = [Measured(**found) for found in held.values()]
    tables = [_table(measured), _growth(measured), ingest_stages.table(stages)]
    if not postgres:
        tables[0].notes.append(f"PostgreSQL was not measured: name an empty database's URL in {POSTGRES}.")
    tables[-1].notes.append(f"{datetime.now(UTC):%Y-%m-%d}; {measuring.machine()}.")
    return "\n".join(table.to_markdown() for table in tables)


def _table(measured: list[Measured]) -> measuring.Table:
    columns = ("what", "resources", "s", "resources/s", "µs a resource", "goal", "met", "machine")
    table = measuring.Table("Ingest of FHIR", columns)
    smallest = min((one.size for one in measured), default=0)
    for one in measured:
        if one.size != smallest:
            continue
        rate, times = one.count / one.first, one.first / (one.again or one.first)
        goal = (f"{GOAL_PER_S}/s", _met(rate >= GOAL_PER_S)) if one.what in (ONE, TWO) else ("", "")
        table.add(one.what, *_cells(one.count, one.first), *goal, one.how)
        if one.again:
            again = (f"{GOAL_AGAIN:g} x as fast", f"{_met(times >= GOAL_AGAIN)} ({times:.1f} x)")
            table.add("– the same again", *_cells(one.count, one.again), *again, one.how)
    table.notes.append(
        "Simulated Bulk Data export, 100 resources a patient. Ours: sorted by patient, checked, units "
        "and codes converted, refusals kept, stored as the rows that features are built from, audited."
    )
    if any(one.how != "alone" for one in measured):
        table.notes.append(
            "Where the machine was not alone, seconds say more about the others: compare with the limits of "
            "the same run, and see below for the processor time of each stage, which others hardly change."
        )
    return table


def _growth(measured: list[Measured]) -> measuring.Table:
    columns = (
        "what", "resources", "s", "resources/s", "µs a resource", "again s", "again, times as fast",
        "features of a patient ms", "resources/s, features built", "peak MB", "machine",
    )  # fmt: skip
    table = measuring.Table("Ingest of FHIR: growth", columns)
    for one in sorted(measured, key=lambda one: (one.what, one.size)):
        if not one.again:
            continue
        patients = one.count / bulk_files.PER_PATIENT
        ready = f"{one.count / (one.first + patients * one.features):.0f}" if one.features else ""
        table.add(
            one.what, *_cells(one.count, one.first), f"{one.again:.1f}", f"{one.first / one.again:.1f}",
            f"{one.features * 1000:.1f}" if one.features else "", ready, f"{one.peak:.0f}", one.how,
        )  # fmt: skip
    table.notes.append(
        "Features: `build_inputs` for 100 patients, one after another in one process; for the rate, its time "
        "for all patients is added to that of the ingest."
    )
    table.notes.append("Peak: all our processes together, while they take the folder in; not the server's.")
    return table


def _cells(count: int, seconds: float) -> tuple[object, ...]:
    return count, f"{seconds:.2f}", f"{count / seconds:.0f}", f"{seconds / count * 1e6:.0f}"


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def _in_process(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.ingest", "--one", json.dumps(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _one(*, what: str, folder: str, count: int, scratch: str, postgres: str) -> dict[str, Any]:
    """One measurement, in this process."""
    url = postgres if what in ON_POSTGRES else ""
    with tempfile.TemporaryDirectory(dir=scratch) as own, _Database(url) as database:
        if what not in (PARSE, BARE, COPY):
            done = _ingest(Path(folder), Path(own), database, what)
            return {"count": count, **done}
        count = min(count, PARSED) if what == PARSE else count
        with ingest_stages.PeakMemory() as memory:
            began = time.perf_counter()
            if what == PARSE:
                _parse(Path(folder), count)
            else:
                _bare(Path(folder), Path(own), database)
            seconds = time.perf_counter() - began
    return {"count": count, "first": seconds, "peak": memory.peak}


def _ingest(folder: Path, own: Path, url: str, what: str) -> dict[str, Any]:
    """First time and again; then features, in a process of their own, for they load torch."""
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
    known = {"source": source, "by": by, "processes": 2 if what == TWO else 1}
    if what == STAGES:
        return {"stages": ingest_stages.measure(folder, known)}
    seconds = []
    with ingest_stages.PeakMemory() as memory:
        for _ in range(2):
            began = time.perf_counter()
            folders.take_folder(folder, now=datetime.now(UTC), **known)
            seconds.append(time.perf_counter() - began)
    connections["default"].close()
    if url:
        connections["default"].close_pool()  # type: ignore[attr-defined]
    command = [sys.executable, "-m", "benchmarks.ingest_stages"]
    features = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    return {"first": seconds[0], "again": seconds[1], "peak": memory.peak, "features": float(features)}


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
