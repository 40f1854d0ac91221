"""What a client that waits by itself connects to: what was looked at at that very moment. OPERATIONS 8."""

from __future__ import annotations

import socket
import threading
from typing import Any

import httpcore
import pytest

import ehr

BASE = "https://ehr.example.org/fhir"


def _read(timeout_s: float = 1.0) -> None:
    connections = ehr.guarded_connections()
    with ehr.FhirClient(BASE, transport=connections, timeout_s=timeout_s, attempts=1) as client:
        client.read("Patient", "p1")


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.1.2.3", "127.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["fd00:ec2::254"]],
    ids=["this machine", "one good address of two", "metadata", "mapped", "metadata by IPv6"],
)
def test_a_name_that_leads_here_is_not_connected_to(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    def looked_up(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", (one, 443)) for one in addresses]

    def connect(*_: Any, **__: Any) -> Any:
        pytest.fail("connected")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    with pytest.raises(ehr.Retriable, match="reserved network, which is not called"):
        _read()


def test_what_was_looked_at_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is bound anew after the look gains nothing: it is looked up once."""
    answers, tried = iter([["10.1.2.3"], ["127.0.0.1"]]), []

    def looked_up(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", (one, 443)) for one in next(answers)]

    def connect(self: Any, host: str, *_: Any, **__: Any) -> Any:
        tried.append(host)
        raise httpcore.ConnectError("as far as this test goes")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    with pytest.raises(ehr.Retriable, match="ConnectError"):
        _read()
    assert tried == ["10.1.2.3"]


def test_a_name_server_that_is_silent_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    def silent(*_: Any, **__: Any) -> list[Any]:
        is_over.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    with pytest.raises(ehr.Retriable, match="ConnectTimeout"):
        _read(timeout_s=0.1)
    is_over.set()
