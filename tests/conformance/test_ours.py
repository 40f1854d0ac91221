"""Our service, judged as a stranger's would be: by HTTP, on the server that production runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

import ehr
from tests.conformance import rules_of_messages, rules_of_security  # noqa: F401  (they register their rules)
from tests.conformance.__main__ import write
from tests.conformance.judging import RULES, Row, Verdict, judge, markdown
from tests.conformance.service import Ehr, Service

ROOT = Path(__file__).parents[2]
ISSUER, ORIGIN = "https://ehr.example.org", "https://ehr.example.org"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Gunicorn with one worker, as in production, on a data directory of its own."""
    folder = tmp_path_factory.mktemp("conformance")
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
    jwks = json.dumps(ehr.public_keys([key]))
    run("-m", "tests.conformance.acting", "register", ISSUER, jwks, ORIGIN)
    log = (folder / "server.log").open("w")
    command = ["-m", "gunicorn", "cds.asgi:application", "-k", "uvicorn_worker.UvicornWorker", "-w", "1"]
    server = subprocess.Popen(
        [sys.executable, *command, "-b", f"127.0.0.1:{port}"],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=log,
    )
    service = Service(url, Ehr(ISSUER, key, ORIGIN))
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


def test_every_rule_holds(ours: Service) -> None:
    rows = list(judge(ours, timed=False))
    failed = [f"{row.rule} {row.words}: {row.why}" for row in rows if row.verdict is Verdict.FAILS]
    assert not failed, "\n".join(failed)
    assert len(rows) == sum(not rule.timed for rule in RULES)


def test_a_service_that_is_wrong_is_found_wrong(tmp_path: Path) -> None:
    """What a known peer does: 200 with empty cards whatever comes, and no token asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            one = {
                "hook": "patient-view",
                "id": "x",
                "description": "",
                "prefetch": {"a": "Patient?_has:x=1"},
            }
            self._answer({"services": [one]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer({"cards": []})

        def _answer(self, said: Any) -> None:
            body = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    service = Service(f"http://127.0.0.1:{server.server_port}", Ehr(ISSUER, ehr.new_key("EC"), ORIGIN))
    try:
        rows = list(judge(service, timed=False))
    finally:
        service.close()
        server.shutdown()
        server.server_close()
        thread.join(5)
    failed = {row.rule for row in rows if row.verdict is Verdict.FAILS}
    assert {4, 6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22} <= failed


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- conformance -->\nold\n<!-- end -->\nafter\n")
    write(page, [Row(1, "words", Verdict.HOLDS)])
    assert (
        page.read_text()
        == f"before\n<!-- conformance -->\n{markdown([Row(1, 'words', Verdict.HOLDS)])}<!-- end -->\nafter\n"
    )


def test_the_documentation_holds_a_table_of_every_rule() -> None:
    page = (ROOT / "docs" / "conformance.md").read_text()
    for rule in RULES:
        assert f"| {rule.number} | {rule.words} |" in page, (
            "run the suite with --markdown docs/conformance.md"
        )
