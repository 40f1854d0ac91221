"""Where a request comes from: the proxy's word counts, a caller's own does not."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from django.test import RequestFactory
from pytest_django import Settings

from cds.audit import callers, recording

PROXY, PERSON = "172.18.0.1", "203.0.113.9"


@pytest.fixture
def behind_a_proxy(settings: Settings) -> None:
    settings.TRUSTED_PROXIES = (ip_network("127.0.0.1"), ip_network("172.16.0.0/12"))


def of(peer: str, said: str = "") -> str:
    headers = {"X-Forwarded-For": said} if said else None
    return callers.address_of(RequestFactory().get("/", headers=headers, REMOTE_ADDR=peer))


@pytest.mark.parametrize(
    ("peer", "said", "expected"),
    [
        (PROXY, PERSON, PERSON),
        (PROXY, f"198.51.100.7, {PERSON}", PERSON),  # what came before was written by the caller
        (PROXY, f"198.51.100.7,{PERSON} ", PERSON),
        (PROXY, f"{PERSON}, 172.20.0.5", "172.20.0.5"),  # somebody in the proxy's own network
        (PROXY, f"{PERSON}:49152", PERSON),
        (PROXY, "[2001:db8::7]:49152", "2001:db8::7"),
        (PROXY, "2001:db8::7", "2001:db8::7"),
        (PROXY, f"::ffff:{PERSON}", PERSON),
        ("::ffff:172.18.0.1", PERSON, PERSON),
        ("", PERSON, PERSON),  # a Unix socket
        (PROXY, "unknown", PROXY),
        (PROXY, "198.51.100.7, ", PROXY),
        (PROXY, "", PROXY),
        (PERSON, "198.51.100.7", PERSON),  # not through the proxy: whatever they say of themselves
        ("no address", "198.51.100.7", "no address"),
    ],
)
def test_the_last_hop_counts_when_the_proxy_wrote_it(
    behind_a_proxy: None, peer: str, said: str, expected: str
) -> None:
    assert of(peer, said) == expected


def test_without_a_proxy_the_header_is_nobodys(settings: Settings) -> None:
    settings.TRUSTED_PROXIES = ()
    assert of("127.0.0.1", PERSON) == "127.0.0.1"


def test_the_trail_and_the_lock_go_by_the_same_address(behind_a_proxy: None) -> None:
    request = RequestFactory().get("/", REMOTE_ADDR=PROXY, HTTP_X_FORWARDED_FOR=f"1.2.3.4, {PERSON}")
    assert recording.client(None, request).address == PERSON
    assert callers.lock_address(request) == PERSON


def test_a_lock_is_for_the_whole_of_somebodys_ipv6(behind_a_proxy: None) -> None:
    found = {
        callers.lock_address(RequestFactory().get("/", REMOTE_ADDR=PROXY, HTTP_X_FORWARDED_FOR=one))
        for one in ("2001:db8:1:2::7", "2001:db8:1:2:9:8:7:6")
    }
    assert found == {"2001:db8:1:2::"}
    assert callers.lock_address(RequestFactory().get("/", REMOTE_ADDR="")) is None


def test_a_header_that_is_not_believed_is_told_once(
    behind_a_proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(callers, "_told", set())
    monkeypatch.setattr(callers.logger, "warning", lambda said, *of: told.append(said % of))
    for _ in range(3):
        of("10.9.0.1", PERSON)
    assert len(told) == 1
    assert "10.9.0.1" in told[0]
    assert "TRUSTED_PROXIES" in told[0]
