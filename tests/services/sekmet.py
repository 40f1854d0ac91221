"""sekmet-fhir (PyPI, Apache-2.0): a FHIR R4 server nobody here wrote, in an environment of its own.

TESSERA_TEST_SEKMET names its command, as `.ci/run` installs it:
python3 -m venv peer && peer/bin/pip install sekmet-fhir==0.1.1, then peer/bin/sekmet.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

STARTS_WITHIN_S = 60.0


def command() -> str:
    """The command that starts it; "" when there is none."""
    named = os.environ.get("TESSERA_TEST_SEKMET", "")
    return named if named and Path(named).exists() else ""


class Sekmet:
    """A running server. `put` writes as any other system of the hospital would."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._http = httpx.Client(base_url=f"{base}/", trust_env=False, timeout=20)

    def put(self, *resources: dict[str, Any]) -> None:
        entries = [
            {"resource": one, "request": {"method": "PUT", "url": f"{one['resourceType']}/{one['id']}"}}
            for one in resources
        ]
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        self._http.post("", json=bundle).raise_for_status()

    def delete(self, kind: str, identity: str) -> None:
        self._http.delete(f"{kind}/{identity}").raise_for_status()

    def read(self, kind: str, identity: str) -> dict[str, Any]:
        found: dict[str, Any] = self._http.get(f"{kind}/{identity}").raise_for_status().json()
        return found

    def is_up(self) -> bool:
        try:
            return self._http.get("metadata").status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def running(folder: Path) -> Iterator[Sekmet]:
    """Start it on a free port of loopback with its data in `folder`; it is ended on the way out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}/fhir"
    settings = {
        "base_url": base,
        "host": "127.0.0.1",
        "port": port,
        "data_dir": str(folder / "data"),
        "simulator": {"enabled": False},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [command(), "serve", "--config", str(folder / "settings.yaml")],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        server = Sekmet(base)
        try:
            until = time.monotonic() + STARTS_WITHIN_S
            while not server.is_up():
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"sekmet did not start: {(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=20)
