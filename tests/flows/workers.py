"""Real worker processes beside a test, on its database, and a broker of its own where none is given.

With DATABASE_URL and REDIS_URL set (tests/services) they are those of the service; else SQLite and the
embedded broker. Use with `transactional_db`: a worker sees what is committed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection
from kombu import pools

from cds.celery import app
from cds.demo import processes
from cds.jobs import Queue, beats


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Workers:
    """A broker and the workers of some queues; `pids` by name, for tests that kill."""

    def __init__(self, supervisor: processes.Supervisor) -> None:
        self._supervisor = supervisor

    @property
    def pids(self) -> dict[str, int]:
        return self._supervisor.pids()


@contextmanager
def running(tmp_path: Path, *queues: Queue) -> Iterator[Workers]:
    """Start broker and workers, wait until they answer, and stop them."""
    url = os.environ.get("REDIS_URL", "")
    port = free_port()
    environment = {**os.environ, **same_database(tmp_path)}
    environment |= {
        "REDIS_URL": url or f"redis://127.0.0.1:{port}/0",
        "STUDY_STORE": str(settings.STUDY_STORE),
        "BUNDLE_STORE": str(settings.BUNDLE_STORE),
        "OMP_NUM_THREADS": "1",
    }
    supervisor = processes.Supervisor(logs=tmp_path / "logs", environment=environment)
    kept = app.conf.broker_url, app.conf.broker_transport_options, settings.REDIS_URL
    try:
        if not url:
            supervisor.start(processes.broker(port=port, folder=tmp_path / "broker"))
            supervisor.wait_until_ready()
        speak_to(environment["REDIS_URL"], {"socket_connect_timeout": 2})
        for queue in queues:
            supervisor.start(processes.worker(queue.value, is_ready=lambda queue=queue: _is_alive(queue)))
        supervisor.wait_until_ready(timeout_s=60)
        yield Workers(supervisor)
    finally:
        supervisor.stop()
        speak_to(kept[0], kept[1])
        settings.REDIS_URL = kept[2]


def wait_until(is_so: Callable[[], bool], *, seconds: float = 120.0) -> None:
    """Wait for something that workers do. Fails the test when it does not happen."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def speak_to(url: str, options: dict[str, Any]) -> None:
    """Publish by another broker from now on."""
    pools.reset()  # connections to the one before, for good: a closed pool of the same address stays closed
    app.conf.update(broker_url=url, broker_transport_options=options)
    app._pool = None
    app.amqp._producer_pool = None
    if url.startswith("redis"):
        settings.REDIS_URL = url


def _is_alive(queue: Queue) -> bool:
    return beats.alive(beats.connect())[queue]


def same_database(tmp_path: Path) -> dict[str, str]:
    """Variables by which another process finds the database of this test."""
    name = connection.settings_dict["NAME"]
    if connection.vendor == "postgresql":
        base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
        return {"DATABASE_URL": f"{base}/{name}"}
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    (data / "tessera.sqlite3").symlink_to(name)
    return {"TESSERA_DATA_DIR": str(data)}
