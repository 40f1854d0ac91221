"""What people do with a score: acknowledge it, disagree with a coded reason, snooze it, or take that back.

Reasons are HL7's Non-Adherence Reason codes, value set "Non-Adherence Reason Clinical Selection"
(http://terminology.hl7.org/ValueSet/non-adherence-reason-clinical; HL7/cds-hooks, input/vocabulary, 3.0
ballot), the override reasons that CDS Hooks suggests; the same codes leave on cards and return as feedback.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import QuerySet

from cds.audit import recording
from cds.errors import Conflict, Invalid
from cds.jobs import outbox
from cds.patients import access
from cds.risk import thresholds
from cds.risk.models import Response, RiskPrediction
from cds.statements import Statement

REASON_SYSTEM = "http://terminology.hl7.org/CodeSystem/non-adherence-reason-codes"
SNOOZE = timedelta(hours=4)
UNDO_WITHIN = timedelta(seconds=10)
GRACE = timedelta(seconds=5)  # for the way there and back


@dataclass(frozen=True, slots=True)
class Reason:
    """One override reason: `display` is the code system's own, `words` what our form says."""

    code: str
    display: str
    words: str
    system: str = REASON_SYSTEM


OVERRIDE_REASONS: dict[str, Reason] = {
    reason.code: reason
    for reason in (
        Reason("cds-not-applicable", "PC CDS does not apply to patient", "Does not apply to this patient"),
        Reason("action-completed", "Recommended action was already completed", "Already acted upon"),
        Reason(
            "cds-suboptimal-context", "PC CDS delivered in suboptimal context", "Wrong time or wrong person"
        ),
        Reason(
            "recipient-disagrees-evidence",
            "Recipient disagrees with recommendation because of issues with the evidence",
            "I disagree with the evidence",
        ),
        Reason(
            "recipient-concerns-outcomes",
            "Recipient has concerns regarding potential health outcomes",
            "Acting would do more harm than good",
        ),
        Reason(
            "patient-contraindication",
            "Patient has contraindication to recommended action",
            "Contraindicated here",
        ),
        Reason(
            "does-not-align-preferences",
            "Recommendation does not align with patient preferences or values",
            "Not what the patient wants",
        ),
        Reason("patient-refuses", "Patient refuses/declines (no context given)*", "The patient declines"),
        Reason("not-convenient-feasible", "Recommendation is not convenient or feasible", "Not feasible"),
        Reason(
            "service-not-available", "Treatment or service is not practically available", "Not available here"
        ),
        Reason(
            "too-costly-uncovered",
            "Recommended action is too costly or not covered by insurance",
            "Not covered",
        ),
        Reason(
            "recipient-does-not-understand",
            "Recipient does not understand the recommended action or know how to perform the recommended"
            " action",
            "I do not understand this score",
        ),
    )
}


def is_ours(system: str, code: str) -> bool:
    """Whether a coded reason is one of OVERRIDE_REASONS: a code says nothing without its system."""
    return code in OVERRIDE_REASONS and OVERRIDE_REASONS[code].system == system


def acknowledge(
    prediction: RiskPrediction,
    *,
    by: recording.Actor,
    user: User | None,
    now: datetime,
    via: str = "panel",
    at: datetime | None = None,
) -> Response:
    """Seen. Saying it twice keeps one. `at`: when, where that is told only later; never after `now`."""
    held = last_response(prediction)
    if held is not None and held.kind == "acknowledged" and held.by_id == (user.pk if user else None):
        return held
    return _respond(prediction, "acknowledged", by=by, user=user, now=now, via=via, at=at)


def override(
    prediction: RiskPrediction,
    *,
    reason_code: str,
    comment: str = "",
    by: recording.Actor,
    user: User | None,
    now: datetime,
    via: str = "panel",
    at: datetime | None = None,
) -> Response:
    """Disagree, or not acting, for a coded reason; Invalid names the codes there are. `at` as above."""
    if reason_code not in OVERRIDE_REASONS:
        raise Invalid(f"choose a reason: one of {', '.join(OVERRIDE_REASONS)}")
    return _respond(
        prediction,
        "overridden",
        by=by,
        user=user,
        now=now,
        via=via,
        reason_code=reason_code,
        comment=comment,
        at=at,
    )


