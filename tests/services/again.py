"""Parts of the suite run once more, on PostgreSQL and Redis, beside the first run instead of after it.

They are other processes on another database, and take as long as the first run: on two cores both fit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tests.services.conftest import Services

ROOT = Path(__file__).parents[2]


class Again:
    """Runs asked for are carried out in turn, for they share one test database."""

    def __init__(self, services: Services) -> None:
        self._environment = {
            **os.environ,
            "DATABASE_URL": services.database_url,
            "REDIS_URL": services.redis_url,
        }
        self._turn = ThreadPoolExecutor(max_workers=1)
        self._runs: dict[tuple[str, ...], Future[tuple[int, str]]] = {}
        self._running: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def begin(self, *arguments: str) -> Future[tuple[int, str]]:
        """Ask for a run of pytest; the same arguments are run once."""
        if arguments not in self._runs:
            self._runs[arguments] = self._turn.submit(self._run, arguments)
        return self._runs[arguments]

    def said(self, *arguments: str) -> str:
        """What that run printed, once it has ended; AssertionError with it if it failed."""
        code, printed = self.begin(*arguments).result()
        assert code == 0, printed[-8000:]
        return printed

    def stop(self) -> None:
        """End what still runs, for a session that ends early."""
        self._is_stopped = True
        self._turn.shutdown(wait=False, cancel_futures=True)
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGINT)  # pytest ends what its tests have started

    def _run(self, arguments: tuple[str, ...]) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--create-db", *arguments]
        if self._is_stopped:
            return 1, "stopped"
        with tempfile.TemporaryDirectory() as data:
            self._running = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self._environment, "TESSERA_DATA_DIR": data},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            printed, _ = self._running.communicate()
        return self._running.returncode, printed
