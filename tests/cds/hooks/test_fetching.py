"""A partial prefetch completed from the EHR's FHIR server. INTEROP 7, 9, 11; OPERATIONS 8."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from django.apps import apps
from django.utils import timezone

import ehr
from cds.hooks.models import HookClient, PrefetchRead
from cds.patients.models import Observation, Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import (
    SERVICE,
    Call,
    heart_rate,
    hook_body,
    patient_resource,
    searchset,
)

SECRET = "canary-token-1234567"


class FhirServer:
    """What stands in for the EHR's FHIR server: answers by path, asked for requests; on loopback."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, str]] = []
        self.hold = threading.Event()
        self.hold.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization", "")))
                outer.hold.wait(20)
                key = self.path.removeprefix("/fhir/").partition("?")[0]
                found = outer.answers.get(self.path) or outer.answers.get(key)
                body = orjson.dumps(found or searchset())
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    pass  # the caller did not wait

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self._http.server_port}/fhir"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.hold.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(hook_client: HookClient) -> Iterator[FhirServer]:
    """The FHIR server that is registered for the EHR."""
    found = FhirServer()
    hook_client.fhir_servers = [found.base]
    hook_client.save()
    yield found
    found.close()


def access(base: str, **changes: Any) -> dict[str, Any]:
    known = {
        "access_token": SECRET, "token_type": "Bearer", "expires_in": 300, "scope": "patient/*.rs",
        "subject": "tessera", "patient": "p1",
    }  # fmt: skip
    return {"fhirServer": base, "fhirAuthorization": {**known, **changes}}


def test_without_any_prefetch_all_of_it_is_read(
    call: Call, version: ModelVersion, server: FhirServer
) -> None:
    server.answers["Patient/p1"] = patient_resource()
    server.answers["Observation"] = searchset(heart_rate(91, at=timezone.now()))
    response = call(SERVICE, hook_body(prefetch=None, **access(server.base)))
    assert response.status_code == 200
    assert Patient.objects.get().family == "Testperson"
    assert Observation.objects.get().value == 91
    assert {token for _, token in server.asked} == {f"Bearer {SECRET}"}
    (card,) = response.json()["cards"]
    assert "Not supplied" not in card["detail"]


def test_only_what_is_absent_is_read(call: Call, version: ModelVersion, server: FhirServer) -> None:
    prefetch = {
        "patient": patient_resource(),
        "vitals": searchset(heart_rate(88, at=timezone.now())),
        "conditions": None,  # there are none
        "labs": {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "login"}]},
    }
    (card,) = call(SERVICE, hook_body(prefetch=prefetch, **access(server.base))).json()["cards"]
    paths = [path for path, _ in server.asked]
    assert not [path for path in paths if "Patient" in path or "Condition" in path]
    assert not [path for path in paths if "2524-7" in path or "8867-4" in path]  # labs failed, vitals came
    assert [path for path in paths if "Encounter" in path]
    line = next(line for line in card["detail"].splitlines() if "Not supplied" in line)
    assert line == "- Not supplied by the EHR: labs"


def test_further_pages_of_a_sent_bundle_are_read(
    call: Call, version: ModelVersion, server: FhirServer
) -> None:
    now = timezone.now()
    server.answers["/fhir/Observation?page=2"] = searchset(heart_rate(91, at=now, resource_id="hr2"))
    first = searchset(
        heart_rate(88, at=now), link=[{"relation": "next", "url": f"{server.base}/Observation?page=2"}]
    )
    prefetch = {"patient": patient_resource(), "vitals": first}
    (card,) = call(SERVICE, hook_body(prefetch=prefetch, **access(server.base))).json()["cards"]
    assert set(Observation.objects.values_list("value", flat=True)) == {88, 91}
    assert "Not supplied" not in card["detail"]


