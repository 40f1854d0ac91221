"""dcmtk's tools as peers: its archive (dcmqrscp) in a network of its own, its senders beside us."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ehr
from tests.services.conftest import missing
from tests.services.namespace import free_port, running_inside

INSIDE, WINDOW = 11113, 11112
CONFIG = """NetworkTCPPort = {inside}
MaxPDUSize = 65536
MaxAssociations = 16
HostTable BEGIN
tessera = (TESSERA, 127.0.0.1, {window})
stranger = (STRANGER, 127.0.0.1, {window})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
ARCHIVE {folder} RW (200, 1024mb) ANY
AETable END
"""


def tool(name: str) -> str:
    """The path of one of dcmtk's programs; skips, or fails, without it. pynetdicom has scripts of the same
    names, which are no other peer than our own library."""
    for folder in os.get_exec_path():
        path = Path(folder) / name
        if path.is_file() and os.access(path, os.X_OK) and path.open("rb").read(2) != b"#!":
            return str(path)
    return missing(f"dcmtk's {name} is not installed")


def call(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of dcmtk's programs to its end."""
    command = [tool(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def running_archive(folder: Path, *, receiver_port: int) -> Iterator[ehr.Node]:
    """dcmqrscp below `folder`; what it moves to TESSERA goes to `receiver_port` on this machine."""
    program = tool("dcmqrscp")
    (folder / "db").mkdir(parents=True)
    config = folder / "dcmqrscp.cfg"
    config.write_text(CONFIG.format(inside=INSIDE, window=WINDOW, folder=folder / "db"))
    port = free_port()
    command = [program, "-c", str(config)]  # it takes uncompressed files
    with running_inside(folder, command, doors={port: INSIDE}, windows={WINDOW: receiver_port}) as log:
        node = ehr.Node("ARCHIVE", "127.0.0.1", port)
        deadline = time.monotonic() + 20
        while True:
            try:
                ehr.DimseClient(node, timeout_s=3).echo()
                break
            except ehr.EhrError as error:
                if time.monotonic() > deadline:
                    pytest.fail(
                        f"dcmqrscp did not start ({error}): {log.read_text(errors='replace')[-2000:]}"
                    )
                time.sleep(0.2)
        yield node
