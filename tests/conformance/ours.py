"""Our own service, as production serves it, ready to be judged.

`python -m tests.conformance.ours` judges it and writes docs/conformance.md.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

import ehr
from tests.conformance import peers
from tests.conformance.service import Ehr, Service
from tests.launching_ehr import LaunchingEhr, launching_ehr

ROOT = Path(__file__).parents[2]
ISSUER, ORIGIN = "https://ehr.example.org", "https://ehr.example.org"


ROTATING = "https://rotating.example.org"
UNTIMED = {  # where right or wrong is judged, not the speed of this machine
    "DATABASE_URL": "",
    "REDIS_URL": "",
    "HOOKS_WAIT_MS": "0",
    "HOOKS_BUDGET_MS": "5000",
}


@contextmanager
def running(folder: Path, settings: Mapping[str, str] = UNTIMED) -> Iterator[Service]:
    """Gunicorn with one worker, on a data directory of its own below `folder`; EHRs that launch it."""
    with launching_ehr() as two, launching_ehr() as one, peers.serving() as beside:
        one.discovery = {"capabilities": ["launch-ehr", "permission-v1", "sso-openid-connect"]}
        two.add("p1", "Firstperson")
        two.add("p2", "Secondperson")
        with _serving(folder, settings, beside, two, one) as service:
            yield service


@contextmanager
def _serving(
    folder: Path,
    settings: Mapping[str, str],
    beside: peers.Peers,
    launching: LaunchingEhr,
    launching_v1: LaunchingEhr,
) -> Iterator[Service]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "TESSERA_DATA_DIR": str(folder),
        "PUBLIC_URL": url,
        "OMP_NUM_THREADS": "1",
        "LOG_LEVEL": "WARNING",
        **settings,
    }

    def run(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    key = ehr.new_key("EC")
    run("manage.py", "migrate", "--verbosity=0")
    run("manage.py", "fhir_key", "add")
    jwks = json.dumps(ehr.public_keys([key]))
    registered = (ISSUER, jwks, ORIGIN, ROTATING, beside.url, launching.fhir, launching_v1.fhir)
    run("-m", "tests.conformance.acting", "register", *registered)
    log = (folder / "server.log").open("w")
    command = ["-m", "gunicorn", "cds.asgi:application", "-k", "cds.web_worker.Worker", "-w", "1"]
    server = subprocess.Popen(
        [sys.executable, *command, "-b", f"127.0.0.1:{port}"],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=log,
    )
    known = Ehr(ISSUER, key, ORIGIN, launches=launching.fhir, peers=beside, rotating=ROTATING)
    known.launching, known.launching_v1 = launching, launching_v1
    known.body_limit, known.frame = 5 * 2**20, ORIGIN
    service = Service(url, known)
    try:
        _wait_for(url)
        service.call(service.services()[0])  # the patient is known from here on
        run("-m", "tests.conformance.acting", "score", service.ehr.patient)
        yield service
    finally:
        service.close()
        server.terminate()
        server.wait(20)
        log.close()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(f"{url}/livez", timeout=2, trust_env=False)
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the server did not start")


@contextmanager
def _database(server: str) -> Iterator[str]:
    """The URL of a database of its own on a PostgreSQL server; "" (SQLite) where none is given."""
    if not server:
        yield ""
        return
    import psycopg

    name = f"conformance_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as made:
        made.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload,unused-ignore]
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(server, autocommit=True) as made:
            made.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload,unused-ignore]


def main() -> int:
    """Judge with the budget of production, print, write the table and the settings of the run.

    On PostgreSQL and Redis where TESSERA_TEST_DATABASE_URL and TESSERA_TEST_REDIS_URL name them.
    """
    from tests.conformance.__main__ import judged

    page, redis = ROOT / "docs" / "conformance.md", os.environ.get("TESSERA_TEST_REDIS_URL", "")
    with (
        tempfile.TemporaryDirectory() as folder,
        _database(os.environ.get("TESSERA_TEST_DATABASE_URL", "")) as database,
    ):
        settings = {
            "DATABASE_URL": database,
            "REDIS_URL": redis,
            "HOOKS_WAIT_MS": "300",
            "HOOKS_BUDGET_MS": "450",
        }
        with running(Path(folder), settings) as service:
            said = (
                f"Run of {time.strftime('%Y-%m-%d')}: gunicorn with one worker on {os.cpu_count()} cores, "
                f"{'PostgreSQL' if database else 'SQLite'}, {'Redis' if redis else 'no Redis'}, "
                "`HOOKS_WAIT_MS=300`, `HOOKS_BUDGET_MS=450` (the defaults)."
            )
            return judged(service, timed=True, page=page, settings=said)


if __name__ == "__main__":
    sys.exit(main())
