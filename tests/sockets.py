"""No test speaks to the outside: sockets reach loopback and local files only. Used by tests/conftest.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest


class OutsideWorld(Exception):
    """A test tried to reach an address that is not this machine."""


def is_inside(address: Any) -> bool:
    """Whether a socket address is loopback, or a path on this machine."""
    if not isinstance(address, tuple):
        return True  # AF_UNIX
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def only_loopback() -> Iterator[None]:
    """Refuse to connect anywhere else, and to look up any name but localhost."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(address: Any) -> None:
        if not is_inside(address):
            raise OutsideWorld(f"tests may not reach {address[0]}")

    def checked_connect(self: socket.socket, address: Any) -> None:
        check(address)
        return connect(self, address)

    def checked_connect_ex(self: socket.socket, address: Any) -> int:
        check(address)
        return connect_ex(self, address)

    def checked_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None:
            check((name,))
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", checked_connect)
        patch.setattr(socket.socket, "connect_ex", checked_connect_ex)
        patch.setattr(socket, "getaddrinfo", checked_look_up)
        yield
