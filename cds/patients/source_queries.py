"""What the Sources screen shows: how each source stands, its runs, what was set aside and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from django.db.models import Count, Max, Q, QuerySet, Sum

from cds.errors import NotFound
from cds.patients import access
from cds.patients.models import NOT_READ, IngestRun, RunState, SetAside, Source

LATE_AFTER = timedelta(hours=25)  # a nightly run may take an hour
LOOKED_BACK = timedelta(days=30)  # before the newest run: an address not called since is none any more
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


WELL = frozenset({"requested", "active"})  # status of a Subscription, as its server says

KILLED = "the run stopped without a word: it was killed, or its machine went down"


@dataclass(frozen=True, slots=True)
class SubscriptionView:
    """What a server has promised to tell us, and whether it does.

    what    its criteria or topic
    faults  why it does not: what the server says, what went wrong when we fetched
    gap     why changes may be missing until the server has been polled; "" when none are
    """

    base_url: str
    what: str
    status: str
    heard_at: datetime | None
    good_until: datetime
    faults: tuple[str, ...]
    gap: str


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source as it stands now.

    running    the run under way, None when there is none
    last       the last run that came to its end
    newest     the age of what we hold: when anything of this source last changed
    error      a line for each address whose newest run did not come to its end, and each Subscription in
               trouble; "" when there is none
    set_aside  resources and files, each counted once
    not_read   DICOM files that hold no picture, each counted once
    """

    source: Source
    state: SourceState
    running: IngestRun | None
    last: IngestRun | None
    newest: datetime | None
    error: str
    patients: int
    set_aside: int
    not_read: int
    subscriptions: tuple[SubscriptionView, ...]


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
    counted = Source.objects.annotate(
        patient_count=Count("patients", distinct=True), newest=Max("patients__changed_at")
    )
    return counted.prefetch_related("subscriptions")


def _view(source: Source, now: datetime) -> SourceView:
    alive = Q(state=RunState.RUNNING, beat_at__gte=now - SILENT_AFTER)
    running = source.runs.filter(alive).order_by("-started_at", "-pk").first()
    last = source.runs.filter(state=RunState.DONE).order_by("-ended_at").first()
    told = tuple(_subscription_view(one) for one in source.subscriptions.all())
    errors = _run_errors(source.runs.exclude(alive), now)
    errors += [f"Subscription {one.what} at {one.base_url}: {fault}" for one in told for fault in one.faults]
    newest: datetime | None = source.newest  # type: ignore[attr-defined]
    ended, heard = last.ended_at if last else None, min((one.good_until for one in told), default=None)
    seen = max((moment for moment in (newest, ended, heard) if moment), default=None)
    if source.paused_at is not None:
        state = SourceState.PAUSED
    elif errors:
        state = SourceState.FAILING
    elif seen is None:
        state = SourceState.NEVER_RUN
    elif any(one.gap for one in told) or now - min(seen, heard or seen) > LATE_AFTER:
        state = SourceState.LATE
    else:
        state = SourceState.CURRENT
    kept = SetAside.objects.filter(source=source).aggregate(
        not_read=Count("pk", filter=Q(kind=NOT_READ)), set_aside=Count("pk", filter=~Q(kind=NOT_READ))
    )
    return SourceView(
        source=source,
        state=state,
        running=running,
        last=last,
        newest=newest,
        error="\n".join(errors),
        patients=source.patient_count,  # type: ignore[attr-defined]
        subscriptions=told,
        **kept,
    )


def _run_errors(runs: QuerySet[IngestRun], now: datetime) -> list[str]:
    """Why the newest run of each address, as what it was called, did not come to its end.

    Folders count as one address. One that never gave anything is forgotten once another of its kind does: it
    was mistyped.
    """
    newest = runs.order_by("-started_at", "-pk").first()
    if newest is None:
        return []
    recent = runs.filter(started_at__gte=newest.started_at - LOOKED_BACK)
    folders, servers = recent.exclude(where__contains="://"), recent.filter(where__contains="://")
    of_each = [servers.filter(**one) for one in servers.order_by().values("where", "kind").distinct()]
    of_each += [folders.filter(**one) for one in folders.order_by().values("kind").distinct()]
    failing = []
    for these in of_each:
        run = these.order_by("-started_at", "-pk").first()
        if run is None or run.state == RunState.DONE:
            continue
        since = runs.filter(kind=run.kind, state=RunState.DONE, started_at__gt=run.started_at)
        if since.exists() and not these.filter(state=RunState.DONE).exists():
            continue
        failing.append((run, run.error if run.state != RunState.RUNNING else KILLED))
    if len(of_each) == 1:
        return [error for _, error in failing]
    return [f"{run.get_kind_display()}, {run.where}: {error}" for run, error in failing]


def _subscription_view(held: Any) -> SubscriptionView:
    """`held` is a `cds.subscriptions.models.Subscription`, a storey above this one."""
    faults = [held.last_error] if held.last_error else []
    if held.status not in WELL:
        faults.append(
            f"its server says that it is {held.status!r}: look there at Subscription/{held.server_id}, or "
            f"take it back (`fhir_subscription remove {held.pk}`) and add it again"
        )
    return SubscriptionView(
        base_url=held.base_url,
        what=held.criteria or held.topic,
        status=held.status,
        heard_at=held.heard_at,
        good_until=held.good_until,
        faults=tuple(faults),
        gap=held.gap,
    )


def is_silent(run: IngestRun, now: datetime) -> bool:
    """Whether a run that says it is under way was killed."""
    return run.state == RunState.RUNNING and now - run.beat_at > SILENT_AFTER
