"""What the Sources screen shows: how each source stands, its runs, what was set aside and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from django.db.models import Count, Max, QuerySet, Sum

from cds.errors import NotFound
from cds.patients import access
from cds.patients.models import IngestRun, RunState, SetAside, Source

LATE_AFTER = timedelta(hours=25)  # a nightly run may take an hour
SILENT_AFTER = timedelta(minutes=10)  # a run that says nothing for longer was killed


class SourceState(StrEnum):
    """How a source stands, in a word."""

    CURRENT = "Current"
    LATE = "Late"
    PAUSED = "Paused"
    FAILING = "Failing"
    NEVER_RUN = "Never run"


WORST_FIRST = (
    SourceState.FAILING,
    SourceState.LATE,
    SourceState.PAUSED,
    SourceState.NEVER_RUN,
    SourceState.CURRENT,
)


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source as it stands now.

    running    the run under way, None when there is none
    last       the last run that came to its end
    newest     the age of what we hold: when anything of this source last changed
    error      why the newest run did not come to its end; "" when it did
    set_aside  resources and files, each counted once
    """

    source: Source
    state: SourceState
    running: IngestRun | None
    last: IngestRun | None
    newest: datetime | None
    error: str
    patients: int
    set_aside: int


def list_sources(viewer: access.Viewer, *, now: datetime) -> list[SourceView]:
    """Every source, those in trouble first. Raises NotAllowed."""
    access.check_manage_sources(viewer)
    views = [_view(source, now) for source in _counted()]
    return sorted(views, key=lambda one: (WORST_FIRST.index(one.state), one.source.title.casefold()))


def get_source(viewer: access.Viewer, source_id: int, *, now: datetime) -> SourceView:
    """One source. Raises NotAllowed, NotFound."""
    access.check_manage_sources(viewer)
    source = _counted().filter(pk=source_id).first()
    if source is None:
        raise NotFound("no such source")
    return _view(source, now)


def list_runs(viewer: access.Viewer, source: Source) -> QuerySet[IngestRun]:
    """The runs of a source, newest first. Raises NotAllowed."""
    access.check_manage_sources(viewer)
    return source.runs.order_by("-started_at", "-pk")


def list_reasons(viewer: access.Viewer, source: Source) -> QuerySet[Any, Any]:
    """What was set aside, by kind and reason: how many, how often, when last. Raises NotAllowed."""
    access.check_manage_sources(viewer)
    grouped = SetAside.objects.filter(source=source).values("kind", "reason")
    return grouped.annotate(items=Count("pk"), seen=Sum("times"), last=Max("last_at")).order_by(
        "-items", "kind", "reason"
    )


def list_set_aside(viewer: access.Viewer, source: Source) -> QuerySet[SetAside]:
    """Each resource and file set aside, the last first. Raises NotAllowed."""
    access.check_manage_sources(viewer)
    return SetAside.objects.filter(source=source).order_by("-last_at", "pk")


def _counted() -> QuerySet[Source]:
    return Source.objects.annotate(
        patient_count=Count("patients", distinct=True), newest=Max("patients__changed_at")
    )


def _view(source: Source, now: datetime) -> SourceView:
    runs = source.runs.order_by("-started_at", "-pk")
    newest_run = runs.first()
    silent = newest_run is not None and is_silent(newest_run, now)
    running = newest_run if newest_run and newest_run.state == RunState.RUNNING and not silent else None
    last = runs.filter(state=RunState.DONE).order_by("-ended_at").first()
    ended = newest_run if running is None else runs.exclude(pk=running.pk).first()
    error = ""
    if ended is not None and is_silent(ended, now):
        error = "the run stopped without a word: it was killed, or its machine went down"
    elif ended is not None and ended.state in (RunState.FAILED, RunState.BROKEN_OFF):
        error = ended.error
    newest: datetime | None = source.newest  # type: ignore[attr-defined]
    seen = max((moment for moment in (newest, last.ended_at if last else None) if moment), default=None)
    if source.paused_at is not None:
        state = SourceState.PAUSED
    elif error:
        state = SourceState.FAILING
    elif seen is None:
        state = SourceState.NEVER_RUN
    else:
        state = SourceState.CURRENT if now - seen <= LATE_AFTER else SourceState.LATE
    set_aside = SetAside.objects.filter(source=source).count()
    count: int = source.patient_count  # type: ignore[attr-defined]
    return SourceView(source, state, running, last, newest, error, count, set_aside)


def is_silent(run: IngestRun, now: datetime) -> bool:
    """Whether a run that says it is under way was killed."""
    return run.state == RunState.RUNNING and now - run.beat_at > SILENT_AFTER
