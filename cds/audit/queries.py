"""Reading the audit trail. Who may: `cds.patients.access`; that it was read is recorded by the caller."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from django.db.models import QuerySet
from django.utils import timezone

from cds.audit.models import AuditEvent


@dataclass(frozen=True, slots=True)
class AuditFilters:
    """What to show; empty fields show everything. Dates are days of the local calendar, both included."""

    action: str = ""  # the beginning of an action: "patient", "promotion.approve"
    outcome: str = ""
    actor: str = ""
    patient_id: str = ""
    since: date | None = None
    until: date | None = None


def list_events(filters: AuditFilters) -> QuerySet[AuditEvent]:
    """Matching events, newest first; slice it."""
    rows = AuditEvent.objects.order_by("-at", "-pk")
    if filters.action:
        rows = rows.filter(action__startswith=filters.action)
    if filters.outcome:
        rows = rows.filter(outcome=filters.outcome)
    if filters.actor:
        rows = rows.filter(actor=filters.actor)
    if filters.patient_id:
        key = _uuid(filters.patient_id)
        rows = rows.filter(patient_id=key) if key else rows.none()
    if filters.since:
        rows = rows.filter(at__gte=_midnight(filters.since))
    if filters.until:
        rows = rows.filter(at__lt=_midnight(filters.until + timedelta(days=1)))
    return rows


def list_actions() -> list[str]:
    """Every kind of act there is in the trail."""
    return list(AuditEvent.objects.order_by("action").values_list("action", flat=True).distinct())


def _midnight(day: date) -> datetime:
    return timezone.make_aware(datetime.combine(day, time.min))


def _uuid(given: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(given)
    except ValueError:
        return None


def has_recent(*, actor: str, action: str, object_id: object, patient_id: object, since: datetime) -> bool:
    """Whether this look is already on record: frames of one Series are one look, not sixty."""
    return AuditEvent.objects.filter(
        patient_id=str(patient_id),
        at__gte=since,
        actor=actor,
        action=action,
        object_id=str(object_id),
        outcome="success",
    ).exists()
