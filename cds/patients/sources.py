"""Sources and the runs that take from them: begun, alive, ended; paused, resumed, asked for an answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from django.db import transaction

from cds.audit import recording
from cds.errors import Conflict
from cds.jobs import Job, outbox
from cds.patients.models import CheckState, IngestRun, RunKind, RunState, Source

TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.RUNNING: frozenset({RunState.DONE, RunState.BROKEN_OFF, RunState.FAILED}),
    RunState.DONE: frozenset(),
    RunState.BROKEN_OFF: frozenset(),
    RunState.FAILED: frozenset(),
}


def check_not_paused(source: Source) -> None:
    """Raises Conflict when somebody has paused this source."""
    if is_paused(source):
        raise Conflict(paused_words(source))


def is_paused(source: Source) -> bool:
    """Whether somebody has paused this source."""
    return Source.objects.filter(pk=source.pk, paused_at__isnull=False).exists()


def paused_words(source: Source) -> str:
    """What whoever wants to send or fetch is told."""
    return f"source {source.slug} is paused: resume it on the Sources screen, then do this again"


@transaction.atomic
def begin(
    source: Source,
    *,
    kind: RunKind,
    where: str,
    by: recording.Actor,
    now: datetime,
    how: Mapping[str, str] | None = None,
) -> IngestRun:
    """Note that a run has begun. Raises Conflict when the source is paused.

    how  how a server is reached (`cds.reaching.keep`), so that "Test connection" can do the same
    """
    check_not_paused(source)
    run = IngestRun.objects.create(
        source=source, kind=kind, where=where[:500], how=dict(how or {}), started_at=now, beat_at=now
    )
    recording.record(
        by=by, action="ingest.begin", object_type="IngestRun", object_id=run.pk, now=now, source=source.slug
    )
    outbox.tell("source", source.pk, now=now)
    return run


@transaction.atomic
def beat(run: IngestRun, *, stage: str, done: int, total: int | None, now: datetime) -> None:
    """The run is alive, and this far."""
    IngestRun.objects.filter(pk=run.pk, state=RunState.RUNNING).update(
        stage=stage[:60], done=done, total=total, beat_at=now
    )
    outbox.tell("source", run.source_id, now=now)


@transaction.atomic
def end(
    run: IngestRun,
    state: RunState,
    *,
    by: recording.Actor,
    now: datetime,
    counts: Mapping[str, int],
    error: str = "",
) -> None:
    """The run came to its end, broke off or failed. counts: patients, taken, set_aside. Raises Conflict."""
    held = IngestRun.objects.select_for_update().get(pk=run.pk)
    if state not in TRANSITIONS[RunState(held.state)]:
        raise Conflict(f"run {run.pk} is {held.state} and cannot become {state}")
    held.state, held.ended_at, held.beat_at, held.error = state, now, now, error[:500]
    for name in ("patients", "taken", "set_aside"):
        setattr(held, name, counts.get(name, 0))
    held.save()
    recording.record(
        by=by,
        action="ingest.end",
        object_type="IngestRun",
        object_id=run.pk,
        now=now,
        outcome="success" if state == RunState.DONE else "failed",
        counts=dict(counts),
    )
    outbox.tell("source", held.source_id, now=now)


@transaction.atomic
def pause(source: Source, *, by: recording.Actor, now: datetime) -> None:
    """Nothing of this source is taken in until it is resumed; a run that is under way comes to its end.

    Every door asks: `ingest` (folders, FHIR, Bulk Data, DICOM), C-STORE, Subscriptions, SMART launches and
    hook calls. What waits elsewhere is fetched after `resume`; scores and sending results go on.
    """
    _set_paused(source, now, by, now)


@transaction.atomic
def resume(source: Source, *, by: recording.Actor, now: datetime) -> None:
    """Take from this source again."""
    _set_paused(source, None, by, now)


def _set_paused(source: Source, at: datetime | None, by: recording.Actor, now: datetime) -> None:
    held = Source.objects.select_for_update().get(pk=source.pk)
    if (held.paused_at is None) == (at is None):
        return
    held.paused_at = at
    held.save(update_fields=["paused_at"])
    action = "source.pause" if at else "source.resume"
    recording.record(by=by, action=action, object_type="Source", object_id=held.pk, now=now)
    outbox.tell("source", held.pk, now=now)


@transaction.atomic
def ask_check(source: Source, *, by: recording.Actor, now: datetime) -> None:
    """Have a worker see whether the source answers; the answer stands in `Source.check_said`."""
    Source.objects.filter(pk=source.pk).update(check_state=CheckState.ASKED, check_said="", checked_at=now)
    recording.record(by=by, action="source.check", object_type="Source", object_id=source.pk, now=now)
    outbox.enqueue(Job.CHECK_SOURCE, now=now, source_id=str(source.pk))
    outbox.tell("source", source.pk, now=now)


@transaction.atomic
def answer_check(source_id: int, *, answered: bool, said: str, now: datetime) -> None:
    """What a worker found."""
    state = CheckState.ANSWERED if answered else CheckState.SILENT
    Source.objects.filter(pk=source_id).update(check_state=state, check_said=said[:2000], checked_at=now)
    outbox.tell("source", source_id, now=now)
