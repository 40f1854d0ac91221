"""kill -9 while a population comes in by Bulk Data and several processes write it to PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests.cds.test_ingest_killed import EACH, PATIENTS, Population, wait_for
from tests.services.conftest import Services

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]
PADDING = 13_000  # 600 patients with 5 observations each are over 32 MB then: two processes
COUNTED = """SELECT p.resource_id, count(o.id) FROM patients_patient p
    LEFT JOIN patients_observation o ON o.patient_id = p.id GROUP BY p.id"""


@pytest.fixture
def database(services: Services) -> Iterator[str]:
    """The address of a database of its own, gone afterwards."""
    name = f"tessera_killed_{os.getpid()}"
    with psycopg.connect(services.database_url, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}"')
        yield urlunsplit(urlsplit(services.database_url)._replace(path=f"/{name}"))
        server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def population() -> Iterator[Population]:
    found = Population(PADDING)
    found.go_on.set()
    Thread(target=found.http.serve_forever, daemon=True).start()
    yield found
    found.http.shutdown()
    found.http.server_close()


def writers(of: int) -> list[int]:
    """The processes that a run has begun to read and write with."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == of and b"spawn_main" in folder.joinpath("cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def test_killed_while_several_processes_import(
    tmp_path: Path, services: Services, database: str, population: Population
) -> None:
    environment = {
        **os.environ,
        "TESSERA_DATA_DIR": str(tmp_path),
        "DATABASE_URL": database,
        "REDIS_URL": services.redis_url,
    }
    manage = [sys.executable, "manage.py"]
    asked = [*manage, "ingest", "--bulk", population.base, "--source", "ward"]
    subprocess.run([*manage, "migrate", "-v", "0"], env=environment, check=True, timeout=240)

    def held() -> dict[str, int]:
        with psycopg.connect(database) as connection:
            return dict(connection.execute(COUNTED).fetchall())

    importing = subprocess.Popen(asked, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(held()) >= 5)
        both = writers(importing.pid)
    finally:
        importing.kill()
        importing.wait(10)
    assert len(both) == 2
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in both))
    before = held()
    assert 5 <= len(before) < PATIENTS, "it was killed in between"
    assert set(before.values()) == {EACH}, "whoever is there is there whole"
    time.sleep(0.5)
    assert held() == before, "nobody writes on"

    subprocess.run(asked, env=environment, check=True, timeout=240, stdout=subprocess.DEVNULL)
    assert held() == {f"p{number}": EACH for number in range(PATIENTS)}
    assert population.asked["GET $export"] == population.asked["GET Observation"] == 1
    with psycopg.connect(database) as connection:
        imports = "SELECT count(*) FROM audit_auditevent WHERE action = 'patient.import'"
        found = connection.execute(imports).fetchone()
    assert found == (PATIENTS,), "each was taken once"
