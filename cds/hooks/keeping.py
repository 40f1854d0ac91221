"""What stays of a call: the cards that left, with who saw them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import OperationalError, transaction

from cds.audit import recording
from cds.hooks import alerting
from cds.hooks.alerting import ALERTS
from cds.hooks.budget import Budget, late
from cds.hooks.cards import Shown
from cds.hooks.client_auth import Caller
from cds.hooks.models import CardShown
from cds.hooks.offering import Service
from cds.hooks.prefetching import Taken
from cds.statements import Insertion

logger = logging.getLogger(__name__)
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
    raises  Unavailable when the time is over: the caller has a 503, so nothing counts as shown. What was kept
            by then, because the commit itself took too long, is marked
    """
    took_ms = time_left.spent_ms()
    if settings.HOOKS_QUIET_S and any(one.card.indicator in ALERTS for one in shown):
        with transaction.atomic():
            recording.hold(patient_id=taken.patient.pk)
            shown = again()
            _keep(shown, taken, service=service, caller=caller, time_left=time_left, took_ms=took_ms, now=now)
    else:
        _keep(shown, taken, service=service, caller=caller, time_left=time_left, took_ms=took_ms, now=now)
    if not time_left.hand_over():
        _mark_late(shown, taken, service=service, caller=caller, now=now)
        raise late()
    return shown


def _mark_late(
    shown: Sequence[Shown], taken: Taken, *, service: Service, caller: Caller, now: datetime
) -> None:
    """Nobody saw these cards: they alerted nobody. Tried twice, for the database may be slow still."""
    keys = [one.card.uuid for one in shown]
    if not keys:
        return
    for is_last in (False, True):
        try:
            with transaction.atomic():
                CardShown.objects.filter(pk__in=keys).update(was_late=True)
                recording.record(
                    by=caller.actor,
                    action="hook.late",
                    object_type="Patient",
                    object_id=taken.patient.pk,
                    patient_id=taken.patient.pk,
                    now=now,
                    hook_instance=taken.asked.hook_instance,
                    cards=[str(key) for key in keys],
                )
            break
        except OperationalError as error:
            if is_last:
                logger.error("%d cards that came too late count as shown", len(keys), exc_info=error)
    alerting.forget(taken.patient.pk, taken.asked.context.user, service.outcome)


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
        suggestions={str(offered.uuid): offered.label for offered in one.card.suggestions},
        version=service.version,
        milliseconds=round(took_ms, 1),
        shown_at=now,
    )
