"""Reading what was not sent ahead: paging, limits, and addresses that are not called. OPERATIONS 8."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch

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


class Counting(ThreadingHTTPServer):
    """A FHIR server that counts connections; `closes`: it hangs up after each answer without saying so."""

    daemon_threads, request_queue_size = True, 100

    def __init__(self) -> None:
        self.connections, self.closes, self.cookies = 0, False, list[str | None]()
        super().__init__(("127.0.0.1", 0), _Answering)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().finish_request(request, client_address)


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Counting

    def do_GET(self) -> None:
        body = json.dumps(PATIENT).encode()
        self.server.cookies.append(self.headers["Cookie"])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "session=of-one-call")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.server.closes

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Counting]:
    found = Counting()
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize("closes", [False, True])
def test_connections_are_kept_for_the_next_call_and_cookies_are_not(server: Counting, closes: bool) -> None:
    server.closes = closes
    for _ in range(5):
        found = ehr.complete_prefetch(
            {"patient": "Patient/p1"}, base_url=f"http://127.0.0.1:{server.server_port}/fhir", within_s=3
        )
        assert found.resources == {"patient": PATIENT}
    assert server.connections == (5 if closes else 1)
    assert server.cookies == [None] * 5


def test_calls_side_by_side_share_no_more_than_connections(server: Counting) -> None:
    base = f"http://127.0.0.1:{server.server_port}/fhir"

    def call(number: int) -> ehr.Completed:
        return ehr.complete_prefetch(
            {f"{number}-{key}": "Patient/p1" for key in range(5)}, base_url=base, within_s=3
        )

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, range(16)))
    assert [set(one.resources) for one in found] == [
        {f"{number}-{key}" for key in range(5)} for number in range(16)
    ]
    assert server.connections <= 40  # eight calls of five at once


def test_a_process_that_was_forked_connects_anew(server: Counting) -> None:
    base = f"http://127.0.0.1:{server.server_port}/fhir"
    assert ehr.complete_prefetch({"patient": "Patient/p1"}, base_url=base, within_s=3).resources
    with patch("os.getpid", return_value=-1):
        assert ehr.complete_prefetch({"patient": "Patient/p1"}, base_url=base, within_s=3).resources
    assert server.connections == 2
