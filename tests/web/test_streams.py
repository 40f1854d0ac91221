"""The event stream tells of what one may see, in order, from where one left off, and ends when told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.db import close_old_connections, connections
from django.test import AsyncClient
from django.utils import timezone

from cds.jobs import outbox
from cds.patients import access
from tests.web import clinic
from web import streams

Message = tuple[int, str, dict[str, str | None]]


@pytest.fixture(autouse=True)
def quick(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look ten times a second; forget what was cached; and let go of the reader's connection afterwards."""
    monkeypatch.setattr(streams, "POLL_S", 0.1)
    monkeypatch.setattr(streams, "_newest", (0.0, 0))
    yield
    streams._stopping.clear()
    streams._reader.submit(connections.close_all).result()


def parse(chunk: bytes) -> Message | None:
    lines = dict(
        line.split(": ", 1) for line in chunk.decode().strip().splitlines() if not line.startswith(":")
    )
    return (int(lines["id"]), lines["event"], json.loads(lines["data"])) if "event" in lines else None


def collect(user: User, since: int | None, count: int, seconds: float = 1.5, **more: Any) -> list[Message]:
    """Up to `count` events after the greeting, within `seconds`."""

    async def run() -> list[Message]:
        stream: AsyncIterator[bytes] = streams.events_for(user, since, **more)
        got: list[Message] = []
        try:
            async with asyncio.timeout(seconds):
                async for chunk in stream:
                    message = parse(chunk)
                    if message and message[1] != "hello":
                        got.append(message)
                    if len(got) == count:
                        break
        except TimeoutError:
            pass
        return got

    return asyncio.run(run())


def test_nothing_is_told_after_signing_out(quick: None) -> None:
    person, now = clinic.people()["clinician"], timezone.now()
    patient = clinic.patient(1, family="A", given="B", now=now, unit="Ward 4")
    session = SessionStore()
    session.create()
    start, key = streams.newest(), session.session_key
    outbox.tell("assessment", patient.resource_id, now=now, patient_id=patient.pk)
    assert len(collect(person, start, 1, session_key=key)) == 1
    session.flush()  # as signing out does
    assert collect(person, start, 1, session_key=key) == []


def test_only_what_the_viewer_may_see(quick: None) -> None:
    now = timezone.now()
    people = clinic.people()
    here, there = (
        clinic.patient(i, family="A", given="B", now=now, unit=unit)
        for i, unit in ((1, "Ward 4"), (2, "Ward 9"))
    )
    start = streams.newest()
    for patient in (here, there):
        outbox.tell("assessment", patient.resource_id, now=now, patient_id=patient.pk)
    outbox.tell("run", "r1", now=now)
    seen = {
        name: [(kind, data["patient"]) for _, kind, data in collect(user, start, 3)]
        for name, user in people.items()
    }
    assert seen["clinician"] == [("assessment", str(here.pk))]
    assert seen["stranger"] == [("assessment", str(there.pk))]
    assert seen["admin"] == seen["approver"] == [("run", None)]
    assert seen["nobody"] == []
    User.objects.filter(username="clinician").update(is_active=False)
    assert collect(people["clinician"], start, 3, 0.5) == []


def test_the_screen_of_a_launch_hears_of_its_patient_only(quick: None) -> None:
    """Even of somebody who sees a ward, and models besides."""
    now = timezone.now()
    person = clinic.person("all", *access.Role, unit="Ward 4")
    here, beside = (clinic.patient(i, family="A", given="B", now=now, unit="Ward 4") for i in (1, 2))
    start = streams.newest()
    for patient in (beside, here):
        outbox.tell("assessment", patient.resource_id, now=now, patient_id=patient.pk)
    outbox.tell("run", "r1", now=now)
    outbox.tell("model", "m1", now=now)
    seen = [(kind, data["patient"]) for _, kind, data in collect(person, start, 3, only=str(here.pk))]
    assert seen == [("assessment", str(here.pk)), ("model", None)]


def test_what_was_granted_to_a_session_is_heard_in_it(quick: None) -> None:
    now = timezone.now()
    person = clinic.person("guest", access.Role.CLINICIAN)
    patient = clinic.patient(1, family="A", given="B", now=now, unit="Ward 9")
    session = SessionStore()
    session.create()
    access.grant(
        person,
        patient,
        session_key=str(session.session_key),
        until=now + timedelta(hours=8),
        by=clinic.BY,
        now=now,
    )
    start = streams.newest()
    outbox.tell("assessment", "a1", now=now, patient_id=patient.pk)
    assert collect(person, start, 1, 0.5) == []
    assert len(collect(person, start, 1, session_key=session.session_key)) == 1


def test_goes_on_where_it_was_left_and_tells_nothing_twice(quick: None) -> None:
    now, admin = timezone.now(), clinic.people()["admin"]
    for number in range(5):
        outbox.tell("run", number, now=now)
    first = collect(admin, 0, 5)
    assert [data["subject"] for _, _, data in first] == ["0", "1", "2", "3", "4"]
    again = collect(admin, first[2][0], 5, 0.6)
    assert [data["subject"] for _, _, data in again] == ["3", "4"]
    assert collect(admin, None, 1, 0.4) == []


def test_ends_when_the_process_is_told_to_stop(quick: None) -> None:
    admin = clinic.people()["admin"]

    async def run() -> int:
        chunks = 0
        async for _ in streams.events_for(admin, None):
            chunks += 1
            streams._stopping.set()
        return chunks

    assert asyncio.run(asyncio.wait_for(run(), 5)) == 1


def test_ends_by_itself_so_that_browsers_come_back(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LIFETIME_S", 0.3)
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.1)
    admin = clinic.people()["admin"]

    async def run() -> list[bytes]:
        return [chunk async for chunk in streams.events_for(admin, None)]

    chunks = asyncio.run(asyncio.wait_for(run(), 5))
    assert chunks[0].startswith(b"retry: 3000\n")
    assert b": still here\n\n" in chunks


def test_over_http_a_stream_and_no_session_cookie(quick: None) -> None:
    admin = clinic.people()["admin"]
    client = AsyncClient()

    async def run() -> tuple[int, str, bytes, bool]:
        await client.aforce_login(admin, backend="django.contrib.auth.backends.ModelBackend")
        answer = await client.get("/events?since=0")
        first = await anext(aiter(answer.streaming_content))
        return answer.status_code, answer["Content-Type"], first, "sessionid" in answer.cookies

    status, kind, first, cookie = asyncio.run(run())
    close_old_connections()
    assert (status, kind, cookie) == (200, "text/event-stream", False)
    assert b"event: hello" in first


def test_nobody_signed_in_is_told_not_to_come_back(quick: None) -> None:
    async def run() -> int:
        return (await AsyncClient().get("/events")).status_code

    assert asyncio.run(run()) == 204
