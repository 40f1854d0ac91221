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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

import ehr
from tests.conformance.service import Ehr, Service
from tests.launching_ehr import launching_ehr

ROOT = Path(__file__).parents[2]
ISSUER, ORIGIN = "https://ehr.example.org", "https://ehr.example.org"


@contextmanager
def running(folder: Path) -> Iterator[Service]:
    """Gunicorn with one worker, on a data directory of its own below `folder`; an EHR that launches it."""
    with launching_ehr() as launching, _serving(folder, launching.fhir) as service:
        yield service


@contextmanager
def _serving(folder: Path, launches_from: str) -> Iterator[Service]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "TESSERA_DATA_DIR": str(folder),
        "PUBLIC_URL": url,
        "DATABASE_URL": "",
        "REDIS_URL": "",
        "OMP_NUM_THREADS": "1",
        "LOG_LEVEL": "WARNING",
        "HOOKS_WAIT_MS": "0",
        "HOOKS_BUDGET_MS": "5000",  # what is judged here is right or wrong, not the speed of this machine
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
    run("-m", "tests.conformance.acting", "register", ISSUER, jwks, ORIGIN, launches_from)
    log = (folder / "server.log").open("w")
    command = ["-m", "gunicorn", "cds.asgi:application", "-k", "cds.web_worker.Worker", "-w", "1"]
    server = subprocess.Popen(
        [sys.executable, *command, "-b", f"127.0.0.1:{port}"],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=log,
    )
    service = Service(url, Ehr(ISSUER, key, ORIGIN, launches=launches_from))
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


def main() -> int:
    """Judge, print, write the table."""
    from tests.conformance.__main__ import judged

    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as service:
        return judged(service, timed=True, page=ROOT / "docs" / "conformance.md")


if __name__ == "__main__":
    sys.exit(main())
