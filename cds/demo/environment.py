"""What must be known before Django's settings load: where the demo keeps its data, and its two addresses.

`manage.py` calls `settle` first for `demo`. The choice lives in environment variables, so that every process
the demo starts sees the same; what is chosen once (broker port, first start, seed) stays in demo.json.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from dotenv import dotenv_values

BASE_DIR = Path(__file__).resolve().parents[2]
DEFAULT_PATIENTS, DEFAULT_PORT, DEFAULT_SEED = 120, 8000, 20261123
_held: list[IO[str]] = []  # the lock, for as long as this process lives


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `manage.py demo`."""
    parser.add_argument(
        "--once", action="store_true", help="stop, with exit code 0, when every score is stored"
    )
    parser.add_argument(
        "--patients", type=int, default=DEFAULT_PATIENTS, help="simulated patients (default 120)"
    )
    parser.add_argument(
        "--data-dir", type=Path, help="where everything is kept (default: TESSERA_DATA_DIR or ./var)"
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="of the web server on 127.0.0.1; 0: any free one"
    )
    parser.add_argument("--seed", type=int, help="another cohort; needs a data directory of its own")


def settle(arguments: Sequence[str]) -> None:
    """Fix data directory, broker and web address for this process and its children.

    Exits with a message when another demo is running in the data directory. Does nothing for `--help`.
    """
    if {"-h", "--help"} & set(arguments):
        return
    parser = argparse.ArgumentParser(prog="manage.py demo", add_help=False, allow_abbrev=False)
    add_arguments(parser)
    options, _ = parser.parse_known_args(arguments)
    configured = {**dotenv_values(BASE_DIR / ".env"), **os.environ}
    data_dir = Path(options.data_dir or configured.get("TESSERA_DATA_DIR") or BASE_DIR / "var").resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    _lock(data_dir)
    kept = read_state(data_dir)
    os.environ["TESSERA_DATA_DIR"] = str(data_dir)
    if not configured.get("REDIS_URL"):
        port = kept.get("broker_port")
        if port is None or not is_free(int(port)):
            port = free_port()
            write_state(data_dir, broker_port=port)
        os.environ["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        os.environ["TESSERA_DEMO_BROKER_PORT"] = str(port)
    web_port = options.port or free_port()
    os.environ["TESSERA_DEMO_WEB_PORT"] = str(web_port)
    os.environ["PUBLIC_URL"] = f"http://127.0.0.1:{web_port}"
    write_state(data_dir, web_port=web_port)  # for commands in another terminal
    os.environ.setdefault("HOOKS_OPEN", "true")


def read_state(data_dir: Path) -> dict[str, Any]:
    """What earlier runs chose; {} before the first."""
    path = data_dir / "demo.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write_state(data_dir: Path, **chosen: object) -> dict[str, Any]:
    """Keep choices for the next run."""
    state = read_state(data_dir) | chosen
    half = data_dir / ".demo.json.part"
    half.write_text(json.dumps(state, indent=1, sort_keys=True))
    half.replace(data_dir / "demo.json")
    return state


def first_start(data_dir: Path, now: datetime) -> datetime:
    """When the demo was first started here: the simulated hospital's "now", so its cohort stays the same."""
    state = read_state(data_dir)
    if "first_start" not in state:
        state = write_state(data_dir, first_start=now.astimezone(UTC).replace(microsecond=0).isoformat())
    return datetime.fromisoformat(state["first_start"])


def is_free(port: int) -> bool:
    """Whether nobody listens on 127.0.0.1:port and we may."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """For the processes we start: one torch thread each (a second collapses under load), no network hub."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {
        **environment,
        **one_thread,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "DJANGO_SETTINGS_MODULE": "cds.settings",
    }


def _lock(data_dir: Path) -> None:
    """One demo per data directory."""
    file = (data_dir / "demo.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(
            f"A demo is already running in {data_dir}. Stop it with Ctrl-C in its terminal, "
            "or give this one its own place: manage.py demo --data-dir DIR --port PORT"
        )
    _held.append(file)
