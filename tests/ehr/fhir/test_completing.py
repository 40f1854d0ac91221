"""Reading what was not sent ahead: paging, limits, and addresses that are not called. OPERATIONS 8."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpcore
import httpx
import pytest

import ehr
from ehr.addresses import check_resolved
from ehr.fhir import completing

BASE = "https://ehr.example.org/fhir"
PATIENT = {"resourceType": "Patient", "id": "p1"}


def page(*ids: str, following: str = "") -> dict[str, Any]:
    bundle: dict[str, Any] = {
        "resourceType": "Bundle",
        "entry": [{"resource": {"resourceType": "Observation", "id": one}} for one in ids],
    }
    return bundle | ({"link": [{"relation": "next", "url": following}]} if following else {})


def fetch(
    answer: Callable[[httpx.Request], httpx.Response], queries: dict[str, str], **changes: Any
) -> ehr.Completed:
    known: dict[str, Any] = {"base_url": BASE, "token": "secret", "transport": httpx.MockTransport(answer)}
    return ehr.complete_prefetch(queries, changes.pop("begun", None), **{**known, **changes})


def test_every_key_is_asked_for_with_the_token_under_the_base_address() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=PATIENT if "Patient/" in request.url.path else page("o1"))

    found = fetch(answer, {"patient": "Patient/p1", "labs": "Observation?patient=p1&code=http://loinc.org|1"})
    assert found.resources["patient"] == PATIENT
    assert [entry["resource"]["id"] for entry in found.resources["labs"]["entry"]] == ["o1"]
    assert {request.headers["Authorization"] for request in asked} == {"Bearer secret"}
    assert {request.url.path for request in asked} == {"/fhir/Patient/p1", "/fhir/Observation"}


def test_pages_are_followed_from_where_the_ehr_stopped() -> None:
    pages = {"2": page("o2", following=f"{BASE}?page=3"), "3": page("o3")}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=pages[request.url.params["page"]])

    found = fetch(answer, {"labs": ""}, begun={"labs": page("o1", following=f"{BASE}/Observation?page=2")})
    assert [entry["resource"]["id"] for entry in found.resources["labs"]["entry"]] == ["o1", "o2", "o3"]


@pytest.mark.parametrize(
    "following",
    [
        "https://elsewhere.example/fhir/Observation?page=2",
        "http://ehr.example.org/fhir/Observation?page=2",
        "https://ehr.example.org:8443/fhir/Observation?page=2",
        "https://ehr.example.org/admin",
        "https://ehr.example.org/fhirx/Observation",
        "https://ehr.example.org/fhir/../admin",
        "https://ehr.example.org/fhir/%2e%2e/admin",
        "https://user@ehr.example.org/fhir/Observation?page=2",
        "//elsewhere.example/fhir",
        "https://[",
    ],
)
def test_a_next_page_outside_the_server_is_not_called(following: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return pytest.fail("called") if "page" in str(request.url) else httpx.Response(200, json=first)

    first = page("o1", following=following)
    found = fetch(answer, {"labs": "Observation?patient=p1"})
    assert not found.resources
    assert set(found.failed) == {"labs"}


def test_pages_that_go_round_in_circles_end() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=page("o1", following=f"{BASE}/Observation?patient=p1"))

    assert set(fetch(answer, {"labs": "Observation?patient=p1"}).failed) == {"labs"}


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (httpx.Response(302, headers={"Location": "http://127.0.0.1/"}), "redirects are not followed"),
        (httpx.Response(401), "401"),
        (httpx.Response(500), "500"),
        (httpx.Response(200, content=b"{"), "not JSON"),
        (httpx.Response(200, json=[]), "not a FHIR resource"),
        (httpx.Response(200, json={"resourceType": "OperationOutcome"}), "OperationOutcome"),
        (httpx.Response(200, content=b" " * (completing.MAX_BODY_BYTES + 1)), "larger"),
    ],
)
def test_what_fails_is_told_and_the_rest_still_counts(response: httpx.Response, said: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=PATIENT) if "Patient/" in request.url.path else response

    found = fetch(answer, {"patient": "Patient/p1", "labs": "Observation?patient=p1"})
    assert found.resources == {"patient": PATIENT}
    assert said in found.failed["labs"]
    assert "secret" not in str(found)


def test_what_does_not_come_in_time_is_told_and_the_rest_still_counts() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        if "Patient/" not in request.url.path:
            await asyncio.Event().wait()  # for ever
        return httpx.Response(200, json=PATIENT)

    found = fetch(answer, {"patient": "Patient/p1", "labs": "Observation?patient=p1"}, within_s=0.2)  # type: ignore[arg-type]
    assert found.resources == {"patient": PATIENT}
    assert "in time" in found.failed["labs"]


@pytest.mark.parametrize("base", ["http://ehr.example.org/fhir", "ftp://x", "https://u@ehr.example.org", "x"])
def test_an_address_that_may_not_be_called_is_refused(base: str) -> None:
    with pytest.raises(ehr.Refused):
        fetch(lambda request: pytest.fail("called"), {"patient": "Patient/p1"}, base_url=base)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1%eth0", "224.0.0.1", "0.0.0.0",
        "240.0.0.1",
    ],
)  # fmt: skip
def test_a_name_may_not_lead_to_this_machine_or_its_cloud(address: str) -> None:
    with pytest.raises(ehr.Refused):
        check_resolved("ehr.example.org", address)


def test_hospital_networks_and_a_registered_loopback_may_be_called() -> None:
    check_resolved("ehr.example.org", "10.1.2.3")
    check_resolved("ehr.example.org", "192.0.2.1")
    check_resolved("127.0.0.1", "127.0.0.1")


def test_the_address_is_looked_at_again_when_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was fine when it was registered and leads to this machine now: nothing is connected to."""

    def rebound(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", ("10.1.2.3", 443)), (0, 0, 0, "", ("127.0.0.1", 443))]

    async def connect(*_: Any, **__: Any) -> Any:
        pytest.fail("connected")

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    found = ehr.complete_prefetch({"patient": "Patient/p1"}, base_url=BASE, within_s=1)
    assert "ConnectError" in found.failed["patient"]


def test_a_name_server_that_is_silent_holds_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up cannot be broken off: the call ends all the same, before the name server has answered."""
    is_over, was_over = threading.Event(), []

    def silent(*_: Any, **__: Any) -> list[Any]:
        was_over.append(is_over.wait(20))
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    found = ehr.complete_prefetch({"patient": "Patient/p1"}, base_url=BASE, within_s=0.1)
    is_over.set()
    assert "in time" in found.failed["patient"]
    while not was_over:
        time.sleep(0.01)
    assert was_over == [True]
