"""How sending stands, for the command and the screens. No patient is named."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Min, Q

from cds.jobs.models import WorkState
from cds.patients.models import Source
from cds.sending.models import Destination, Document


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationView:
    """One destination as a list shows it.

    waiting, refused   documents that are still to be accepted, and those refused for good
    waiting_since      when the oldest waiting one was made; None when nothing waits: that is its lag
    paused_until       it was away or busy: nobody tries earlier
    """

    slug: str
    source: str
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
        slug=row.slug,
        source=row.source.slug,
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
    )
