"""The database is away: nothing answers where it was. Probes are answered, pages say so with 503."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.cache import cache
from django.db import DatabaseError, connection
from django.test import Client
from django.utils import timezone

from cds.audit import recording
from cds.launch import registering
from cds.patients import access, importing
from tests.web import clinic

EHR = "https://ehr.example"


@pytest.fixture
def person(transactional_db: None) -> Client:
    """Somebody whose browser holds the cookie of a session; an EHR may show us in a frame."""
    now = timezone.now()
    registering.register(
        "Test EHR",
        issuer="https://fhir.example/r4",
        client_id="tessera",
        source=importing.get_source("ehr", now=now),
        embedders=[EHR],
        by=recording.system("test"),
        now=now,
    )
    client = Client(raise_request_exception=False)
    client.force_login(
        clinic.person("clinician", access.Role.CLINICIAN, unit="Ward 4"),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    assert client.get("/worklist").status_code == 200
    return client


@contextmanager
def _nowhere() -> Iterator[None]:
    """Connections lead nowhere; what was cached has run out."""
    elsewhere: dict[str, Any] = (
        {"NAME": "/nowhere/at/all.sqlite3"}
        if connection.vendor == "sqlite"
        else {"HOST": "127.0.0.1", "PORT": 1, "OPTIONS": {"connect_timeout": 2}}
    )
    connection.close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in elsewhere.items():
            patch.setitem(connection.settings_dict, name, value)
        cache.clear()
        with pytest.raises(DatabaseError):
            connection.ensure_connection()
        yield
        connection.close()
    cache.clear()


@pytest.fixture
def away(person: Client) -> Iterator[None]:
    """For the whole test."""
    with _nowhere():
        yield


def test_probes_are_answered_whoever_asks(person: Client, away: None) -> None:
    for client in (person, Client(raise_request_exception=False)):
        assert client.get("/livez").status_code == 200
        assert client.get("/metrics").status_code == 200
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert not answer.json()["checks"]["database"]["ok"]


@pytest.mark.parametrize("address", ["/", "/worklist", "/help", "/events", "/launch"])
def test_pages_say_that_it_is_away(person: Client, away: None, address: str) -> None:
    answer = person.get(address)
    assert answer.status_code == 503
    assert answer["Retry-After"] == "10"
    assert answer["Cache-Control"] == "no-store"
    assert "The database of this site does not answer" in answer.content.decode()
    assert f"frame-ancestors 'self' {EHR}" in answer["Content-Security-Policy"]  # the frame shows it, too


@pytest.mark.parametrize("address", ["/worklist", "/help"])
def test_a_page_waits_for_the_database_once(
    person: Client, away: None, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """A pool gives up after five seconds, each time it is asked."""
    tried: list[object] = []
    connect = connection.get_new_connection

    def counted(parameters: Any) -> Any:
        tried.append(parameters)
        return connect(parameters)

    monkeypatch.setattr(connection, "get_new_connection", counted)
    assert person.get(address).status_code == 503
    assert len(tried) == 1


def test_a_fault_of_ours_is_still_500(person: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(access, "can_view_patients", broken)
    answer = person.get("/worklist")
    assert answer.status_code == 500
    assert "Retry-After" not in answer
    assert "Something went wrong here" in answer.content.decode()


def test_it_comes_back_by_itself(person: Client) -> None:
    with _nowhere():
        assert person.get("/worklist").status_code == 503
    assert person.get("/worklist").status_code == 200
