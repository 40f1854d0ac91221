"""INTEROP 21 over faults: two processes, PostgreSQL, and a Redis that one loses, or that is emptied."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis
from joserfc import jwt
from joserfc.jwk import ECKey

from cds.demo import processes
from cds.hooks import spending
from tests.flows.workers import free_port
from tests.services.again import ROOT
from tests.services.conftest import Services

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]
ADDRESS = "http://127.0.0.1:8000/cds-services"
ISSUER = "https://ehr.example.org"
KEY = ECKey.generate_key("P-384", parameters={"kid": "k1"})
REGISTER = """
import json, sys, django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.utils import timezone
from cds.audit import recording
from cds.hooks import registering
registering.register("EHR", issuer=sys.argv[1], jwks={"keys": [json.loads(sys.argv[2])]}, source="ehr",
                     by=recording.system("tests"), now=timezone.now())
"""
SERVE = """
import sys, django
django.setup()
from django.test import Client
http = Client(SERVER_NAME="127.0.0.1")
print("ready", flush=True)
for line in sys.stdin:
    answer = http.get("/cds-services", headers={"Authorization": "Bearer " + line.strip()})
    print(answer.status_code, flush=True)
"""


class Door:
    """A way to Redis that can be shut."""

    def __init__(self, port: int) -> None:
        self._to, self._is_shut, self._open = port, False, list[socket.socket]()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        self._is_shut = True
        for one in self._open:
            one.close()
        self._open.clear()

    def open(self) -> None:
        self._is_shut = False

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            if self._is_shut:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            self._open += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=_carry, args=(a, b), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
    except OSError:
        pass
    target.close()


class Web:
    """A web process: shown a token, it says with which status it answers the call."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._read() == "ready"

    def __call__(self, bearer: str) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(bearer + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline().strip()) != "ready" and not line.isdigit():
            assert self._process.poll() is None, "the process has ended"
        return line

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    """A Redis of its own, for it is emptied."""
    port = free_port()
    supervisor = processes.Supervisor(logs=tmp_path / "logs", environment={})
    supervisor.start(processes.broker(port=port, folder=tmp_path / "redis"))
    supervisor.wait_until_ready()
    yield port
    supervisor.stop()


@pytest.fixture
def environment(services: Services, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A database of its own, in which the EHR is registered."""
    name = f"tokens_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(services.database_url, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}"')
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "cds.settings",
            "DATABASE_URL": urlunsplit(urlsplit(services.database_url)._replace(path=f"/{name}")),
            "TESSERA_DATA_DIR": str(tmp_path / "data"),
            "HOOKS_BUDGET_MS": "5000",  # a busy machine is no fault of the call
            "PYTHONPATH": str(ROOT),
        }
        public = json.dumps(KEY.as_dict(private=False))
        subprocess.run(
            [sys.executable, "-c", REGISTER, ISSUER, public], cwd=ROOT, env=environment, check=True
        )
        yield environment
        server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def door(redis_port: int) -> Door:
    return Door(redis_port)


@pytest.fixture
def webs(environment: dict[str, str], redis_port: int, door: Door) -> Iterator[tuple[Web, Web]]:
    """One that reaches Redis through the door, and one that always does."""
    ports = (door.port, redis_port)
    both = tuple(Web({**environment, "REDIS_URL": f"redis://127.0.0.1:{port}/0"}) for port in ports)
    yield both[0], both[1]
    for one in both:
        one.stop()


def signed(at: float | None = None) -> str:
    now = int(time.time() if at is None else at)
    claims = {"iss": ISSUER, "aud": ADDRESS, "iat": now, "exp": now + 300, "jti": uuid.uuid4().hex}
    return jwt.encode({"alg": "ES384", "typ": "JWT", "kid": "k1"}, claims, KEY, algorithms=["ES384"])


def eventually(web: Web) -> tuple[str, float]:
    """A token that was accepted, of one signed for each try, and how long that took."""
    begun = time.monotonic()
    while time.monotonic() - begun < 45:
        bearer = signed()
        status = web(bearer)
        if status == 200:
            return bearer, time.monotonic() - begun
        assert status == 503
        time.sleep(0.3)
    pytest.fail("no token is accepted any more")


def test_no_token_passes_twice_over_faults_of_redis(
    webs: tuple[Web, Web], door: Door, redis_port: int
) -> None:
    flapping, well = webs
    server = redis.Redis(port=redis_port)
    used = [eventually(web)[0] for web in webs]
    early = signed(time.time() + 6)
    assert well(early) == 200
    used.append(early)

    def nobody_takes_them() -> None:
        for bearer in used:
            assert [web(bearer) in (401, 503) for web in webs] == [True, True]

    nobody_takes_them()
    door.shut()  # one process loses Redis
    assert flapping(signed()) == 503
    unnoticed = signed()  # after the fault, of which the other may not know yet
    assert well(unnoticed) == 200
    used.append(unnoticed)
    nobody_takes_them()
    bearer, took = eventually(flapping)  # by the database alone
    used.append(bearer)
    assert took > spending.LEASE_S - 1
    assert well(bearer) == 401
    by_both = signed()
    assert well(by_both) == 200
    used.append(by_both)
    assert flapping(by_both) == 401
    for _ in range(3):  # it comes and goes
        door.open()
        time.sleep(spending.AWAY_S)
        used.append(eventually(flapping)[0])
        nobody_takes_them()
        door.shut()
        used.append(eventually(flapping)[0])
        nobody_takes_them()
    door.open()
    time.sleep(spending.AWAY_S)
    nobody_takes_them()

    server.flushall()
    nobody_takes_them()
    used.append(eventually(well)[0])
    nobody_takes_them()
