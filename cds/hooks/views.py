"""The CDS Hooks API: discovery, the call of a service, feedback.

`call_service` is the first of the three paths (HOUSE 3): verify the client, read the request, bring the
record up to what was sent, take the freshest score within the budget, answer with cards, and audit all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from cds.hooks import (
    alerting,
    answering,
    budget,
    cards,
    keeping,
    linking,
    offering,
    order_cards,
    ordering,
    prefetching,
    studies_known,
    waiting,
)
from cds.hooks.budget import Budget
from cds.hooks.client_auth import Caller
from cds.hooks.contexts import CLINICIANS, WITH_ORDERS
from cds.hooks.endpoints import endpoint, json_response, read_body
from cds.hooks.feedback import parse_feedback
from cds.hooks.offering import Service
from cds.hooks.prefetching import Taken
from cds.hooks.wire import parse_json
from cds.patients import merging
from cds.risk import assessing, responding
from cds.risk.standing import Standing

_Shown = Sequence[cards.Shown]
SUGGESTING = frozenset({"patient-view", "encounter-start", "order-select", "order-sign"})


@endpoint("GET")
def discovery(request: HttpRequest, *, caller: Caller, now: datetime) -> HttpResponse:
    """One service per outcome a model answers for and hook this site offers (INTEROP 1-6)."""
    return json_response({"services": [offering.describe(service) for service in offering.list_services()]})


@endpoint("POST")
def call_service(request: HttpRequest, *, caller: Caller, now: datetime, service_id: str) -> HttpResponse:
    """A hook of the EHR: the cards of the service's active model, within 500 ms.

    No card when somebody snoozed this very outcome for this patient and its risk has not risen to a higher
    category since, at order hooks for orders that are not imaging, and for a Patient or RelatedPerson who
    opens a record: risks are for clinicians, as at a launch. Never because something failed.
    """
    time_left = budget.of(request)
    service = offering.get_service(service_id)
    taken = prefetching.take(read_body(request), service=service, caller=caller, budget=time_left, now=now)
    shown, again = _cards(service, taken, caller=caller, time_left=time_left, now=now)
    time_left.check()
    shown = keeping.keep_shown(
        shown, taken, service=service, caller=caller, time_left=time_left, now=now, again=again
    )
    return json_response({"cards": [one.card.to_json() for one in shown]})


@endpoint("POST")
def feedback(request: HttpRequest, *, caller: Caller, now: datetime, service_id: str) -> HttpResponse:
    """What clinicians did with cards (INTEROP 17). Sent twice, kept once; what is not kept is named."""
    time_left = budget.of(request, settings.HOOKS_FEEDBACK_S)
    batch = parse_feedback(parse_json(read_body(request)))
    answering.keep(batch, service_id=service_id, caller=caller, time_left=time_left, now=now)
    return HttpResponse(status=200)


def _cards(
    service: Service, taken: Taken, *, caller: Caller, time_left: Budget, now: datetime
) -> tuple[_Shown, Callable[[], _Shown]]:
    """The cards, and what makes them as they must be once somebody may have been alerted meanwhile."""
    context, patient = taken.asked.context, taken.patient
    studies = ordering.imaging_ordered(context.orders) if service.hook in WITH_ORDERS else []
    if context.role not in CLINICIANS or (service.hook in WITH_ORDERS and not studies):
        return [], list
    standing = assessing.current_one(
        patient,
        service.version,
        newest=taken.seen.assessment if taken.seen is not None else None,
        by=caller.actor,
        now=now,
        wait_s=min(settings.HOOKS_WAIT_S, time_left.left()),
        place=waiting.PLACES.one_of(waiting.of(caller)),
    )
    if taken.is_paused:
        standing = cards.as_held(standing, patient)
    number = cards.number_of(standing, service.outcome)
    everybody = _everybody(taken) if number is not None else ()
    answer = _answer(taken, everybody, service) if number is not None else None
    if number is not None and responding.is_snoozed(answer, category=number.category, now=now):
        return [], list
    setting = cards.Setting(
        outcome=service.outcome,
        patient=patient,
        context=context,
        now=now,
        not_supplied=taken.missing,
        may_suggest=service.hook in SUGGESTING,
        may_launch=linking.may_launch(caller, taken.asked.access),
    )

    def decide() -> alerting.Alert:
        if number is None:
            return alerting.Alert()
        return alerting.decide(number, answer, patients=everybody, context=context, now=now)

    def draw(alert: alerting.Alert) -> _Shown:
        alerting_so = replace(setting, alert=alert)
        if service.hook not in WITH_ORDERS:
            return [cards.card_for(standing, alerting_so)]
        return _of_orders(studies, standing, alerting_so)

    alert = decide()
    shown = draw(alert)

    def again() -> _Shown:
        by_now = decide()
        return shown if by_now == alert else draw(by_now)

    return shown, again


def _of_orders(studies: Sequence[ordering.Imaging], standing: Standing, setting: cards.Setting) -> _Shown:
    return [
        order_cards.order_card(
            standing,
            setting if place == 0 else _once_more(setting),
            study,
            studies_known.known_of(study, standing, outcome=setting.outcome, patient=setting.patient),
        )
        for place, study in enumerate(studies)
    ]


def _once_more(setting: cards.Setting) -> cards.Setting:
    """For the cards after the first: no second alert to one risk in a call, and nothing suggested twice."""
    alert = setting.alert
    if alert.indicator in alerting.ALERTS:
        alert = alerting.Alert(note="The first card about these orders alerts to this, so not again.")
    return replace(setting, alert=alert, may_suggest=False)


def _everybody(taken: Taken) -> tuple[UUID, ...]:
    """Keys of the patient and of everybody merged into them."""
    if taken.seen is not None and not taken.seen.has_merged:
        return (taken.patient.pk,)
    return merging.everybody(taken.patient)


def _answer(taken: Taken, everybody: tuple[UUID, ...], service: Service) -> responding.Answer | None:
    """The latest answer that anybody gave to a score of this person and outcome."""
    if taken.seen is None or taken.seen.has_merged:
        return responding.latest_of(everybody, service.outcome)
    return None if taken.seen.answer is None else responding.answer_of(taken.seen.answer)
