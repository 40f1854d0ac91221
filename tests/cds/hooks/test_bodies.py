"""Bodies as they come in, before anybody has looked at the token: limited in length, in time and together."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from cds.hooks import serving
from cds.hooks.models import HookClient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import BASE, SERVICE, token
from tests.cds.hooks.test_serving import ask, server

__all__ = ["server"]
pytestmark = pytest.mark.django_db(transaction=True)


async def call(server: serving.HookServer, receive: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
    """A call whose body comes as `receive` gives it."""
    given = {"host": "127.0.0.1:8000", "content-type": "application/json"} | headers
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {
        "type": "http", "http_version": "1.1", "scheme": "http", "method": "POST", "path": SERVICE,
        "raw_path": SERVICE.encode(), "root_path": "", "query_string": b"", "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8000),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    await server(scope, receive, send)
    start, end = sent
    told = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], told, orjson.loads(end["body"])


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def unread() -> dict[str, Any]:
    raise AssertionError("the body is not wanted")


@pytest.mark.parametrize("length", [serving.MAX_BODY_BYTES + 1, 10**12])
def test_a_body_that_is_declared_too_long_is_refused_unread(
    server: serving.HookServer, hook_client: HookClient, version: ModelVersion, length: int
) -> None:
    signed = {"authorization": f"Bearer {token(BASE + SERVICE)}", "content_length": str(length)}
    status, _, said = asyncio.run(call(server, unread, **signed))
    assert (status, said["issue"][0]["code"]) == (413, "too-long")
    status, _, _ = asyncio.run(call(server, unread, content_length=str(length)))
    assert status == 401, "a stranger learns nothing else"


def test_a_body_that_does_not_come_is_not_waited_for(
    server: serving.HookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "BODY_S", 0.02)
    status, headers, said = asyncio.run(call(server, never))
    assert (status, headers["connection"]) == (408, "close")
    assert said["issue"][0]["code"] == "timeout"
    assert "send it without a pause" in said["issue"][0]["diagnostics"]
    assert server._read == 0


def test_bodies_under_way_are_limited_all_together(
    server: serving.HookServer,
    hook_client: HookClient,
    version: ModelVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "MOST_READ", 2500)

    async def two_at_once() -> tuple[tuple[int, dict[str, str], Any], int]:
        more = asyncio.Event()
        begun = [{"type": "http.request", "body": b" " * 2000, "more_body": True}]

        async def first() -> Any:
            if begun:
                return begun.pop()
            await more.wait()
            return {"type": "http.disconnect"}

        async def second() -> Any:
            return {"type": "http.request", "body": b" " * 1000, "more_body": True}

        under_way = asyncio.create_task(call(server, first))
        while not server._read:
            await asyncio.sleep(0)
        refused = await call(server, second)
        held = server._read
        more.set()
        with pytest.raises(ValueError, match="unpack"):  # it has gone without an answer
            await under_way
        return refused, held

    (status, headers, said), held = asyncio.run(two_at_once())
    assert (status, headers["retry-after"], held) == (503, "5", 2000)
    assert said["issue"][0]["code"] == "transient"
    assert server._read == 0
    assert ask(server, SERVICE, orjson.dumps({"hook": "patient-view"}))[0] == 400, "there is room again"
