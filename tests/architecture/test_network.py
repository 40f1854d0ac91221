"""Tests reach this machine only."""

from __future__ import annotations

import socket

import httpx
import pytest

from tests.sockets import OutsideWorld, is_inside

TEST_NET_1 = "192.0.2.1"  # RFC 5737: routed nowhere


def test_the_outside_cannot_be_reached() -> None:
    with pytest.raises(OutsideWorld):
        socket.create_connection((TEST_NET_1, 80), timeout=1)
    with pytest.raises(OutsideWorld):
        httpx.get(f"http://{TEST_NET_1}/", timeout=1)
    with pytest.raises(OutsideWorld):
        socket.getaddrinfo("example.org", 80)


@pytest.mark.parametrize(
    ("address", "inside"),
    [(("127.0.0.1", 1), True), (("::1", 1, 0, 0), True), ("/tmp/socket", True), ((TEST_NET_1, 1), False)],
)
def test_what_counts_as_this_machine(address: object, inside: bool) -> None:
    assert is_inside(address) == inside
