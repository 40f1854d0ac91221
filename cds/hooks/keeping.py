"""What stays of a call: the cards that left with who saw them, and what people did with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction

from cds.audit import recording
from cds.hooks.cards import Shown
from cds.hooks.client_auth import Caller
from cds.hooks.feedback import FeedbackItem
from cds.hooks.models import CardShown, Feedback
from cds.hooks.offering import Service
from cds.hooks.prefetching import Taken
from cds.risk import responding
from cds.statements import Insertion

_cards = Insertion(CardShown)


def keep_shown(
    shown: Sequence[Shown],
    taken: Taken,
    *,
    service: Service,
    caller: Caller,
    took_ms: float,
    now: datetime,
) -> None:
    """The cards that leave, and who was shown what: all of it or nothing. `took_ms`: until they were made."""
    rows = [_card(one, taken, service=service, caller=caller, took_ms=took_ms, now=now) for one in shown]
    patient = taken.patient
    event: dict[str, Any] = {
        "by": caller.actor,
        "action": "hook.call",
        "object_type": "Patient",
        "object_id": patient.pk,
        "patient_id": patient.pk,
        "now": now,
        "service": service.id,
        "hook_instance": taken.asked.hook_instance,
        "user": taken.asked.context.user,
        "cards": [{"id": str(one.card.uuid), "kind": one.kind.value} for one in shown],
    }
    if len(rows) == 1:
        recording.record_with(_cards, rows[0], **event)
        return
    with transaction.atomic():
        for row in rows:
            _cards.insert(row)
        recording.record(**event)


def _card(
    one: Shown, taken: Taken, *, service: Service, caller: Caller, took_ms: float, now: datetime
) -> CardShown:
    return CardShown(
        id=one.card.uuid,
        client=caller.client,
        service=service.id,
        hook_instance=taken.asked.hook_instance,
        prediction=one.prediction,
        kind=one.kind.value,
        patient=taken.patient,
        outcome=service.outcome,
        user=taken.asked.context.user,
        indicator=one.card.indicator.value,
        category=one.prediction.category if one.prediction is not None else "",
        version=service.version,
        milliseconds=round(took_ms, 1),
        shown_at=now,
    )


def keep_feedback(card: CardShown, item: FeedbackItem, *, caller: Caller, now: datetime) -> None:
    """One item of feedback, kept once, inside the caller's transaction."""
    _, is_new = Feedback.objects.get_or_create(
        card=card,
        outcome=item.outcome,
        outcome_at=item.outcome_at,
        defaults={
            "accepted_suggestions": list(item.accepted_suggestions),
            "reason_code": item.reason_code,
            "reason_system": item.reason_system,
            "comment": item.comment,
            "received_at": now,
        },
    )
    if not is_new:
        return
    recording.record(
        by=caller.actor,
        action="hook.feedback",
        object_type="CardShown",
        object_id=card.pk,
        patient_id=_patient_of(card),
        now=now,
        answer=item.outcome,
        reason=item.reason_code,
    )
    if card.prediction is None:
        return
    if item.outcome == "accepted":
        responding.acknowledge(card.prediction, by=caller.actor, user=None, now=now, via="hook")
    elif item.reason_code in responding.OVERRIDE_REASONS:  # other reasons are kept with the feedback only
        responding.override(
            card.prediction,
            reason_code=item.reason_code,
            comment=item.comment,
            by=caller.actor,
            user=None,
            now=now,
            via="hook",
        )


def _patient_of(card: CardShown) -> UUID | None:
    if card.prediction is not None:
        return card.prediction.assessment.patient_id
    return card.patient_id
