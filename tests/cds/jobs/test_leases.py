"""Leases: one holder at a time, nothing stored by one who lost it, no work that kills workers for ever."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from cds.jobs import QUEUES, Queue, leases, outbox, queues
from cds.jobs.models import OutboxMessage, WorkState
from cds.studies.models import Encoding, Study
from tests.factories import NOW, make_source

pytestmark = pytest.mark.django_db


@pytest.fixture
def work() -> Encoding:
    study = Study.objects.create(source=make_source(), study_uid="1.2.3", received_at=NOW)
    return Encoding.objects.create(study=study, pixels_digest="d", backbones="b", queued_at=timezone.now())


def _let_it_expire(work: Encoding) -> None:
    Encoding.objects.filter(pk=work.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


def _claim(work: Encoding) -> Encoding:
    held = leases.claim(Encoding, work.pk)
    assert held is not None
    return held


@transaction.atomic
def _store_with(held: Encoding) -> None:
    Study.objects.filter(pk=held.study_id).update(description="a second result")
    leases.finish(held, now=NOW)


def test_one_holder_at_a_time(work: Encoding) -> None:
    held = _claim(work)
    assert (held.work_state, held.starts) == (WorkState.RUNNING, 1)
    assert leases.claim(Encoding, work.pk) is None
    assert leases.claim(Encoding, "00000000-0000-0000-0000-000000000000") is None


def test_finished_work_is_not_done_twice(work: Encoding) -> None:
    held = _claim(work)
    with transaction.atomic():
        leases.finish(held, now=NOW)
    assert (held.work_state, held.finished_at, held.lease_owner) == (WorkState.DONE, NOW, "")
    assert leases.claim(Encoding, work.pk) is None
    with pytest.raises(leases.LeaseLost):
        leases.finish(held, now=NOW)


def test_whoever_lost_the_lease_stores_nothing(work: Encoding) -> None:
    slow = _claim(work)
    _let_it_expire(work)
    other = _claim(work)
    assert other.starts == 2
    assert leases.extend(slow) is False
    with pytest.raises(leases.LeaseLost), transaction.atomic():
        leases.check_still_ours(slow)
    with pytest.raises(leases.LeaseLost):
        _store_with(slow)
    assert Study.objects.get().description == ""
    leases.finish(other, now=NOW)


def test_cancelled_work_is_lost_to_its_holder(work: Encoding) -> None:
    held = _claim(work)
    Encoding.objects.filter(pk=work.pk).update(work_state=WorkState.CANCELLED)
    assert leases.extend(held) is False
    with pytest.raises(leases.LeaseLost):
        leases.finish(held, now=NOW)


def test_running_work_ends_only_in_a_state_of_the_table(work: Encoding) -> None:
    with pytest.raises(ValueError, match="cannot become running"):
        leases.finish(_claim(work), now=NOW, state=WorkState.RUNNING)


def test_the_sweeper_queues_what_a_dead_worker_left(work: Encoding) -> None:
    _claim(work)
    assert leases.sweep(timezone.now())["requeued"] == 0
    _let_it_expire(work)
    now = timezone.now()
    assert leases.sweep(now)["requeued"] == 1
    work.refresh_from_db()
    assert (work.work_state, work.queued_at, work.lease_owner) == (WorkState.QUEUED, now, "")
    assert OutboxMessage.objects.get().kwargs["encoding_id"] == str(work.pk)


def test_work_that_kills_workers_is_poison(work: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(Encoding, "on_failed", lambda self, now: told.append(self.work_state))
    for _ in range(Encoding.MAX_STARTS):
        _claim(work)
        _let_it_expire(work)
        counts = leases.sweep(timezone.now())
    assert counts["failed"] == 1
    work.refresh_from_db()
    assert work.work_state == WorkState.FAILED
    assert work.failure == "the worker stopped while working on it (tried 3 times)"
    assert told == [WorkState.FAILED]
    assert leases.claim(Encoding, work.pk) is None
    assert leases.sweep(timezone.now() + timedelta(hours=1))["failed"] == 0


def test_a_poisoned_message_redelivered_before_the_sweep_is_not_started_again(work: Encoding) -> None:
    for _ in range(Encoding.MAX_STARTS):
        _claim(work)
        _let_it_expire(work)
    assert leases.claim(Encoding, work.pk) is None


def test_a_retriable_fault_gives_the_work_back_until_it_is_enough(work: Encoding) -> None:
    for number in range(1, Encoding.MAX_STARTS + 1):
        leases.give_back(_claim(work), now=NOW, reason="archive out of reach")
        work.refresh_from_db()
        assert work.work_state == (WorkState.FAILED if number == Encoding.MAX_STARTS else WorkState.QUEUED)
    assert work.failure == "archive out of reach (tried 3 times)"


def test_giving_back_what_was_lost_changes_nothing(work: Encoding) -> None:
    slow = _claim(work)
    _let_it_expire(work)
    other = _claim(work)
    leases.give_back(slow, now=NOW, reason="late")
    other.refresh_from_db()
    assert (other.work_state, other.starts) == (WorkState.RUNNING, 2)
    assert not OutboxMessage.objects.exists()


def test_the_sweeper_never_fails_work_that_finished_meanwhile(
    work: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(Encoding, "on_failed", lambda self, now: told.append(self))
    Encoding.objects.filter(pk=work.pk).update(starts=Encoding.MAX_STARTS - 1)
    held = _claim(work)
    leases.finish(held, now=NOW)
    stale = Encoding.objects.get(pk=work.pk)
    stale.starts, stale.lease_owner = Encoding.MAX_STARTS, "somebody:1:x"
    leases.give_back(stale, now=NOW, reason="late")
    work.refresh_from_db()
    assert (work.work_state, told) == (WorkState.DONE, [])


def test_work_nobody_took_is_announced_again_once_a_minute(
    work: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "messages_in", lambda queue: 0)
    now = timezone.now()
    assert leases.sweep(now)["woken"] == 0
    later = now + timedelta(seconds=61)
    assert leases.sweep(later)["woken"] == 1
    assert leases.sweep(later + timedelta(seconds=15))["woken"] == 0
    assert OutboxMessage.objects.count() == 1


@pytest.mark.parametrize("messages", [3, None], ids=["a queue to work off", "a broker that is away"])
def test_work_that_waits_its_turn_is_not_announced_again(
    work: Encoding, monkeypatch: pytest.MonkeyPatch, messages: int | None
) -> None:
    monkeypatch.setattr(outbox, "messages_in", lambda queue: messages)
    now = timezone.now()
    assert leases.sweep(now + timedelta(minutes=5))["woken"] == 0
    assert leases.sweep(now + timedelta(minutes=31))["woken"] == 1


@pytest.mark.django_db(transaction=True)
def test_messages_in_a_queue_are_counted(work: Encoding) -> None:
    before = outbox.messages_in(Queue.BATCH)
    assert before is not None
    leases.queue(work, now=NOW)
    assert outbox.messages_in(QUEUES[work.JOB]) == before + 1


@pytest.mark.parametrize(("alive", "waiting"), [(True, 89), (None, 1)], ids=["messages", "a broker away"])
def test_jobs_without_a_row_wait_too(
    work: Encoding, monkeypatch: pytest.MonkeyPatch, alive: bool | None, waiting: int
) -> None:
    monkeypatch.setattr(queues, "_alive", lambda: dict.fromkeys(Queue, alive))
    monkeypatch.setattr(outbox, "messages_in", lambda queue: 89 if queue == Queue.BATCH else 0)
    (batch,) = [one for one in queues.list_states() if one.queue == Queue.BATCH]
    assert batch.waiting == waiting


@pytest.mark.django_db(transaction=True)
def test_many_workers_one_claim(work: Encoding) -> None:
    taken: list[Encoding] = []
    start = threading.Barrier(6)

    def run() -> None:
        start.wait()
        held = leases.claim(Encoding, work.pk)
        if held is not None:
            taken.append(held)
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1


@pytest.mark.django_db(transaction=True)
def test_the_heartbeat_keeps_the_lease_and_tells_when_it_is_gone(
    work: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    held = _claim(work)
    Encoding.objects.filter(pk=work.pk).update(lease_until=timezone.now() + timedelta(seconds=1))
    with leases.heartbeat(held) as lost:
        assert not lost.wait(0.3)
        work.refresh_from_db()
        assert work.lease_until is not None
        assert work.lease_until > timezone.now() + timedelta(seconds=10)
        Encoding.objects.filter(pk=work.pk).update(work_state=WorkState.CANCELLED)
        assert lost.wait(2)
