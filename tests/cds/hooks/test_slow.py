"""Slow or hanging parts: a call is answered all the same, and its thread is free again. INTEROP 11, 23.

Through the server as production runs it, with one thread: a call that kept it would keep the next one out.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.utils import timezone

from cds.audit.models import AuditEvent
from cds.celery import app
from cds.hooks import limiting, serving
from cds.hooks.models import CardShown, HookClient
from cds.jobs import outbox
from cds.jobs.models import OutboxMessage
from cds.patients import importing
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import SERVICE, hook_body, make_score
from tests.cds.hooks.test_fetching import FhirServer, access
from tests.cds.hooks.test_serving import ask
from tests.flows import workers

pytestmark = pytest.mark.django_db(transaction=True)
LONG_S = 15  # a thread that hangs until something times out elsewhere takes longer
only_postgres = pytest.mark.skipif("connection.vendor != 'postgresql'", reason="SQLite waits for locks only")


@pytest.fixture
def server(settings: Any, hook_client: HookClient, version: ModelVersion) -> serving.HookServer:
    """One thread, and a budget that is soon over."""
    settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S = 0, 0.4
    return serving.HookServer(threads=1)


def told(server: serving.HookServer, *statuses: int, **changes: Any) -> str:
    """What the caller is told, in time and in FHIR's words; and the thread is free again soon after."""
    status, headers, body = ask(server, SERVICE, orjson.dumps(hook_body(**changes)))
    assert status in statuses, body[:300]
    said = orjson.loads(body)
    assert said["resourceType"] == "OperationOutcome"
    assert status != 503 or headers["retry-after"]
    server._threads.submit(lambda: None).result(LONG_S)
    return str(said["issue"][0]["diagnostics"])


