"""A clinic of its own for a measurement: the demo's patients and model in a scratch folder, real processes.

Nothing here is mocked: gunicorn with two workers, one Celery worker a queue, Valkey, SQLite, all on loopback.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENTS = 120


@dataclass(frozen=True, slots=True)
class Clinic:
    """A running clinic: its folder and its web address."""

    folder: Path
    url: str
    pids: Mapping[str, int]


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def clinic(
    *,
    web: bool = True,
    database_url: str = "",
    more: Mapping[str, str] | None = None,
    made: Path | None = None,
) -> Iterator[Clinic]:
    """Make the demo's clinic, and start its processes; everything is ended and removed afterwards.

    Django is set up in this process too, on the same database.

    database_url  of a PostgreSQL; "" for SQLite
    more          further settings of the environment
    made          data directory of a clinic that `manage.py demo --once` made before: used, and left as it is
    """
    with tempfile.TemporaryDirectory(prefix="tessera-benchmark-") as scratch:
        folder = made or Path(scratch)
        command = [sys.executable, "manage.py", "demo", "--once", "--patients", str(PATIENTS)]
        unset = ("DATABASE_URL", "REDIS_URL", "STUDY_STORE", "BUNDLE_STORE")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        database = {"DATABASE_URL": database_url} if database_url else {}
        environment |= database
        if made is None:
            print(f"making a clinic of {PATIENTS} simulated patients …", flush=True)
            subprocess.run(
                [*command, "--data-dir", scratch, "--port", "0"],
                cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        port, broker = free_port(), free_port()
        chosen = {
            "TESSERA_DATA_DIR": str(folder),
            "REDIS_URL": f"redis://127.0.0.1:{broker}/0",
            "PUBLIC_URL": f"http://127.0.0.1:{port}",
            "LOG_LEVEL": "WARNING",
            **database,
            **(more or {}),
        }
        for name in unset:
            os.environ.pop(name, None)
        os.environ.update(chosen)
        set_up()
        from cds.demo import processes
        from cds.jobs import Queue, beats

        supervisor = processes.Supervisor(logs=Path(scratch) / "logs", environment=os.environ)
        try:
            supervisor.start(processes.broker(port=broker, folder=Path(scratch) / "broker"))
            supervisor.wait_until_ready()
            for queue in (Queue.INTERACTIVE, Queue.BATCH):
                alive = lambda queue=queue: beats.alive(beats.connect())[queue]  # noqa: E731
                supervisor.start(processes.worker(queue.value, is_ready=alive))
            if web:
                supervisor.start(processes.web(port=port))
            supervisor.wait_until_ready()
            yield Clinic(folder, f"http://127.0.0.1:{port}", supervisor.pids())
        finally:
            supervisor.stop()


def set_up() -> None:
    """Django in this process, on whatever the environment names."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")
    django.setup()
