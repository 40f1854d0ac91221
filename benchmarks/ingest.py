"""Taking in FHIR: resources and megabytes a second; beside orjson and one executemany of as many rows."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks import measuring, scratch

PATIENTS = 60


def run() -> measuring.Table:
    """Measure."""
    table = measuring.Table("Ingest of FHIR", ("what", "s", "resources/s", "MB/s"))
    with tempfile.TemporaryDirectory(prefix="tessera-benchmark-") as name:
        folder = Path(name)
        os.environ["TESSERA_DATA_DIR"] = name
        for unset in ("DATABASE_URL", "REDIS_URL"):
            os.environ.pop(unset, None)
        os.environ["LOG_LEVEL"] = "CRITICAL"
        scratch.set_up()
        from datetime import UTC, datetime

        from django.core.management import call_command

        from cds import ingesting
        from cds.audit import recording
        from cds.celery import app
        from cds.demo import writing
        from cds.patients import importing

        app.conf.update(broker_url="memory://", broker_transport_options={})
        call_command("migrate", verbosity=0)
        now = datetime.now(UTC)
        writing.write_cohort(
            folder / "demo", seed=1, patients=PATIENTS, anchor=now, progress=lambda done, of: None
        )
        files = sorted(path for path in (folder / "demo" / "fhir").rglob("*") if path.is_file())
        size, resources = sum(path.stat().st_size for path in files) / 1e6, _count(files)

        began = time.perf_counter()
        _bare(files, folder / "bare.sqlite3")
        _row(table, "limit: orjson + executemany", time.perf_counter() - began, resources, size)
        source, by = importing.get_source("benchmark", now=now), recording.system("benchmark")
        for what in ("first time", "the same again"):
            began = time.perf_counter()
            ingesting.ingest_fhir(folder / "demo" / "fhir", source=source, by=by, now=datetime.now(UTC))
            _row(table, what, time.perf_counter() - began, resources, size)
    table.notes.append(
        f"{PATIENTS} simulated patients, {resources} resources, {size:.1f} MB; SQLite, one process."
    )
    table.notes.append(
        "Tessera also checks units, dates and codes, keeps what was refused, and audits each patient."
    )
    return table


def _row(table: measuring.Table, what: str, seconds: float, resources: int, megabytes: float) -> None:
    table.add(what, seconds, f"{resources / seconds:.0f}", megabytes / seconds)


def _entries(path: Path) -> list[dict[str, object]]:
    sent = orjson.loads(path.read_bytes())
    return [entry["resource"] for entry in sent.get("entry", [])]


def _count(files: list[Path]) -> int:
    return sum(len(_entries(path)) for path in files)


def _bare(files: list[Path], database: Path) -> None:
    """Parse, and put each resource into one table, a transaction a file."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("create table resource (kind text, id text, body blob, primary key (kind, id))")
        for path in files:
            rows = [
                (str(one["resourceType"]), str(one.get("id")), orjson.dumps(one)) for one in _entries(path)
            ]
            connection.executemany("insert or replace into resource values (?, ?, ?)", rows)
            connection.commit()
