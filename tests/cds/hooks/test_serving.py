"""The short way through the web server, and its watch. INTEROP 23."""

from __future__ import annotations

import asyncio
import threading
from ipaddress import ip_network
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY

from cds.audit.models import AuditEvent
from cds.hooks import origins, serving, views
from cds.hooks.models import CardShown, HookClient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import BASE, SERVICE, hook_body, token

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server(settings: Any) -> serving.HookServer:
    """As `cds.asgi` makes it; a busy machine is no fault of the call."""
    settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S = 0, 60.0
    return serving.HookServer(threads=2)


def ask(
    server: serving.HookServer, path: str, body: bytes = b"", *, pieces: int = 1, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request, as uvicorn hands it over: status, headers, body."""
    size = max(1, -(-len(body) // pieces))
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": place < len(parts) - 1}
        for place, part in enumerate(parts)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(dict(message))

    given = {
        "host": "127.0.0.1:8000",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "authorization": f"Bearer {token(BASE + path)}",
    } | headers
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
        "method": "POST" if body else "GET", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8000),
        "headers": [(name.encode(), value.encode()) for name, value in given.items() if value],
    }  # fmt: skip
    asyncio.run(server(scope, receive, send))
    start, end = sent
    names = [name.lower() for name, _ in start["headers"]]
    assert len(names) == len(set(names))  # a length said twice makes some clients hang
    return (
        start["status"],
        {name.decode().lower(): value.decode() for name, value in start["headers"]},
        end["body"],
    )


def test_calls_are_counted_and_timed_by_their_view_and_status(
    server: serving.HookServer, hook_client: HookClient, version: ModelVersion
) -> None:
    def counted(status: str) -> tuple[float, float]:
        labels = {"view": "cds-services", "method": "GET"}
        return (
            REGISTRY.get_sample_value(
                "django_http_responses_total_by_status_view_method_total", labels | {"status": status}
            )
            or 0.0,
            REGISTRY.get_sample_value("django_http_requests_latency_seconds_by_view_method_count", labels)
            or 0.0,
        )

    served, timed = counted("200")
    refused, _ = counted("401")
    assert ask(server, "/cds-services")[0] == 200
    assert counted("200") == (served + 1, timed + 1)
    assert ask(server, "/cds-services", authorization="")[0] == 401
    assert counted("401") == (refused + 1, timed + 2)


def test_a_call_has_an_id_of_its_own_and_only_refusals_leave_a_line(
    server: serving.HookServer,
    hook_client: HookClient,
    version: ModelVersion,
    caplog: pytest.LogCaptureFixture,
) -> None:
    theirs: Any = {"x-request-id": "theirs", "x-correlation-id": "theirs"}
    assert ask(server, SERVICE, orjson.dumps(hook_body()), **theirs)[0] == 200
    event = AuditEvent.objects.get(action="hook.call")
    assert len(event.correlation_id) == 36
    said = [record for record in caplog.records if "django_structlog" in record.name]
    assert said == []
    assert ask(server, SERVICE, b"{}", authorization="")[0] == 401
    said = [record for record in caplog.records if "django_structlog" in record.name]
    assert [record.levelname for record in said] == ["WARNING"]
    assert len({event.correlation_id for event in AuditEvent.objects.filter(action="hook.call")}) == 2


def test_a_line_and_the_trail_name_the_caller_and_not_the_proxy(
    server: serving.HookServer,
    hook_client: HookClient,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.TRUSTED_PROXIES = (ip_network("127.0.0.1"),)
    said: Any = {"x-forwarded-for": "203.0.113.9"}
    assert ask(server, SERVICE, b"{}", authorization="", **said)[0] == 401
    (line,) = [record.msg for record in caplog.records if "django_structlog" in record.name]
    assert isinstance(line, dict)
    assert line["ip"] == "203.0.113.9"
    assert AuditEvent.objects.get(action="hook.call").source_address == "203.0.113.9"


def test_a_call_gets_its_card(
    server: serving.HookServer, hook_client: HookClient, version: ModelVersion
) -> None:
    status, headers, body = ask(server, SERVICE, orjson.dumps(hook_body()), pieces=3)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert headers["cache-control"] == "no-store"
    assert "x-content-type-options" in headers
    assert "set-cookie" not in headers
    assert len(orjson.loads(body)["cards"]) == 1


def test_discovery_goes_this_way_too(
    server: serving.HookServer, hook_client: HookClient, version: ModelVersion
) -> None:
    status, _, body = ask(server, "/cds-services")
    assert status == 200
    assert len(orjson.loads(body)["services"]) == 6


def test_a_body_over_the_limit_is_413_and_not_read_to_its_end(
    server: serving.HookServer, hook_client: HookClient, version: ModelVersion
) -> None:
    body = b" " * (serving.MAX_BODY_BYTES * 2)
    status, _, said = ask(server, SERVICE, body, pieces=64, **{"content-length": ""})
    assert status == 413
    assert orjson.loads(said)["resourceType"] == "OperationOutcome"


def test_a_host_that_is_not_ours_is_refused(server: serving.HookServer, hook_client: HookClient) -> None:
    assert ask(server, "/cds-services", host="elsewhere.example")[0] == 400


def test_whatever_hangs_the_caller_has_a_503_in_time_and_nothing_counts_as_shown(
    server: serving.HookServer,
    hook_client: HookClient,
    version: ModelVersion,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.HOOKS_BUDGET_S = 0.3
    answered, ended = threading.Event(), threading.Event()
    slowly = views.prefetching.take

    def take(*args: Any, **kwargs: Any) -> Any:
        assert answered.wait(30)  # the database hangs until after the answer: it cannot have waited for us
        return slowly(*args, **kwargs)

    def refuse(*args: Any, **kwargs: Any) -> None:
        refused(*args, **kwargs)
        ended.set()

    refused = serving_refusals(monkeypatch, refuse)
    monkeypatch.setattr(views.prefetching, "take", take)
    client_origin = {"origin": "https://ehr.example.org"}
    origins.is_allowed(client_origin["origin"])  # a call before this one
    status, headers, body = ask(server, SERVICE, orjson.dumps(hook_body()), **client_origin)
    answered.set()
    assert (status, headers["retry-after"]) == (503, "5")
    assert headers["access-control-allow-origin"] == client_origin["origin"]  # or no browser could read it
    assert orjson.loads(body)["issue"][0]["code"] == "transient"
    assert ended.wait(30)
    assert not CardShown.objects.exists()
    event = AuditEvent.objects.get(action="hook.call")
    assert (event.outcome, event.detail["status"]) == ("failed", 503)


def serving_refusals(monkeypatch: pytest.MonkeyPatch, instead: Any) -> Any:
    """Stand between a refusal and its audit event; returns what was there."""
    from cds.hooks import endpoints

    before = endpoints._record_refusal
    monkeypatch.setattr(endpoints, "_record_refusal", instead)
    return before


def test_only_hook_addresses_go_this_way() -> None:
    for path, is_hook in {
        "/cds-services": True, f"{SERVICE}/feedback": True, "/cds-services-of-others": False,
        "/worklist": False,
    }.items():  # fmt: skip
        assert serving.is_hook_call({"type": "http", "path": path}) is is_hook
    assert not serving.is_hook_call({"type": "websocket", "path": "/cds-services"})


def test_other_pages_keep_all_of_their_middleware(settings: Any) -> None:
    before = list(settings.MIDDLEWARE)
    serving.HookHandler()
    assert before == settings.MIDDLEWARE
    assert len(settings.HOOKS_MIDDLEWARE) < len(before)
