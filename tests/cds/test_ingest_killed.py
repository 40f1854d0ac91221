"""kill -9 while a population comes in by Bulk Data: run again, nothing is lost and nothing doubled."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

PATIENTS, EACH = 600, 5  # several times as many as are taken together


class Population:
    """A FHIR server that exports patients and their blood pressures; it may stall in the second file.

    padding  characters that nobody reads in each observation: a large folder is read by several processes
    """

    def __init__(self, padding: int = 0) -> None:
        self.padding = padding
        self.asked: Counter[str] = Counter()
        self.go_on = Event()
        self.stalled = Event()
        population = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                population.answer(self)

            do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.http.server_port}/fhir"

    def answer(self, call: BaseHTTPRequestHandler) -> None:
        name = call.path.partition("?")[0].rsplit("/", 1)[-1]
        self.asked[f"{call.command} {name}"] += 1
        status, headers, lines = 200, {}, []
        if name == "$export":
            status, headers = 202, {"Content-Location": f"{self.base}/jobs/7"}
        elif call.command == "DELETE":
            status = 202
        elif name == "7":
            files = [
                {"type": kind, "url": f"{self.base}/files/{kind}"} for kind in ("Patient", "Observation")
            ]
            manifest = {
                "transactionTime": "2026-11-01T12:00:00Z",
                "requiresAccessToken": False,
                "output": files,
            }
            lines = [{**manifest, "error": []}]
        elif name == "Patient":
            lines = [
                {"resourceType": "Patient", "id": f"p{number}", "gender": "female"}
                for number in range(PATIENTS)
            ]
        else:
            said = [{"text": "x" * self.padding}] if self.padding else []
            lines = [pressure(number) | {"note": said} for number in range(PATIENTS * EACH)]
        body = b"\n".join(json.dumps(one).encode() for one in lines)
        call.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            call.send_header(key, value)
        call.end_headers()
        half = len(body) // 2 if name == "Observation" else len(body)
        call.wfile.write(body[:half])
        if half < len(body):
            call.wfile.flush()
            self.stalled.set()
            self.go_on.wait(30)
            call.wfile.write(body[half:])


def pressure(number: int) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
        "subject": {"reference": f"Patient/p{number % PATIENTS}"},
        "effectiveDateTime": "2026-03-01T08:00:00Z",
        "valueQuantity": {"value": 90 + number % 60, "system": "http://unitsofmeasure.org", "code": "mm[Hg]"},
    }


@pytest.fixture
def population() -> Iterator[Population]:
    found = Population()
    Thread(target=found.http.serve_forever, daemon=True).start()
    yield found
    found.go_on.set()
    found.http.shutdown()
    found.http.server_close()


def ingest(folder: Path, population: Population) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TESSERA_DATA_DIR": str(folder), "DATABASE_URL": "", "REDIS_URL": ""}
    asked = [sys.executable, "manage.py", "ingest", "--bulk", population.base, "--source", "ward"]
    return subprocess.Popen(asked, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def observations(folder: Path) -> dict[str, int]:
    """Patient → how many observations of theirs are held."""
    with closing(sqlite3.connect(folder / "tessera.sqlite3")) as database:
        rows = database.execute(
            "SELECT p.resource_id, count(o.id) FROM patients_patient p "
            "LEFT JOIN patients_observation o ON o.patient_id = p.id GROUP BY p.id"
        )
        return dict(rows.fetchall())


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def test_killed_while_fetching_and_while_importing(tmp_path: Path, population: Population) -> None:
    environment = {**os.environ, "TESSERA_DATA_DIR": str(tmp_path), "DATABASE_URL": ""}
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v", "0"], env=environment, check=True, timeout=240
    )
    fetching = ingest(tmp_path, population)
    wait_for(population.stalled.is_set)
    fetching.kill()
    fetching.wait(10)
    assert observations(tmp_path) == {}, "nothing is imported from half an export"

    population.go_on.set()
    importing = ingest(tmp_path, population)
    wait_for(lambda: len(observations(tmp_path)) >= 5)
    importing.kill()
    importing.wait(10)
    held = observations(tmp_path)
    assert 5 <= len(held) < PATIENTS, "it was killed in between"
    assert set(held.values()) == {EACH}, "whoever is there is there whole"

    assert ingest(tmp_path, population).wait(240) == 0
    assert observations(tmp_path) == {f"p{number}": EACH for number in range(PATIENTS)}
    assert population.asked["GET $export"] == 1, "the same export, to its end"
    assert population.asked["GET Patient"] == 1, "no finished file is fetched twice"
    assert population.asked["GET Observation"] == 2
    assert population.asked["DELETE 7"] == 1
    with closing(sqlite3.connect(tmp_path / "tessera.sqlite3")) as database:
        imports = database.execute("SELECT count(*) FROM audit_auditevent WHERE action = 'patient.import'")
        assert imports.fetchone()[0] == PATIENTS, "each was taken once"
