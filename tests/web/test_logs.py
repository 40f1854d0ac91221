"""What a sign-in brings along in its address is in no log: code, state, launch handle, iss. OPERATIONS 5."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.test import Client
from pytest_django import Settings

from cds.demo import processes

ROOT = Path(__file__).parents[2]
QUERY = "iss=https://canary.example/fhir&launch=canary-launch&code=canary-code&state=canary-state"


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/launch", "/launch/callback", "/login/hospital/callback"])
def test_a_refusal_is_logged_without_its_query(path: str, caplog: Any) -> None:
    assert Client().get(f"{path}?{QUERY}").status_code == 400
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    assert [line["request"] for line in lines if "request" in line] == [f"GET {path}"]
    assert "canary" not in caplog.text


@pytest.mark.django_db
def test_the_address_in_the_log_is_not_what_the_caller_says(caplog: Any, settings: Settings) -> None:
    settings.TRUSTED_PROXIES = (ip_network("172.16.0.0/12"),)
    said = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
    for peer in ("172.18.0.1", "192.0.2.5"):
        Client().get(f"/launch?{QUERY}", headers=said, REMOTE_ADDR=peer)
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    assert [line["ip"] for line in lines if "request" in line] == ["203.0.113.9", "192.0.2.5"]


def test_the_web_server_logs_the_path_only(tmp_path: Path) -> None:
    """Gunicorn as the demo starts it, its log written."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    unset = {"DATABASE_URL": "", "REDIS_URL": ""}
    environment = {**os.environ, **unset, "TESSERA_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    log = tmp_path / "web.log"
    with log.open("wb") as written:
        server = subprocess.Popen(
            processes.web(port=port).command, cwd=ROOT, env=environment, stdout=written, stderr=written
        )
    try:
        for path in ("/livez", "/launch/callback"):
            _get(f"http://127.0.0.1:{port}{path}?{QUERY}")
    finally:
        server.terminate()
        server.wait(20)
    said = log.read_text()
    assert re.search(r'"GET /livez HTTP/1.1" 200', said)
    assert re.search(r'"GET /launch/callback HTTP/1.1" \d+', said)
    assert "canary" not in said


def _get(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(url, timeout=5, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server did not start")


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml"])
def test_it_is_the_server_that_is_deployed(file: str) -> None:
    """Another worker would write its access log itself, with the query."""
    said = re.sub(r'[",\s]+', " ", (ROOT / file).read_text())
    assert "gunicorn cds.asgi:application -k cds.web_worker.Worker" in said
