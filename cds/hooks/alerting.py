"""Whom a card alerts, and when it only informs: nobody is alerted twice for the same thing.

A card alerts (warning, critical) from a category on that the site sets (HOOKS_ALERT_AT, HOOKS_CRITICAL_AT).
It only informs, and says why, when within HOOKS_QUIET_HOURS the same person was alerted to the same risk of
the same patient, at whatever hook, or anybody answered it; unless it has risen to a higher category since.
Roles in HOOKS_QUIET_ROLES are never alerted. The number itself is always shown: quiet is not silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.utils import timezone

from cds.hooks.contexts import Context
from cds.hooks.models import CardShown
from cds.hooks.replies import Indicator
from cds.patients.models import Patient
from cds.risk import thresholds
from cds.risk.models import RiskPrediction
from cds.risk.responding import Answer
from cds.statements import Statement

ALERTS = (Indicator.WARNING, Indicator.CRITICAL)
ANSWERS = {"acknowledged": "Acknowledged", "overridden": "Answered"}

_alerts = Statement(
    lambda patient, user, outcome, since: (
        CardShown.objects.filter(
            patient=patient,
            user=user,
            outcome=outcome,
            indicator__in=[one.value for one in ALERTS],
            shown_at__gt=since,
        )
        .order_by("-shown_at")
        .values_list("category", "shown_at")[:20]
    )
)


@dataclass(frozen=True, slots=True)
class Alert:
    """How a card comes, and why it comes quietly where it does."""

    indicator: Indicator = Indicator.INFO
    note: str = ""


def decide(
    prediction: RiskPrediction,
    answer: Answer | None,
    *,
    patient: Patient,
    context: Context,
    now: datetime,
) -> Alert:
    """How the card of this number comes to this person.

    answer  the latest answer anybody gave to this patient and outcome (`responding.latest_of`)
    """
    wanted = indicator_of(prediction.outcome, prediction.category)
    if wanted not in ALERTS:
        return Alert(wanted)
    if context.role in settings.HOOKS_QUIET_ROLES:
        return Alert()
    since = now - timedelta(seconds=settings.HOOKS_QUIET_S)
    rank = _rank(prediction.category)
    is_answered = answer is not None and answer.kind in ANSWERS and answer.at > since
    if answer is not None and is_answered and _rank(answer.category) >= rank:
        return Alert(note=f"{ANSWERS[answer.kind]} at {_time(answer.at)}, so not an alert again.")
    seen = _alerts.rows(patient=patient.pk, user=context.user, outcome=prediction.outcome, since=since)
    for category, at in seen:
        if _rank(category) >= rank:
            return Alert(note=f"You were alerted to this at {_time(at)}, so not again.")
    return Alert(wanted)


def indicator_of(outcome: str, category: str) -> Indicator:
    """What the site's thresholds say of a category of risk."""
    if _reaches(settings.HOOKS_CRITICAL_AT, outcome, category):
        return Indicator.CRITICAL
    return Indicator.WARNING if _reaches(settings.HOOKS_ALERT_AT, outcome, category) else Indicator.INFO


def _reaches(bounds: dict[str, str], outcome: str, category: str) -> bool:
    bound = bounds.get(outcome, bounds[""])
    return bound != "never" and _rank(category) >= _rank(bound)


def _rank(category: str) -> int:
    return thresholds.SEVERITY.get(category, -1)


def _time(at: datetime) -> str:
    return timezone.localtime(at).strftime("%Y-%m-%d %H:%M %Z")
