"""What ours is measured beside: a bare Django view that parses the body, and another CDS Hooks service.

Both are served on loopback by the same kind of server and the same number of processes as ours where they
have a choice. healthchain lives in an environment of its own, outside this one.
"""

from __future__ import annotations

import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks import scratch

WORKERS = 2
PEER = "healthchain==0.16.1"
BARE = """
import django, orjson
from django.conf import settings
settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", MIDDLEWARE=[],
                   DATA_UPLOAD_MAX_MEMORY_SIZE=5 * 2**20)
django.setup()
from django.http import HttpResponse
from django.urls import path
from django.core.asgi import get_asgi_application

def view(request):
    body = orjson.loads(request.body)
    return HttpResponse(orjson.dumps({"cards": [body["hookInstance"]]}), content_type="application/json")

urlpatterns = [path("cds-services/bare", view)]
application = get_asgi_application()
"""
THEIRS = """
import os
import uvicorn
from healthchain.gateway import HealthChainAPI, CDSHooksService
from healthchain.models.responses.cdsresponse import CDSResponse, Card
from healthchain.models.responses.cdsresponse import IndicatorEnum, Source

cds = CDSHooksService()

@cds.hook("patient-view", id="static")
def static(request):
    card = Card(summary="static", indicator=IndicatorEnum.info, source=Source(label="static"))
    return CDSResponse(cards=[card])

app = HealthChainAPI()
app.register_service(cds, path="/cds")
"""


@contextmanager
def bare(folder: Path) -> Iterator[str]:
    """The bare view, under gunicorn with uvicorn workers like ours."""
    (folder / "bare.py").write_text(BARE)
    command = [sys.executable, "-m", "gunicorn", "bare:application", "-k", "cds.web_worker.Worker"]
    command += ["--workers", str(WORKERS), "--no-control-socket"]
    with _served(command, folder, "/cds-services/bare", b'{"hookInstance": 1}') as url:
        yield url


@contextmanager
def healthchain(folder: Path, body: bytes, python: Path | None) -> Iterator[str | None]:
    """The peer's service with one static card, as it serves itself; None where it cannot be had.

    python  of an environment that has it; None: one is made here, from the package index
    """
    home = folder / "peer"
    home.mkdir()
    if python is None:
        python = _environment(home / "venv")
    if python is None:
        yield None
        return
    (home / "theirs.py").write_text(THEIRS)
    command = [str(python), "-m", "uvicorn", "theirs:app", "--log-level", "warning"]
    try:
        with _served([*command, "--workers", str(WORKERS)], home, "/cds/cds-services/static", body) as url:
            yield url
    except RuntimeError as error:
        print(error)
        yield None


def _environment(folder: Path) -> Path | None:
    """`python3 -m venv FOLDER` and `FOLDER/bin/pip install healthchain==…`; some minutes."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "-q", PEER, "uvicorn"]
    got = subprocess.run(command, capture_output=True, text=True)
    return None if got.returncode else python


@contextmanager
def _served(command: list[str], folder: Path, path: str, body: bytes) -> Iterator[str]:
    port = scratch.free_port()
    address = (
        ["--bind", f"127.0.0.1:{port}"]
        if "gunicorn" in command
        else ["--host", "127.0.0.1", "--port", str(port)]
    )
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen([*command, *address], cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}{path}"
    try:
        for _ in range(300):
            try:
                answer = httpx.post(
                    url, content=body, headers={"Content-Type": "application/json"}, timeout=5
                )
                if answer.status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        else:
            said = (folder / "server.log").read_text()[-500:]
            raise RuntimeError(f"a service to compare with did not start: {said}")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)
