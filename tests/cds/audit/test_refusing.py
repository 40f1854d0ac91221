"""A flood of refusals is a few rows and a count; signed-in and registered callers are noted each time."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from cds.audit import recording, refusing
from cds.audit.models import AuditEvent
from cds.hooks.models import HookClient
from tests.cds.hooks.conftest import ISSUER, KEY, hook_client, token  # noqa: F401  (a fixture)

NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


def _refused(address: str, times: int = 1, *, now: datetime = NOW, name: str = "user:anonymous") -> None:
    for _ in range(times):
        refusing.note(
            by=recording.Actor(name, address=address),
            action="session.begin",
            object_type="Session",
            object_id="unknown",
            now=now,
        )


@pytest.mark.django_db
def test_a_flood_from_one_address_is_ten_rows_and_then_a_count(caplog: pytest.LogCaptureFixture) -> None:
    _refused("192.0.2.7", 500)
    _refused("192.0.2.8")
    assert AuditEvent.objects.count() == refusing.EACH + 1
    assert "refusals come in a flood (session.begin, from 192.0.2.7)" in caplog.text
    _refused("192.0.2.9", now=NOW + timedelta(minutes=1))
    summary = AuditEvent.objects.get(detail__has_key="count")
    assert summary.detail == {
        "count": 490, "minute": "2026-03-01T12:00:00+00:00", "network": "192.0.2.7",
    }  # fmt: skip
    assert (summary.action, summary.outcome, summary.object_id) == ("session.begin", "refused", "several")
    assert (summary.actor, summary.source_address) == ("user:anonymous", "192.0.2.7")
    _refused("192.0.2.9", now=NOW + timedelta(minutes=2))
    assert AuditEvent.objects.filter(detail__has_key="count").count() == 1  # told once


@pytest.mark.django_db
def test_a_count_that_could_not_be_written_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    _refused("192.0.2.7", 500)
    with monkeypatch.context() as away:
        away.setattr(recording, "record", _database_is_away)
        with pytest.raises(OperationalError):
            _refused("192.0.2.9", now=NOW + timedelta(minutes=1))
    assert not AuditEvent.objects.filter(detail__has_key="count").exists()
    _refused("192.0.2.9", now=NOW + timedelta(minutes=2))
    assert AuditEvent.objects.get(detail__has_key="count").detail["count"] == 490


def _database_is_away(**_: object) -> None:
    raise OperationalError("server closed the connection")


@pytest.mark.django_db
def test_a_flood_from_many_addresses_is_bounded_too() -> None:
    for number in range(1, 400):
        _refused(f"198.51.{number // 250}.{number % 250}", 2)
    assert AuditEvent.objects.count() == refusing.ALL
    _refused("192.0.2.9", now=NOW + timedelta(minutes=1))
    summary = AuditEvent.objects.get(detail__has_key="count")
    assert summary.detail["network"] == "several"
    assert summary.detail["count"] == 2 * 399 - refusing.ALL


@pytest.mark.django_db
def test_a_network_of_ipv6_is_one_address() -> None:
    for number in range(50):
        _refused(f"2001:db8:1:2::{number:x}")
    assert AuditEvent.objects.count() == refusing.EACH


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["user:7", "client:1b", "system:worker"])
def test_those_we_know_are_noted_each_time(name: str) -> None:
    _refused("192.0.2.7", 30, name=name)
    assert AuditEvent.objects.count() == 30


@pytest.mark.django_db(transaction=True)
def test_the_count_is_told_when_nobody_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, wait = threading.Event(), threading.Timer

    def timer(_: float, work: object, args: list[int]) -> threading.Timer:
        def told(minute: int) -> None:
            work(minute)  # type: ignore[operator]
            ended.set()

        return wait(0.05, told, args)

    monkeypatch.setattr(threading, "Timer", timer)
    _refused("192.0.2.7", 25)
    assert ended.wait(10)
    assert AuditEvent.objects.get(detail__has_key="count").detail["count"] == 15


@pytest.mark.django_db
def test_the_doors_of_people(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusing, "EACH", 3)
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now)  # all of it in one minute
    doors = ("/launch?iss=https://nobody.example", "/login/hospital/callback?code=x&state=y")
    for door in doors:
        for _ in range(8):
            assert client.get(door).status_code >= 400
    for number in range(8):
        client.post("/login", {"username": f"x{number}", "password": "wrong"})
    rows = AuditEvent.objects.filter(outcome__in=["refused", "failed"])
    assert rows.filter(action="session.launch").count() == 3
    assert rows.filter(action="session.begin").count() == 3


@pytest.mark.django_db
def test_the_door_of_ehrs(hook_client: HookClient, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """INTEROP 18: a forged token is noted with the issuer that it claims, and never as that client."""
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now)
    url = "http://127.0.0.1:8000/cds-services"
    forged = token(url, key=type(KEY).generate_key("P-384"))
    http = Client()
    for _ in range(30):
        assert http.get("/cds-services", headers={"Authorization": f"Bearer {forged}"}).status_code == 401
    rows = AuditEvent.objects.filter(action="hook.call", outcome="refused")
    assert rows.count() == refusing.EACH
    assert {row.actor for row in rows} == {"client:unknown"}
    assert {(row.detail["claimed_issuer"], row.detail["is_verified"]) for row in rows} == {(ISSUER, False)}
    for _ in range(12):  # a registered client, whose calls are refused: each of them is noted
        bearer = token(f"{url}/nobody")
        answer = http.post(
            "/cds-services/nobody", {}, "application/json", headers={"Authorization": f"Bearer {bearer}"}
        )
        assert answer.status_code == 404
    assert AuditEvent.objects.filter(actor=f"client:{hook_client.pk}", outcome="refused").count() == 12
