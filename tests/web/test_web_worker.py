"""The web server's worker: connections are shared out, kept alive, ended, and TLS works."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from cds.demo.environment import free_port
from cds.web_worker import Loop

APP = """
import os

async def application(scope, receive, send):
    assert scope["type"] == "http"
    seen = f"{scope['client'][0]} {scope['scheme']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-seen", seen)]})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""
WORKERS, CONNECTIONS = 2, 8
T = TypeVar("T")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    (tmp_path / "says_who.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "says_who:application", "-k", "cds.web_worker.Worker"]
    command += ["--bind", f"127.0.0.1:{port}", "--workers", str(WORKERS), "--no-control-socket"]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root})
    try:
        _await_workers(f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}/", process
    finally:
        process.terminate()  # killed, it would leave its workers behind
        process.wait()


def _await_workers(url: str) -> None:
    seen = set[str]()
    until = time.monotonic() + 60
    while len(seen) < WORKERS:
        assert time.monotonic() < until, "the server did not start"
        try:
            seen.add(httpx.get(url, trust_env=False, timeout=5).text)
        except httpx.TransportError:
            time.sleep(0.1)


def _elsewhere(run: Callable[[], T]) -> T:
    """In a thread of its own: after browser tests an event loop is running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def test_connections_that_come_at_once_are_shared_out(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """Otherwise whichever process wakes first holds them all, and the other cores have nothing to do."""
    url, _ = served

    async def hold() -> Counter[str]:
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=10) as http:
            answers = await asyncio.gather(*(http.get(url) for _ in range(CONNECTIONS)))
            return Counter(answer.text for answer in answers)

    held = _elsewhere(lambda: asyncio.run(hold()))
    assert len(held) == WORKERS
    assert min(held.values()) >= CONNECTIONS // 4, held


def test_what_a_proxy_says_is_left_to_who_knows_the_proxies(
    served: tuple[str, subprocess.Popen[bytes]],
) -> None:
    """Or the trail could not tell the proxy's word (TRUSTED_PROXIES) from a caller's own."""
    said = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    answer = httpx.get(served[0], headers=said, trust_env=False, timeout=10)
    assert answer.headers["x-seen"] == "127.0.0.1 http"


def test_an_idle_connection_does_not_keep_the_server_from_stopping(
    served: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, process = served
    with httpx.Client(trust_env=False) as http:
        http.get(url)
        process.terminate()
        assert process.wait(timeout=10) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_workers_end_with_a_master_that_was_killed(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """Or they keep the port, and who starts the server anew is answered by the old one."""
    url, process = served
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            httpx.get(url, trust_env=False, timeout=5)
        except httpx.ConnectError:
            return
        except httpx.TransportError:
            pass  # one that is just ending
        time.sleep(0.1)
    pytest.fail("workers without a master still serve")


def test_the_socket_stays_open_for_others_once_one_takes_no_more() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    loop = Loop()

    async def take_and_stop() -> None:
        server = await loop.create_server(asyncio.Protocol, sock=listener)
        client = socket.create_connection(listener.getsockname())
        await asyncio.sleep(0.1)
        server.close()
        await server.wait_closed()
        client.close()

    _elsewhere(lambda: loop.run_until_complete(take_and_stop()))
    later = socket.create_connection(listener.getsockname())
    assert listener.accept()[1] == later.getsockname()
    loop.close()


def test_servers_of_another_kind_are_as_ever() -> None:
    loop = Loop()

    async def start() -> None:
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        assert server.is_serving()
        server.close()

    _elsewhere(lambda: loop.run_until_complete(start()))
    loop.close()