@contextlib.contextmanager
def locked(table: str) -> Iterator[None]:
    """Somebody else holds a lock: of a table, or of all of SQLite."""
    if connection.vendor == "sqlite":
        other: Any = sqlite3.connect(str(connection.settings_dict["NAME"]), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
    else:
        other = connection.copy()
        other.ensure_connection()
        other.set_autocommit(False)
        other.cursor().execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


@pytest.mark.parametrize("table", ["patients_patient", "hooks_cardshown", "audit_auditchain"])
def test_a_lock_that_somebody_holds(server: serving.HookServer, settings: Any, table: str) -> None:
    with locked(table):
        told(server, 503)
    assert not CardShown.objects.exists()
    settings.HOOKS_BUDGET_S = 60.0
    status, _, body = ask(server, SERVICE, orjson.dumps(hook_body()))
    assert status == 200, "the lock is gone"
    assert len(orjson.loads(body)["cards"]) == 1


@only_postgres
def test_an_import_under_way_keeps_no_card_from_being_kept(server: serving.HookServer) -> None:
    """It asks for the audit chain last, under which a card is kept: they must not wait for each other."""
    body = orjson.dumps(hook_body())
    ask(server, SERVICE, body)
    kept, source = CardShown.objects.count(), Patient.objects.get().source
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            importing._locked_patient(source, "p1", timezone.now())
            held.set()
            done.wait(LONG_S)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(LONG_S)
    status, _, _ = ask(server, SERVICE, body)
    done.set()
    thread.join()
    assert (status, CardShown.objects.count()) == (200, kept + 1)


@only_postgres
def test_a_lock_in_the_middle_is_noted_in_the_trail(server: serving.HookServer) -> None:
    with locked("patients_patient"):
        told(server, 503)
        event = AuditEvent.objects.get(action="hook.call")
        assert (event.outcome, event.detail["status"]) == ("failed", 503)


@only_postgres
def test_a_database_that_takes_long_over_everything(server: serving.HookServer) -> None:
    def slowly(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        execute("SELECT pg_sleep(60)", None, False, context)
        return execute(sql, params, many, context)

    def slow_down(connection: Any, **_: Any) -> None:
        if threading.current_thread().name.startswith("hook"):
            connection.execute_wrappers.append(slowly)

    def speed_up() -> None:
        connection.execute_wrappers.clear()

    connection_created.connect(slow_down)
    try:
        told(server, 503)
    finally:
        connection_created.disconnect(slow_down)
        server._threads.submit(speed_up).result(LONG_S)


@only_postgres
def test_the_limit_of_a_hook_is_not_that_of_a_page_on_the_same_connection() -> None:
    def limit() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            return str(cursor.fetchone()[0])

    connection.close()
    for _ in range(3):
        with limiting.limited(0.3):
            assert limit() == "300ms"
            connection.close()
        assert limit() == "0"
        connection.close()


@only_postgres
def test_a_thread_keeps_its_connection_unless_it_failed_or_is_old(
    server: serving.HookServer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.HOOKS_BUDGET_S = 60.0
    monkeypatch.setattr(limiting, "KEPT_S", 600.0)
    body = orjson.dumps(hook_body())

    def backend(*statuses: int) -> int:
        """The server process that a call's thread is connected to after the call; 0: to none."""
        assert ask(server, SERVICE, body)[0] in statuses

        def held() -> int:
            mine: Any = connection.connection
            return mine.info.backend_pid if mine is not None else 0

        return server._threads.submit(held).result(LONG_S)

    first = backend(200)
    assert first
    assert backend(200) == first
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [first])  # as when PostgreSQL starts again
    assert backend(200) not in (0, first), "it was noticed before the call"

    def fails() -> None:
        connection.errors_occurred = True
        connection.connection.close()

    server._threads.submit(fails).result(LONG_S)
    assert backend(503) == 0
    assert backend(200)

    def is_old() -> None:
        connection.close_at = time.monotonic()

    server._threads.submit(is_old).result(LONG_S)
    assert backend(200) == 0, "given back after the call"
    assert backend(200)
    server._threads.submit(lambda: connection.close()).result(LONG_S)


def test_a_fhir_server_that_takes_long(server: serving.HookServer, hook_client: HookClient) -> None:
    fhir = FhirServer()
    fhir.hold.clear()  # it answers when the test is over, and not before
    hook_client.fhir_servers = [fhir.base]
    hook_client.save()
    try:
        said = told(server, 412, 503, prefetch=None, **access(fhir.base))
        assert "in time" in said or "budget" in said
    finally:
        fhir.close()


def test_a_broker_that_takes_connections_and_never_answers(
    server: serving.HookServer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = app.conf.broker_url, app.conf.broker_transport_options, settings.REDIS_URL
    monkeypatch.setattr(outbox, "_away_until", 0.0)
    settings.HOOKS_BUDGET_S = 60.0  # of a busy machine; the broker is given up after outbox.KNOCK_S
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        workers.speak_to(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", {"socket_timeout": 1.0})
        try:
            status, _, body = ask(server, SERVICE, orjson.dumps(hook_body()))
            assert status == 200, body[:300]
            assert "not yet known" in orjson.loads(body)["cards"][0]["summary"]
            server._threads.submit(lambda: None).result(LONG_S)
        finally:
            workers.speak_to(kept[0], kept[1])
            settings.REDIS_URL = kept[2]
    assert OutboxMessage.objects.filter(sent_at=None).exists(), "the work is kept"


def test_a_call_that_waited_for_a_thread_too_long_is_not_begun(
    server: serving.HookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server._handler, "get_response", lambda _: pytest.fail("begun"))
    response = server._handler.answer({"headers": []}, b"", time.monotonic() - 1)
    assert response.status_code == 503
    assert orjson.loads(response.content)["resourceType"] == "OperationOutcome"  # type: ignore[attr-defined]


@pytest.mark.parametrize("prefetch", ["known", "alerting"])
def test_a_lock_that_is_let_go_after_the_answer_keeps_nothing_as_shown(
    server: serving.HookServer,
    settings: Any,
    version: ModelVersion,
    monkeypatch: pytest.MonkeyPatch,
    prefetch: str,
) -> None:
    """The caller has its 503 by then: a card kept as shown would quiet an alert that nobody saw."""
    body = orjson.dumps(hook_body())
    settings.HOOKS_BUDGET_S = 60.0
    assert ask(server, SERVICE, body)[0] == 200  # from now on its prefetch is known, so only keeping writes
    if prefetch == "alerting":
        make_score(Patient.objects.get(), version)
    before = CardShown.objects.count()
    settings.HOOKS_BUDGET_S = 0.4
    monkeypatch.setattr(limiting, "limited", lambda _: contextlib.nullcontext())  # or the wait ends with it
    with locked("audit_auditchain"):
        status, _, _ = ask(server, SERVICE, body)
    assert status == 503
    server._threads.submit(lambda: None).result(LONG_S)
    assert CardShown.objects.count() == before
    settings.HOOKS_BUDGET_S = 60.0
    (card,) = orjson.loads(ask(server, SERVICE, body)[2])["cards"]
    assert card["indicator"] == ("warning" if prefetch == "alerting" else "info")
