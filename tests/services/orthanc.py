"""A real Orthanc with its DICOMweb plug-in and its DICOM server, reachable from this machine only.

Orthanc listens on every interface whatever its configuration says. So it runs in a network of its own
(`namespace`). Besides, it asks for a password and refuses remote peers.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.services.conftest import missing
from tests.services.namespace import free_port, running_inside

PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = (
    "/usr/share/orthanc/plugins",
    "/usr/lib/orthanc/plugins",
    "/usr/local/share/orthanc/plugins",
)
INSIDE, INSIDE_DICOM, WINDOW = 8042, 4242, 11112


@dataclass(frozen=True, slots=True)
class Orthanc:
    """Where it is and who may come in."""

    url: str
    auth: tuple[str, str]
    dicom_port: int

    @property
    def dicom_web(self) -> str:
        """Base URL of QIDO-RS and WADO-RS."""
        return f"{self.url}/dicom-web"

    def upload(self, content: bytes) -> None:
        """Store one instance by Orthanc's own REST API."""
        httpx.post(f"{self.url}/instances", content=content, auth=self.auth, timeout=30).raise_for_status()


@contextmanager
def running_orthanc(folder: Path, *, receiver_port: int = 0) -> Iterator[Orthanc]:
    """Start Orthanc below `folder`; skips the test without one, unless TESSERA_REQUIRE_SERVICES=1.

    receiver_port  of the node TESSERA on this machine, to which C-MOVE may send
    """
    program = shutil.which("Orthanc") or next((p for p in ("/usr/sbin/Orthanc",) if Path(p).exists()), None)
    plugin = next((p for p in (Path(place) / PLUGIN for place in PLUGIN_FOLDERS) if p.exists()), None)
    if program is None or plugin is None:
        missing("Orthanc with its DICOMweb plug-in is not installed")
    auth = ("tessera", secrets.token_urlsafe(16))
    (folder / "db").mkdir(parents=True)
    config = {
        "Name": "Tessera tests",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": INSIDE,
        "DicomServerEnabled": True,
        "DicomAet": "ORTHANC",
        "DicomPort": INSIDE_DICOM,
        "DicomCheckCalledAet": True,
        "DicomModalities": {"tessera": ["TESSERA", "127.0.0.1", WINDOW]},
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": dict([auth]),
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    port, dicom_port = free_port(), free_port()
    command = [str(program), str(folder / "orthanc.json")]
    doors = {port: INSIDE, dicom_port: INSIDE_DICOM}
    windows = {WINDOW: receiver_port} if receiver_port else None
    with running_inside(folder, command, doors=doors, windows=windows) as log:
        orthanc = Orthanc(f"http://127.0.0.1:{port}", auth, dicom_port)
        _wait(orthanc, log)
        yield orthanc


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
