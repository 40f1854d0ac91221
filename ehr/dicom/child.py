"""The decoding process: started once, used for many files, killed and replaced when a file makes it fail.

Whatever a hostile file does (a decompression bomb, a codec that crashes or never returns) costs that process
and one error, never ours. It imports numpy and pydicom only, in about half a second, once.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import json
import os
import selectors
import signal
import struct
import subprocess  # our own interpreter and our own module; no shell, no input in the arguments
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ehr.dicom import guard
from ehr.dicom.advice import SMALLER
from ehr.errors import BadInstance, Permanent, Retriable, TooLarge

IDLE_S = 60.0
# No keys, passwords or addresses where a stranger's file is decoded.
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
# glibc: buffers of a frame are kept for the next one; giving 8 MiB back and taking them anew costs 2,000 page
# faults a time, a third of decoding RLE. The process ends when idle, so nothing is held for long.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(32 * guard.MIB), "MALLOC_TRIM_THRESHOLD_": str(128 * guard.MIB)}
PIPE_WIDE = 1024 * 1024
PIPE_BUF = 4096  # a pipe that is ready takes this much without blocking
# The child needs four modules of ours, not the whole room: a bare `ehr` package spares it FHIR and HTTP.
START = (
    "import sys, types; bare = types.ModuleType('ehr'); bare.__path__ = [sys.argv.pop(1)];"
    "sys.modules['ehr'] = bare; from ehr.dicom.decoding import main; main()"
)
PACKAGE = str(Path(__file__).resolve().parents[1])


class _Gone(Exception):
    """The child ended without an answer. `code` as subprocess gives it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Decoder:
    """One decoding process and the lock that makes its callers take turns. Safe across threads and forks."""

    def __init__(self, limits: guard.Limits = guard.DEFAULT) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: dict[str, Any], data: bytes | None = None) -> tuple[Any, bytearray]:
        """Send one request, wait for its answer: (result, frames).

        raises  BadInstance, TooLarge as the child found; BadInstance when it crashed or took too long
        """
        if os.getpid() != self._owner:  # first use, or we are a fork of the owner: its child is not ours
            self._lock, self._process, self._owner = threading.Lock(), None, os.getpid()
        with self._lock:
            try:
                return self._ask(request, data)
            except _Gone as gone:
                if gone.code != 0:
                    raise BadInstance(_how_it_ended(gone.code)) from None
            try:  # it had left because nothing was asked for a while: begin again, once
                return self._ask(request, data)
            except _Gone as gone:
                raise BadInstance(_how_it_ended(gone.code)) from None

    def close(self) -> None:
        """End the child, if it is ours."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _ask(self, request: dict[str, Any], data: bytes | None) -> tuple[Any, bytearray]:
        process = self._started()
        deadline = time.monotonic() + self.limits.seconds
        head = json.dumps({**request, "bytes": len(data) if data else 0}).encode()
        try:
            _write(process, struct.pack("<I", len(head)) + head, deadline)
            if data:
                _write(process, data, deadline)
            answer = json.loads(_read(process, struct.unpack("<I", _read(process, 4, deadline))[0], deadline))
            frames = _read(process, int(answer["bytes"]), deadline)
        except TimeoutError:
            self.close()
            raise BadInstance(f"decoding took longer than {self.limits.seconds:g} s: {SMALLER}") from None
        except (EOFError, BrokenPipeError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            code = process.returncode
            self.close()
            raise _Gone(-signal.SIGKILL if code is None else code) from None
        except BaseException:
            self.close()  # interrupted half-way: what is left in the pipes is nobody's answer
            raise
        if answer["ok"]:
            return answer["result"], frames
        errors: dict[str, type[Permanent]] = {"TooLarge": TooLarge, "BadInstance": BadInstance}
        if answer["error"] == "TooLarge":
            self.close()  # give its memory back
        raise errors.get(answer["error"], BadInstance)(answer["message"])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        limits = json.dumps(dataclasses.asdict(self.limits))
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **KEPT}
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", START, PACKAGE, limits, str(IDLE_S)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=environment,
            )
        except OSError as error:
            raise Retriable(f"the decoding process cannot be started ({error.strerror})") from None
        _widen(self._process)
        return self._process


def _widen(process: subprocess.Popen[bytes]) -> None:
    """Let its answers through a pipe of 1 MiB instead of 64 KiB, where the system can and allows it."""
    if hasattr(fcntl, "F_SETPIPE_SZ") and process.stdout is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_WIDE)


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"the decoder crashed on this file ({signal.Signals(-code).name})"
    return f"the decoder ended on this file (exit {code})"


def _write(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    assert process.stdin is not None
    descriptor, left = process.stdin.fileno(), memoryview(data)
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_WRITE)
        while left:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            left = left[os.write(descriptor, left[:PIPE_BUF]) :]


def _read(process: subprocess.Popen[bytes], count: int, deadline: float) -> bytearray:
    assert process.stdout is not None
    descriptor, held, filled = process.stdout.fileno(), bytearray(count), 0
    view = memoryview(held)
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while filled < count:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            got = os.readv(descriptor, [view[filled:]])
            if not got:
                raise EOFError
            filled += got
    view.release()
    return held


_decoders: dict[guard.Limits, Decoder] = {}


def decoder(limits: guard.Limits = guard.DEFAULT) -> Decoder:
    """The decoding process for these limits, shared by this process."""
    return _decoders.setdefault(limits, Decoder(limits))


def ask(
    op: str, sources: Sequence[Path] | bytes, *, limits: guard.Limits = guard.DEFAULT, **more: Any
) -> tuple[Any, bytearray]:
    """Ask the shared decoding process about files, or about one file held in memory."""
    if isinstance(sources, bytes):
        guard.check_size(len(sources), limits)
        return decoder(limits).ask({"op": op, "paths": [], **more}, sources)
    return decoder(limits).ask({"op": op, "paths": [str(Path(path).absolute()) for path in sources], **more})


@atexit.register
def _close_all() -> None:
    for one in _decoders.values():
        one.close()
