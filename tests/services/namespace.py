"""A server that would listen on every interface, shut into a network that has nothing but a loopback.

Relays carry chosen ports of this machine's loopback into it, and chosen ports of its loopback out, through
Unix sockets in a temporary folder.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.services.conftest import missing

RELAY = Path(__file__).with_name("relay.py")


@contextmanager
def running_inside(
    folder: Path,
    command: Sequence[str],
    *,
    doors: Mapping[int, int],
    windows: Mapping[int, int] | None = None,
) -> Iterator[Path]:
    """Run `command` in an empty network; yields its log.

    doors    port out here → port in there, for calling the server
    windows  port in there → port out here, for the server to call us
    """
    enter = _namespace()
    inner, outer = [], []
    for out, within in doors.items():
        inner += [f"unix:{folder / f'd{within}.sock'}", f"tcp:{within}"]
        outer += [f"tcp:{out}", f"unix:{folder / f'd{within}.sock'}"]
    for within, out in (windows or {}).items():
        inner += [f"tcp:{within}", f"unix:{folder / f'w{within}.sock'}"]
        outer += [f"unix:{folder / f'w{within}.sock'}", f"tcp:{out}"]
    relay = [sys.executable, str(RELAY)]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log.txt").open("wb"))
        script = 'ip link set lo up && { "$@" & } && exec ' + " ".join([*relay, *inner])
        stack.enter_context(_process([*enter, "sh", "-c", script, "sh", *command], log))
        stack.enter_context(_process([*relay, *outer], log))
        yield folder / "log.txt"


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    missing("no network namespace can be made here, and the server would listen on every interface")


@contextmanager
def _process(command: list[str], log: object) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)  # type: ignore[call-overload]
    try:
        yield
    finally:
        process.kill()
        process.wait()
