"""Services of others that keep to 2.0 are not failed for what 2.0 leaves to them."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.conformance import (
    peers,
    rules_of_feedback,
    rules_of_launch,
    rules_of_messages,
    rules_of_reading,
)
from tests.conformance.judging import Check, NotApplicable
from tests.conformance.service import Ehr, Service

OFFERED = {
    "hook": "patient-view",
    "id": "another",
    "description": "Speaks when there is something to say",
    "prefetch": {
        "patient": "Patient/{{context.patientId}}",
        "values": "Observation?patient={{context.patientId}}",
        "problems": "Condition?patient={{context.patientId}}",
    },
}


@contextmanager
def another(
    shown: list[dict[str, Any]], body_limit: int = 0, policy: str = ""
) -> Iterator[tuple[str, list[Any]]]:
    """A service of somebody else that answers a call with these cards: its address, and the feedback it had.

    It reads what a prefetch lacks, refuses a longer body (0: takes any), and feedback about other suggestions
    than its own. Its pages say `policy`.
    """
    told: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"services": [OFFERED]})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            sent = json.loads(self.rfile.read(length))
            if body_limit and length > body_limit:
                self._answer(413, {"resourceType": "OperationOutcome", "issue": [{"code": "too-long"}]})
            elif self.path.endswith("/feedback"):
                told.extend(sent["feedback"])
                self._answer(200, {})
            else:
                self._read_on(sent)
                self._answer(200, {"cards": [{**card, "uuid": str(uuid.uuid4())} for card in shown]})

        def _read_on(self, sent: Any) -> None:
            if "fhirServer" not in sent or sent["fhirServer"].endswith("invalid/fhir"):
                return
            headers = {"Authorization": f"Bearer {sent['fhirAuthorization']['access_token']}"}
            for key, query in OFFERED["prefetch"].items():  # type: ignore[attr-defined]
                if key not in sent["prefetch"]:
                    where = query.replace("{{context.patientId}}", sent["context"]["patientId"])
                    httpx.get(f"{sent['fhirServer']}/{where}", headers=headers, trust_env=False)

        def _answer(self, status: int, said: Any) -> None:
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Security-Policy", policy)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", told
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextmanager
def as_seen(url: str, **known: Any) -> Iterator[Service]:
    service = Service(url, Ehr(**known))
    try:
        yield service
    finally:
        service.close()


NEEDS_A_CARD: list[Check] = [
    rules_of_messages.whole_prefetch,
    rules_of_messages.wrong_prefetch,
    rules_of_messages.card,
    rules_of_messages.detail,
    rules_of_messages.uuids,
    rules_of_messages.suggestions,
    rules_of_messages.reasons,
    rules_of_messages.links,
    rules_of_feedback.feedback,
    rules_of_feedback.feedback_twice,
    rules_of_feedback.feedback_malformed,
]


@pytest.mark.parametrize("check", NEEDS_A_CARD)
def test_a_service_without_anything_to_say_is_not_judged_by_cards(check: Check) -> None:
    with another([]) as (url, _), as_seen(url) as service, pytest.raises(NotApplicable, match="card"):
        check(service)


def test_what_it_reads_is_judged_all_the_same() -> None:
    with peers.serving() as beside, another([]) as (url, _), as_seen(url, peers=beside) as service:
        rules_of_reading.absent(service)
        assert len(beside.asked) == 2
        OFFERED["prefetch"], whole = {"a": "Observation?x=1", "b": "Condition?x=1"}, OFFERED["prefetch"]
        try:
            with pytest.raises(AssertionError, match="somebody else was read"):
                rules_of_reading.absent(service)
        finally:
            OFFERED["prefetch"] = whole


def test_a_large_body_is_sent_where_it_is_known_what_is_large() -> None:
    with another([], body_limit=2000) as (url, _):
        with as_seen(url) as service, pytest.raises(NotApplicable, match="--body-limit"):
            rules_of_messages.too_large(service)
        with as_seen(url, body_limit=2000) as service:
            rules_of_messages.too_large(service)
        with as_seen(url, body_limit=1000) as service, pytest.raises(AssertionError, match="instead of 413"):
            rules_of_messages.too_large(service)


def test_feedback_accepts_what_the_card_suggested() -> None:
    offered = {"label": "Order it", "uuid": "s-1"}
    card = {"summary": "x", "indicator": "info", "source": {"label": "x"}, "suggestions": [offered]}
    with another([card]) as (url, told), as_seen(url) as service:
        rules_of_messages.whole_prefetch(service)
        rules_of_feedback.feedback(service)
    assert [one.get("acceptedSuggestions") for one in told] == [[{"id": "s-1"}], None, None]


def test_every_key_of_a_prefetch_may_be_asked_for_at_once() -> None:
    """Also before the suite's server has taken any of them: a service has half a second for all."""
    server = peers.AllAtOnce(("127.0.0.1", 0), BaseHTTPRequestHandler)
    with ExitStack() as held:
        held.callback(server.server_close)
        for _ in range(30):
            held.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=20))


def test_keys_of_another_run_are_not_called_by_the_same_name() -> None:
    assert peers.Peers().keys[0].kid != peers.Peers().keys[0].kid


def test_who_calls_need_not_be_who_frames() -> None:
    """An origin for CORS says nothing of frames; a page that any site may frame is wrong all the same."""
    with another([], policy="frame-ancestors 'self' https://chart.example") as (url, _):
        with as_seen(url, origin="https://caller.example") as service:
            rules_of_launch.frames(service)
        with as_seen(url, frame="https://chart.example") as service:
            rules_of_launch.frames(service)
        with as_seen(url, frame="https://caller.example") as service, pytest.raises(AssertionError):
            rules_of_launch.frames(service)
