"""A real Orthanc with its DICOMweb plug-in, in a temporary folder, reachable from this machine only.

Orthanc listens on every interface whatever its configuration says. So it runs in a network namespace of its
own that has nothing but a loopback; a relay carries 127.0.0.1:<port> of this machine to it through a Unix
socket in the temporary folder. Besides, it asks for a password and refuses remote peers.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = (
    "/usr/share/orthanc/plugins",
    "/usr/lib/orthanc/plugins",
    "/usr/local/share/orthanc/plugins",
)
RELAY = Path(__file__).with_name("relay.py")
INSIDE = 8042


@dataclass(frozen=True, slots=True)
class Orthanc:
    """Where it is and who may come in."""

    url: str
    auth: tuple[str, str]

    @property
    def dicom_web(self) -> str:
        """Base URL of QIDO-RS and WADO-RS."""
        return f"{self.url}/dicom-web"

    def upload(self, content: bytes) -> None:
        """Store one instance by Orthanc's own REST API."""
        httpx.post(f"{self.url}/instances", content=content, auth=self.auth, timeout=30).raise_for_status()


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Start Orthanc below `folder`; skips the test without one, unless TESSERA_REQUIRE_SERVICES=1."""
    program = shutil.which("Orthanc") or next((p for p in ("/usr/sbin/Orthanc",) if Path(p).exists()), None)
    plugin = next((p for p in (Path(place) / PLUGIN for place in PLUGIN_FOLDERS) if p.exists()), None)
    if program is None or plugin is None:
        _absent("Orthanc with its DICOMweb plug-in is not installed")
    enter = _namespace()
    auth = ("tessera", secrets.token_urlsafe(16))
    (folder / "db").mkdir(parents=True)
    config = {
        "Name": "Tessera tests",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": INSIDE,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": dict([auth]),
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    inner = f"unix:{folder / 'o.sock'}"
    port = _free_port()
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log.txt").open("wb"))
        script = 'ip link set lo up && { "$1" "$2" & } && exec "$3" "$4" "$5" "$6"'
        arguments = [
            program,
            str(folder / "orthanc.json"),
            sys.executable,
            str(RELAY),
            inner,
            f"tcp:{INSIDE}",
        ]
        stack.enter_context(_process([*enter, "sh", "-c", script, "sh", *arguments], log))
        stack.enter_context(_process([sys.executable, str(RELAY), f"tcp:{port}", inner], log))
        orthanc = Orthanc(f"http://127.0.0.1:{port}", auth)
        _wait(orthanc, folder / "log.txt")
        yield orthanc


def _namespace() -> list[str]:
    """The command that enters an empty network, and ends with all its processes."""
    common = ["unshare", "--net", "--pid", "--fork", "--kill-child"]
    for command in ([*common], [*common, "--map-root-user"]):
        probe = [*command, "ip", "link", "set", "lo", "up"]
        if (
            shutil.which("unshare")
            and subprocess.run(probe, capture_output=True, check=False).returncode == 0
        ):
            return command
    _absent("no network namespace can be made here, and Orthanc would listen on every interface")


def _absent(why: str) -> None:
    if os.environ.get("TESSERA_REQUIRE_SERVICES") == "1":
        pytest.fail(why)
    pytest.skip(why)


@contextmanager
def _process(command: list[str], log: object) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)  # type: ignore[call-overload]
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(orthanc: Orthanc, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{orthanc.url}/system", auth=orthanc.auth, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not up yet
        time.sleep(0.1)
    pytest.fail(f"Orthanc did not start: {log.read_text(errors='replace')[-2000:]}")
