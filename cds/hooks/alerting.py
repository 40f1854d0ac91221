"""Whom a card alerts, and when it only informs: nobody is alerted twice for the same thing.

A card alerts (warning, critical) from a category on that the site sets (HOOKS_ALERT_AT, HOOKS_CRITICAL_AT).
It only informs, and says why, when within HOOKS_QUIET_HOURS the same person was alerted to the same risk of
the same patient, at whatever hook, or anybody answered it; unless it has risen to a higher category since.
"The same person" is the user as the EHR names them: a PractitionerRole is one person in one role, and who
acts in two is alerted in each; a Practitioner is one person in all. Roles in HOOKS_QUIET_ROLES, all of a FHIR
type or one PractitionerRole, are never alerted. The number itself is always shown: quiet is not silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from cds.hooks.contexts import Context
from cds.hooks.models import CardShown
from cds.hooks.replies import Indicator
from cds.risk import thresholds
from cds.risk.models import RiskPrediction
from cds.risk.responding import Answer
from cds.statements import Statement

MOST_REMEMBERED = 20_000
ALERTS = (Indicator.WARNING, Indicator.CRITICAL)
ANSWERS = {"acknowledged": "Acknowledged", "overridden": "Answered"}

_remembered: dict[tuple[UUID, str, str], tuple[int, datetime]] = {}


@lru_cache(maxsize=len(thresholds.SEVERITY))
def _alerts(rank: int) -> Statement:
    """When somebody was alerted last to a risk of this rank or above."""
    categories = [category for category, held in thresholds.SEVERITY.items() if held >= rank]
    return Statement(
        lambda patient, user, outcome, since: (
            CardShown.objects.filter(
                patient=patient,
                user=user,
                outcome=outcome,
                indicator__in=[one.value for one in ALERTS],
                category__in=categories,
                shown_at__gt=since,
                was_late=False,
            )
            .order_by("-shown_at")
            .values_list("shown_at")[:1]
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
    patients: Sequence[UUID],
    context: Context,
    now: datetime,
) -> Alert:
    """How the card of this number comes to this person.

    patients  keys of the patient, and of everybody merged into them (`merging.everybody`)

    answer  the latest answer anybody gave to this patient and outcome (`responding.latest_of`)
    """
    wanted = indicator_of(prediction.outcome, prediction.category)
    if wanted not in ALERTS:
        return Alert(wanted)
    if context.roles & settings.HOOKS_QUIET_ROLES:
        return Alert()
    since = now - timedelta(seconds=settings.HOOKS_QUIET_S)
    rank = _rank(prediction.category)
    is_answered = answer is not None and answer.kind in ANSWERS and answer.at > since
    if answer is not None and is_answered and _rank(answer.category) >= rank:
        return Alert(note=f"{ANSWERS[answer.kind]} at {_time(answer.at)}, so not an alert again.")
    at = _alerted_at(patients, context.user, prediction.outcome, rank, since)
    if at is not None:
        return Alert(note=f"You were alerted to this at {_time(at)}, so not again.")
    return Alert(wanted)


def _alerted_at(
    patients: Sequence[UUID], user: str, outcome: str, rank: int, since: datetime
) -> datetime | None:
    """When this person was alerted last, after `since`, to a risk of this rank or above; None when never.

    That they were is remembered in this process, for it stays true (but see `forget`); that they were not is
    asked every time.
    """
    whom = (patients[0], user, outcome)
    held = _remembered.get(whom)
    if held is not None and held[0] >= rank and held[1] > since:
        return held[1]
    asked = _alerts(rank)
    found = [asked.row(patient=one, user=user, outcome=outcome, since=since) for one in patients]
    at: datetime | None = max((row[0] for row in found if row is not None), default=None)
    if at is None:
        return None
    if len(_remembered) >= MOST_REMEMBERED:
        _remembered.clear()
    _remembered[whom] = (rank, at)
    return at


def forget(patient: UUID, user: str, outcome: str) -> None:
    """Look up anew whether this person was alerted: an alert turned out to have been shown to nobody.

    Another process that looked before that was noted holds on to it: there are some milliseconds for it.
    """
    _remembered.pop((patient, user, outcome), None)


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
