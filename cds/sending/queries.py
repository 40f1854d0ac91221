"""How sending stands, for the command and the screens. No patient is named."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.db.models import Count, Max, Min, Q

from cds.errors import NotFound
from cds.jobs.models import WorkState
from cds.patients import access
from cds.patients.models import Source
from cds.sending.models import Destination, DestinationKind, Document, DocumentKind

MOST_REASONS = 100


class DestinationState(StrEnum):
    """How a destination stands, in a word."""

    AWAY = "Away"  # the last try did not get through; it is tried again
    REFUSING = "Refusing"  # it answers, and has refused something for good
    PAUSED = "Paused"
    SENDING = "Sending"
    NOTHING_YET = "Nothing sent yet"
    CURRENT = "Current"


WORST_FIRST = tuple(DestinationState)


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationView:
    """One destination as a list shows it.

    waiting, refused   documents that are still to be accepted, and those refused for good
    waiting_since      when the oldest waiting one was made; None when nothing waits: that is its lag
    paused_until       it was away or busy: nobody tries earlier
    sign_in            how we show who we are, in words
    """

    id: str
    slug: str
    source: str
    source_id: int
    source_title: str
    kind: str
    address: str
    documents: tuple[str, ...]
    is_active: bool
    waiting: int
    accepted: int
    refused: int
    waiting_since: datetime | None
    paused_until: datetime | None
    last_error: str
    last_error_at: datetime | None
    last_accepted_at: datetime | None
    failures: int
    sign_in: str
    check_state: str
    check_said: str
    checked_at: datetime | None

    @property
    def state(self) -> DestinationState:
        """In a word."""
        if not self.is_active:
            return DestinationState.PAUSED
        if self.failures:
            return DestinationState.AWAY
        if self.refused:
            return DestinationState.REFUSING
        if self.waiting:
            return DestinationState.SENDING
        return DestinationState.CURRENT if self.accepted else DestinationState.NOTHING_YET

    @property
    def error(self) -> str:
        """What went wrong last, while it still matters."""
        is_wrong = self.state in (DestinationState.AWAY, DestinationState.REFUSING)
        return self.last_error if is_wrong or (self.failures and not self.is_active) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedView:
    """A document that was refused, with the reason. `subject`: id of the score, outline or heat map."""

    id: str
    destination: str
    kind: str
    subject: str
    reason: str
    at: datetime | None


_WAITING = Q(documents__work_state__in=[WorkState.QUEUED, WorkState.RUNNING])


def list_destinations(*, now: datetime, source: Source | None = None) -> list[DestinationView]:
    """Every destination, those removed left out."""
    rows = Destination.objects.exclude(slug__startswith="removed-").select_related("source")
    if source is not None:
        rows = rows.filter(source=source)
    counted = rows.annotate(
        waiting=Count("documents", filter=_WAITING),
        accepted=Count("documents", filter=Q(documents__work_state=WorkState.DONE)),
        refused=Count("documents", filter=Q(documents__work_state=WorkState.FAILED)),
        oldest=Min("documents__order", filter=_WAITING),
    )
    return [_view(row, now) for row in counted.order_by("slug")]


def show_destinations(viewer: access.Viewer, *, now: datetime) -> list[DestinationView]:
    """Every destination for the screen, those in trouble first. Raises NotAllowed."""
    access.check_manage_sources(viewer)
    return sorted(list_destinations(now=now), key=lambda one: (WORST_FIRST.index(one.state), one.slug))


def show_destination(viewer: access.Viewer, slug: str, *, now: datetime) -> DestinationView:
    """One destination for the screen. Raises NotAllowed, NotFound."""
    access.check_manage_sources(viewer)
    found = next((one for one in list_destinations(now=now) if one.slug == slug), None)
    if found is None:
        raise NotFound("no such destination")
    return found


def count_reasons(viewer: access.Viewer, slug: str) -> list[dict[str, Any]]:
    """What it refused, by kind and reason: how many, when last. Raises NotAllowed."""
    access.check_manage_sources(viewer)
    rows = Document.objects.filter(destination__slug=slug, work_state=WorkState.FAILED)
    grouped = rows.values("kind", "failure").annotate(items=Count("pk"), last=Max("finished_at"))
    names = dict(DocumentKind.choices)
    found = grouped.order_by("-items", "kind", "failure")[:MOST_REASONS]
    return [{**one, "kind": names.get(one["kind"], one["kind"])} for one in found]


def list_refused(slug: str, *, most: int = 100) -> list[RefusedView]:
    """What a destination refused, newest first."""
    rows = Document.objects.filter(destination__slug=slug, work_state=WorkState.FAILED)
    return [
        RefusedView(
            id=str(row.pk),
            destination=slug,
            kind=row.kind,
            subject=row.subject,
            reason=row.failure,
            at=row.finished_at,
        )
        for row in rows.order_by("-finished_at", "pk")[:most]
    ]


def _view(row: Any, now: datetime) -> DestinationView:
    is_paused = row.not_before is not None and row.not_before > now
    return DestinationView(
        id=str(row.pk),
        slug=row.slug,
        source=row.source.slug,
        source_id=row.source_id,
        source_title=row.source.title,
        kind=row.kind,
        address=row.address,
        documents=tuple(row.document_kinds),
        is_active=row.is_active,
        waiting=row.waiting,
        accepted=row.accepted,
        refused=row.refused,
        waiting_since=row.oldest,
        paused_until=row.not_before if is_paused else None,
        last_error=row.last_error,
        last_error_at=row.last_error_at,
        last_accepted_at=row.last_accepted_at,
        failures=row.failures,
        sign_in=_sign_in(row),
        check_state=row.check_state,
        check_said=row.check_said,
        checked_at=row.checked_at,
    )


def _sign_in(row: Destination) -> str:
    if row.kind == DestinationKind.DIMSE:
        return f"AE title {row.title or 'TESSERA'}"
    if row.client_id:
        return f"Backend Services as {row.client_id}"
    return f"what the workers' variable {row.secret_env} holds" if row.secret_env else "none"