def snooze(
    prediction: RiskPrediction, *, by: recording.Actor, user: User | None, now: datetime, via: str = "panel"
) -> Response:
    """No card for this outcome for four hours, unless the risk rises to a higher category."""
    return _respond(prediction, "snoozed", by=by, user=user, now=now, via=via, until=now + SNOOZE)


def undo(response: Response, *, by: recording.Actor, user: User, now: datetime) -> Response:
    """Take back one's own answer within ten seconds; both stay on record."""
    if response.by_id != user.pk:
        raise Conflict("only the person who answered can take it back")
    latest = last_response(response.prediction)
    if latest is None or latest.pk != response.pk:
        raise Conflict("this answer is no longer the latest")
    if now - response.at > UNDO_WITHIN + GRACE:
        raise Conflict("too late to take it back: answer again instead")
    return _respond(response.prediction, "undone", by=by, user=user, now=now, via=response.via)


def last_response(prediction: RiskPrediction) -> Response | None:
    """The answer that counts: the latest, or None when there is none or it was taken back."""
    latest = prediction.responses.order_by("-at", "-pk").select_related("by").first()
    return None if latest is None or latest.kind == "undone" else latest


@dataclass(frozen=True, slots=True)
class Answer:
    """What somebody answered: kind, when, until when it holds, and the category it was given to."""

    kind: str
    at: datetime
    until: datetime | None
    category: str


def latest_first(patient: Any, outcome: Any) -> QuerySet[Response]:
    """Every answer to scores of this outcome; of a patient's row, key, or reference of an outer query."""
    answers = Response.objects.filter(prediction__assessment__patient=patient, prediction__outcome=outcome)
    return answers.order_by("-at", "-pk")


_latest = Statement(lambda patient, outcome: latest_first(patient, outcome).values_list("pk")[:1])


def latest_of(patients: Collection[UUID], outcome: str) -> Answer | None:
    """The latest answer to a score of this outcome.

    patients  keys of the patient and of everybody merged into them (`merging.everybody`)
    """
    found = [_latest.row(patient=patient, outcome=outcome) for patient in patients]
    answers = [answer_of(row[0]) for row in found if row is not None]
    return max(answers, key=lambda answer: answer.at, default=None)


@lru_cache(maxsize=4096)
def answer_of(pk: UUID) -> Answer:
    """What somebody answered; an answer is never changed, so it is read once."""
    kept = Response.objects.values_list("kind", "at", "until", "prediction__category")
    return Answer(*kept.get(pk=pk))


def is_snoozed(answer: Answer | None, *, category: str, now: datetime) -> bool:
    """Whether cards for this patient and outcome are snoozed, by the latest answer.

    category  of the risk now: one that has risen above what was snoozed is not what somebody put off
    """
    if answer is None or answer.kind != "snoozed" or answer.until is None or answer.until <= now:
        return False
    return thresholds.SEVERITY.get(category, -1) <= thresholds.SEVERITY.get(answer.category, -1)


def _respond(
    prediction: RiskPrediction,
    kind: str,
    *,
    by: recording.Actor,
    user: User | None,
    now: datetime,
    via: str,
    reason_code: str = "",
    comment: str = "",
    until: datetime | None = None,
    at: datetime | None = None,
) -> Response:
    if user is not None:
        access.check_respond(user)
    with transaction.atomic():
        response = Response.objects.create(
            prediction=prediction,
            kind=kind,
            reason_code=reason_code,
            comment=comment.strip()[:500],
            by=user,
            via=via,
            at=now if at is None else min(at, now),
            until=until,
        )
        patient_id = prediction.assessment.patient_id
        outbox.tell("assessment", prediction.assessment_id, now=now, patient_id=patient_id)
        recording.record(
            by=by,
            action=f"score.{kind}",
            object_type="RiskPrediction",
            object_id=prediction.pk,
            patient_id=patient_id,
            now=now,
            via=via,
            **({"reason": reason_code} if reason_code else {}),
        )
    return response
