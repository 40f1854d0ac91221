"""What stays of a call: the cards that left, with who saw them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import transaction

from cds.audit import recording
from cds.hooks.alerting import ALERTS
from cds.hooks.budget import Budget, late
from cds.hooks.cards import Shown
from cds.hooks.client_auth import Caller
from cds.hooks.models import CardShown
from cds.hooks.offering import Service
from cds.hooks.prefetching import Taken
from cds.statements import Insertion

_cards = Insertion(CardShown)


def keep_shown(
    shown: Sequence[Shown],
    taken: Taken,
    *,
    service: Service,
    caller: Caller,
    time_left: Budget,
    now: datetime,
    again: Callable[[], Sequence[Shown]],
) -> Sequence[Shown]:
    """The cards that leave, and who was shown what: all of it or nothing. Returns the cards as they leave.

    again   the cards as they must come by what is kept by now: asked while nobody else keeps anything about
            the patient, so that of two calls at once one alerts. Cards that only inform cost nothing for it
    raises  Unavailable when the time is over: the caller has a 503, so nothing counts as shown
    """
    took_ms = time_left.spent_ms()
    if settings.HOOKS_QUIET_S and any(one.card.indicator in ALERTS for one in shown):
        with transaction.atomic():
            recording.hold(patient_id=taken.patient.pk)
            shown = again()
            _keep(shown, taken, service=service, caller=caller, time_left=time_left, took_ms=took_ms, now=now)
    else:
        _keep(shown, taken, service=service, caller=caller, time_left=time_left, took_ms=took_ms, now=now)
    return shown


def _keep(
    shown: Sequence[Shown],
    taken: Taken,
    *,
    service: Service,
    caller: Caller,
    time_left: Budget,
    took_ms: float,
    now: datetime,
) -> None:
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
        if not recording.record_with(_cards, rows[0], within_s=time_left.to_keep(), **event):
            raise late()
        return
    with transaction.atomic():
        for row in rows:
            _cards.insert(row)
        recording.record(**event)
        time_left.check()


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