def test_a_server_that_is_not_registered_is_never_called(
    call: Call, version: ModelVersion, server: FhirServer, hook_client: HookClient
) -> None:
    hook_client.fhir_servers = ["https://fhir.example.org"]
    hook_client.save()
    response = call(SERVICE, hook_body(prefetch=None, **access(server.base)))
    assert response.status_code == 412
    assert "not registered" in response.json()["issue"][0]["diagnostics"]
    assert not server.asked
    assert call(SERVICE, hook_body(**access(server.base))).status_code == 200  # what was sent is enough
    assert not server.asked


def test_without_a_token_nothing_is_read(call: Call, version: ModelVersion, server: FhirServer) -> None:
    assert call(SERVICE, hook_body(prefetch=None, fhirServer=server.base)).status_code == 412
    assert not server.asked


def test_a_token_for_another_patient_is_403(call: Call, version: ModelVersion, server: FhirServer) -> None:
    response = call(SERVICE, hook_body(**access(server.base, patient="p2")))
    assert response.status_code == 403
    assert response.json()["issue"][0]["code"] == "forbidden"
    assert not server.asked
    assert not Patient.objects.exists()


def test_a_server_that_does_not_answer_in_time_is_told(
    call: Call, version: ModelVersion, server: FhirServer, settings: Any
) -> None:
    settings.HOOKS_BUDGET_S = 4.0
    server.hold.clear()  # it answers when the test is over, and not before
    response = call(SERVICE, hook_body(prefetch=None, **access(server.base)))
    assert response.status_code == 412
    assert "did not answer in time" in response.json()["issue"][0]["diagnostics"]
    settings.HOOKS_BUDGET_S = 4.0
    (card,) = call(SERVICE, hook_body(**access(server.base))).json()["cards"]
    assert "Not supplied by the EHR: encounters" in card["detail"]


def test_a_search_that_failed_is_no_empty_answer(
    call: Call, version: ModelVersion, server: FhirServer
) -> None:
    failed = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception"}]}
    server.answers["Encounter"] = searchset(failed)
    (card,) = call(SERVICE, hook_body(**access(server.base))).json()["cards"]
    assert "Not supplied by the EHR: encounters" in card["detail"]


def test_what_was_completed_is_read_again_next_time(
    call: Call, version: ModelVersion, server: FhirServer
) -> None:
    body = hook_body(**access(server.base))
    call(SERVICE, body)
    before = len(server.asked)
    call(SERVICE, body)
    assert len(server.asked) == 2 * before > 0  # the same bytes say nothing about what the server holds now
    assert not PrefetchRead.objects.exists()


def test_the_token_is_kept_nowhere(
    call: Call, version: ModelVersion, server: FhirServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answers["Condition"] = {"resourceType": "OperationOutcome", "issue": [{"diagnostics": SECRET}]}
    for prefetch in (None, {"patient": patient_resource()}):
        assert call(SERVICE, hook_body(prefetch=prefetch, **access(server.base))).status_code == 200
    assert call(SERVICE, hook_body(prefetch=None, **access(server.base, patient="p2"))).status_code == 403
    assert len(server.asked) > 2
    assert SECRET not in caplog.text
    for model in apps.get_models():
        for row in model._default_manager.values():
            assert SECRET not in repr(row), model


@pytest.mark.parametrize(("sent", "share"), [({}, 0.9), ({"patient": patient_resource()}, 0.5)])
def test_with_nothing_to_go_by_reading_has_nearly_all_of_the_time(
    call: Call,
    version: ModelVersion,
    server: FhirServer,
    sent: dict[str, Any],
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[float] = []

    def complete(*_: Any, within_s: float, **__: Any) -> ehr.Completed:
        given.append(within_s)
        return ehr.Completed({"patient": patient_resource()})

    monkeypatch.setattr("ehr.complete_prefetch", complete)
    monkeypatch.setattr("cds.hooks.budget.Budget.left", lambda _: 10.0)
    assert call(SERVICE, hook_body(prefetch=sent, **access(server.base))).status_code == 200
    assert given == [pytest.approx(10 * share)]
