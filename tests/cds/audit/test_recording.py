"""The audit trail: one event an act, linked, and nobody can change it unseen."""

from __future__ import annotations

import importlib
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import DatabaseError, connection, transaction

from cds.audit import recording
from cds.audit.models import AuditChain, AuditEvent

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WORKER = recording.system("worker")


def _append(count: int = 3, patient: uuid.UUID | None = None) -> list[AuditEvent]:
    patient = patient or uuid.uuid4()
    with transaction.atomic():
        return [
            recording.record(
                by=WORKER, action="patient.import", object_type="Patient", object_id=patient,
                patient_id=patient, now=NOW, count=index, codes=("8310-5",), share=0.25,
            )
            for index in range(count)
        ]  # fmt: skip


@contextmanager
def _without_triggers() -> Iterator[None]:
    """What somebody who owns the database could do."""
    create, drop = importlib.import_module("cds.audit.migrations.0002_append_only").STATEMENTS[
        connection.vendor
    ]
    with connection.cursor() as cursor:
        for statement in drop:
            cursor.execute(statement)
        yield
        for statement in create:
            cursor.execute(statement)


def _problems() -> list[str]:
    return [problem for check in recording.verify() for problem in check.problems]


@pytest.mark.django_db
def test_events_of_one_patient_are_one_linked_chain() -> None:
    events = _append(3)
    assert len({event.chain_id for event in events}) == 1
    assert [event.sequence for event in events] == [1, 2, 3]
    assert [event.previous_hash for event in events] == ["", events[0].hash, events[1].hash]
    assert _problems() == []
    assert AuditChain.objects.get(pk=events[0].chain_id).head == events[2].hash


@pytest.mark.django_db
def test_patients_spread_over_the_chains() -> None:
    used = {recording.chain_of(uuid.UUID(int=number), "Patient", "") for number in range(500)}
    assert used == set(range(recording.CHAINS))


@pytest.mark.django_db(transaction=True)
def test_refuses_to_record_outside_a_transaction() -> None:
    with pytest.raises(RuntimeError, match="transaction"):
        recording.record(by=WORKER, action="x", object_type="Patient", object_id="1", now=NOW)


@pytest.mark.django_db
def test_refuses_an_unknown_outcome() -> None:
    with transaction.atomic(), pytest.raises(ValueError, match="outcome"):
        recording.record(by=WORKER, action="x", object_type="P", object_id="1", now=NOW, outcome="maybe")


@pytest.mark.django_db
@pytest.mark.parametrize(
    "act",
    [
        lambda: AuditEvent.objects.update(actor="user:0"),
        lambda: AuditEvent.objects.all().delete(),
        lambda: AuditChain.objects.filter(length__gt=0).update(length=0, head=""),
        lambda: AuditChain.objects.filter(length__gt=0).update(head="0" * 64),
        lambda: AuditChain.objects.filter(length=0).delete(),
    ],
    ids=["update", "delete", "shorten head", "rewrite head", "delete head"],
)
def test_the_database_refuses(act: object) -> None:
    _append(2)
    with pytest.raises(DatabaseError), transaction.atomic():
        act()  # type: ignore[operator]
    assert AuditEvent.objects.count() == 2
    assert _problems() == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actor", "user:7"),
        ("action", "patient.view"),
        ("outcome", "refused"),
        ("patient_id", uuid.UUID(int=5)),
        ("at", NOW.replace(year=2020)),
        ("detail", {"count": 9}),
        ("source_address", "10.0.0.1"),
        ("hash", "0" * 64),
    ],
)
def test_verify_finds_an_altered_event(field: str, value: object) -> None:
    events = _append(3)
    with _without_triggers():
        AuditEvent.objects.filter(pk=events[1].pk).update(**{field: value})
    assert any("event 2 was altered" in problem for problem in _problems())


@pytest.mark.django_db
def test_verify_finds_a_removed_event() -> None:
    events = _append(3)
    with _without_triggers():
        AuditEvent.objects.filter(pk=events[1].pk).delete()
    assert _problems() == ["events 2 to 2 are missing"]


@pytest.mark.django_db
def test_verify_finds_an_event_replaced_with_a_matching_hash() -> None:
    events = _append(3)
    forged = events[1]
    forged.actor = "user:7"
    with _without_triggers():
        AuditEvent.objects.filter(pk=forged.pk).update(actor="user:7", hash=recording.hash_of(forged))
    assert _problems() == ["event 3 does not follow the one before it"]


@pytest.mark.django_db
def test_verify_finds_a_cut_tail() -> None:
    events = _append(3)
    with _without_triggers():
        AuditEvent.objects.filter(pk=events[2].pk).delete()
    assert _problems() == ["the tail is cut off: events 3 to 3 are missing"]


@pytest.mark.django_db
@pytest.mark.parametrize(("length", "head"), [(3, "f" * 64), (2, None)])
def test_verify_finds_a_forged_head(length: int, head: str | None) -> None:
    events = _append(3)
    with _without_triggers():
        AuditChain.objects.filter(pk=events[0].chain_id).update(
            length=length, head=head if head is not None else events[1].hash
        )
    assert len(_problems()) == 1
    assert "head" in _problems()[0]


@pytest.mark.django_db
def test_an_anchor_finds_a_tail_cut_off_together_with_its_head(tmp_path: Path) -> None:
    events = _append(3)
    anchor = tmp_path / "heads.json"
    call_command("verify_audit", anchor=anchor)
    with _without_triggers():
        AuditEvent.objects.filter(pk=events[2].pk).delete()
        AuditChain.objects.filter(pk=events[0].chain_id).update(length=2, head=events[1].hash)
    assert _problems() == []  # consistent in itself …
    with pytest.raises(CommandError, match="damaged"):  # … but not what was anchored
        call_command("verify_audit", anchor=anchor)


@pytest.mark.django_db
def test_the_command_says_each_chain_and_fails_on_damage(capsys: pytest.CaptureFixture[str]) -> None:
    events = _append(2)
    call_command("verify_audit")
    assert "2 events, all intact" in capsys.readouterr().out
    with _without_triggers():
        AuditEvent.objects.filter(pk=events[0].pk).update(actor="user:7")
    with pytest.raises(CommandError) as failure:
        call_command("verify_audit")
    assert failure.value.returncode == 1
    assert "event 1 was altered" in capsys.readouterr().out


@pytest.mark.django_db(transaction=True)
def test_writers_at_the_same_time_keep_the_chains_whole() -> None:
    patients = [uuid.UUID(int=number) for number in range(3)]
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(10):
                for patient in patients:
                    _append(1, patient)
        except BaseException as error:  # handed to the test's own thread
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert AuditEvent.objects.count() == 120
    assert _problems() == []


@pytest.mark.django_db(transaction=True)
def test_an_act_that_is_rolled_back_leaves_no_event() -> None:
    with transaction.atomic():
        recording.record(by=WORKER, action="x", object_type="Patient", object_id="1", now=NOW)
        transaction.set_rollback(True)
    assert AuditEvent.objects.count() == 0
    assert _problems() == []
