"""A hostile file costs an error, never memory, time or the process (INTEROP 42)."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehr import BadInstance, EhrError, TooLarge, pixel_digest, read_clip, read_header
from ehr.dicom import child, guard
from tests.ehr.dicom.making import bomb, make_dataset, make_file, save

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_deflate_bomb_is_stopped_while_inflating(tmp_path: Path) -> None:
    path = bomb(tmp_path, megabytes=400)
    assert path.stat().st_size < 2_000_000
    limits = replace(guard.DEFAULT, inflated_bytes=32 * guard.MIB)
    for read in (read_header, pixel_digest):
        with pytest.raises(TooLarge, match="inflates beyond 32 MiB"):
            read(path, limits=limits)
    with pytest.raises(TooLarge, match="inflates beyond 32 MiB"):
        read_clip([path], limits=limits)
    assert read_header(make_file(tmp_path, RAMP), limits=limits).has_pixels


def test_a_bomb_of_the_full_size_does_not_reach_us(tmp_path: Path) -> None:
    """With the limits of production: the child refuses, and this process has not grown."""
    path = bomb(tmp_path, megabytes=600)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLarge, match="inflates beyond 512 MiB"):
        read_header(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_inflation_never_holds_more_than_the_limit() -> None:
    packed = bytes.fromhex("4b04")  # not the end of a stream
    with pytest.raises(BadInstance, match="truncated"):
        guard.inflate(packed)
    with pytest.raises(BadInstance, match="damaged"):
        guard.inflate(b"\xff" * 50)


def test_memory_limit_holds_in_the_child(tmp_path: Path) -> None:
    path = make_file(tmp_path, np.zeros((6000, 6000), np.uint16))
    limits = replace(guard.DEFAULT, memory_bytes=420 * guard.MIB)
    with pytest.raises(TooLarge, match="memory"):
        read_clip([path], max_side=6000, limits=limits)
    assert read_clip([make_file(tmp_path, RAMP)]).frames.shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"NumberOfFrames": 2_000_000}, "frames"),
        ({"Rows": 65_535}, "a side"),
        ({"Rows": 30_000, "Columns": 30_000}, "one frame"),
        ({"Rows": 10_000, "Columns": 10_000, "NumberOfFrames": 2_000}, "the frames"),
    ],
)
def test_promises_over_the_limits(tmp_path: Path, elements: dict[str, int], words: str) -> None:
    path = make_file(tmp_path, RAMP, **elements)
    with pytest.raises(TooLarge, match=words):
        read_clip([path])


def test_file_size(tmp_path: Path) -> None:
    path = make_file(tmp_path, RAMP)
    with pytest.raises(TooLarge, match="the file has"):
        read_header(path, limits=replace(guard.DEFAULT, file_bytes=100))
    with pytest.raises(TooLarge):
        read_header(path.read_bytes(), limits=replace(guard.DEFAULT, file_bytes=100))


def _pid() -> int:
    process = child.decoder()._process
    assert process is not None
    return process.pid


def test_a_crashing_decoder_costs_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_file(tmp_path, RAMP)
    read_header(path)
    first = _pid()
    send = child._write

    def send_then_crash(process: object, data: bytes, deadline: float) -> None:
        os.kill(first, signal.SIGSEGV)
        time.sleep(0.2)
        send(process, data, deadline)  # type: ignore[arg-type]

    monkeypatch.setattr(child, "_write", send_then_crash)
    with pytest.raises(BadInstance, match="crashed"):
        read_header(path)
    monkeypatch.undo()
    assert read_header(path).has_pixels
    assert _pid() != first


def test_a_decoder_that_never_returns_is_ended(tmp_path: Path) -> None:
    path = make_file(tmp_path, RAMP)
    limits = replace(guard.DEFAULT, seconds=6.0)
    read_header(path, limits=limits)
    process = child.decoder(limits)._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(BadInstance, match="longer than 6 s"):
        read_header(path, limits=limits)
    assert process.poll() is not None
    assert read_header(path, limits=limits).has_pixels


def test_the_decoder_knows_no_secret_and_imports_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "do-not-tell")
    limits = replace(guard.DEFAULT, seconds=60.5)  # a process of its own
    read_clip([make_file(tmp_path, RAMP)], limits=limits)
    process = child.decoder(limits)._process
    assert process is not None
    proc = Path(f"/proc/{process.pid}")
    if not proc.exists():
        pytest.skip("this system has no /proc")
    assert b"do-not-tell" not in (proc / "environ").read_bytes()
    mapped = (proc / "maps").read_text()
    assert "numpy" in mapped
    assert not [name for name in ("torch", "pydantic_core", "psycopg") if name in mapped]
    resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident < 200 * guard.MIB


def test_one_process_serves_many_files_and_threads(tmp_path: Path) -> None:
    paths = [make_file(tmp_path, RAMP, f"{n}.dcm", InstanceNumber=n) for n in range(12)]
    read_header(paths[0])
    pid, numbers = _pid(), []
    threads = [
        threading.Thread(target=lambda path=path: numbers.append(read_header(path).instance_number))
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for n in numbers if n is not None) == list(range(12))
    assert _pid() == pid


def test_a_fork_gets_a_decoder_of_its_own(tmp_path: Path) -> None:
    path = make_file(tmp_path, RAMP)
    read_header(path)
    mine = _pid()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # as a Celery prefork worker would
        try:
            read_header(path)
            os.write(writer, str(_pid()).encode())
            child.decoder().close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    assert int(os.read(reader, 20) or b"0") not in (0, mine)
    os.close(reader)
    assert read_header(path).has_pixels
    assert _pid() == mine


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_raise_nothing_but_ehr_errors(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "seed.dcm"
    if not path.exists():
        save(make_dataset(RAMP, WindowCenter=100, WindowWidth=50, PixelSpacing=[1, 1]), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    for read in (read_header, pixel_digest, read_clip):
        with contextlib.suppress(EhrError):  # anything else fails the test
            read(bytes(content))
