"""A call to CDS Hooks whose client keeps its keys at an address: known, new, and while the address is silent.

Discovery, signed (ES384), against gunicorn with two workers on SQLite; the address is on loopback.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import orjson
from joserfc import jwt
from joserfc.jwk import ECKey

from benchmarks import measuring, scratch

KNOWN, UNKNOWN = 100, 20
ISSUER = "https://benchmark.example"


def run() -> measuring.Table:
    """Measure."""
    table = measuring.Table("Keys at an address", ("what", "answer", "p50 ms", "p95 ms", "worst ms"))
    key = ECKey.generate_key("P-384", parameters={"kid": "b1"})
    with (
        tempfile.TemporaryDirectory() as folder,
        _address(key) as (address, is_silent),
        _served(Path(folder)) as url,
        httpx.Client(timeout=10) as http,
    ):
        _register(address)

        def call(kid: str = "b1") -> int:
            bearer = {"Authorization": f"Bearer {_token(key, url, kid)}"}
            return http.get(url, headers=bearer).status_code

        def unknown() -> int:
            _note(keys_tried_at=None)
            return call(uuid.uuid4().hex)

        call()
        table.add("a known key", *_measured(call, KNOWN))
        table.add("an unknown key, the address answers", *_measured(unknown, UNKNOWN))
        is_silent.set()
        table.add("an unknown key, the address is silent", *_measured(unknown, UNKNOWN))
        _note(keys_read_at=_ago(hours=1), keys_tried_at=None)
        time.sleep(2.5)  # until each process reads the client anew
        table.add("a known key of an hour ago, the address is silent", *_measured(call, KNOWN))
    table.notes.append("Budget of a call: 450 ms. 401: the key is not in the set; 503: it is being read.")
    return table


def _measured(call: Callable[[], int], times: int) -> tuple[str, ...]:
    answers: list[int] = []
    seconds = measuring.timed(lambda: answers.append(call()), times)
    return " ".join(sorted({str(answer) for answer in answers})), *measuring.spread(seconds)


def _token(key: ECKey, url: str, kid: str) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": url, "iat": now, "exp": now + 300, "jti": str(uuid.uuid4())}
    return jwt.encode({"alg": "ES384", "typ": "JWT", "kid": kid}, claims, key, algorithms=["ES384"])


def _register(address: str) -> None:
    from django.utils import timezone

    from cds.audit import recording
    from cds.hooks import registering
    from cds.patients import importing

    now, by = timezone.now(), recording.system("benchmark")
    source = importing.get_source("benchmark", simulated=True, now=now)
    registering.register("Benchmark", issuer=ISSUER, jwks_url=address, source=source, by=by, now=now)


def _note(**columns: object) -> None:
    from cds.hooks.models import HookClient

    HookClient.objects.update(**columns)


def _ago(hours: int) -> object:
    from django.utils import timezone

    return timezone.now() - timedelta(hours=hours)


@contextmanager
def _address(key: ECKey) -> Iterator[tuple[str, threading.Event]]:
    """A key set on loopback, and what makes it silent."""
    is_silent, is_over = threading.Event(), threading.Event()
    body = orjson.dumps({"keys": [key.as_dict(private=False)]})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if is_silent.is_set():
                is_over.wait(30)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/keys", is_silent
    finally:
        is_over.set()
        server.shutdown()
        server.server_close()


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The service on a database of its own, which this process shares."""
    import django

    port = scratch.free_port()
    os.environ |= {
        "TESSERA_DATA_DIR": str(folder),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "DATABASE_URL": "",
        "REDIS_URL": "",
        "LOG_LEVEL": "ERROR",
        "DJANGO_SETTINGS_MODULE": "cds.settings",
    }
    subprocess.run([sys.executable, "manage.py", "migrate", "--verbosity=0"], cwd=scratch.ROOT, check=True)
    django.setup()
    command = [sys.executable, "-m", "gunicorn", "cds.asgi:application", "-k", "cds.web_worker.Worker"]
    command += ["--workers", "2", "--no-control-socket", "--bind", f"127.0.0.1:{port}"]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, cwd=scratch.ROOT, stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}/livez", timeout=2)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/cds-services"
    finally:
        server.terminate()
        server.wait(timeout=20)
