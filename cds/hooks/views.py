"""The CDS Hooks API: discovery, the call of a service, feedback.

`call_service` is the first of the three paths (HOUSE 3): verify the client, read the request, bring the
record up to what was sent, take the freshest score within the budget, answer with cards, and audit all of it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from cds.audit import recording
from cds.errors import NotFound
from cds.hooks import cards, prefetching, replies, wire
from cds.hooks.client_auth import Caller
from cds.hooks.endpoints import endpoint, json_response, read_body
from cds.hooks.models import CardShown, Feedback
from cds.patients.models import Patient
from cds.registry import queries as registry_queries
from cds.registry.models import ActiveModel
from cds.registry.outcomes import OUTCOMES
from cds.risk import assessing, responding

HOOK = "patient-view"
PREFIX, SUFFIX = "tessera-", f"-{HOOK}"


@endpoint("GET")
def discovery(request: HttpRequest, *, caller: Caller, now: datetime) -> HttpResponse:
    """One patient-view service per outcome a model answers for (INTEROP 1-6)."""
    return json_response({"services": [_describe(active) for active in registry_queries.list_active()]})


@endpoint("POST")
def call_service(request: HttpRequest, *, caller: Caller, now: datetime, service_id: str) -> HttpResponse:
    """The EHR opens a patient: the card of the service's active model, within 500 ms.

    No card only when somebody snoozed this very outcome for this patient.
    """
    active = _get_service(service_id)
    asked = wire.parse_request(wire.parse_json(read_body(request)), hook=HOOK)
    patient = prefetching.take(asked, caller=caller, now=now)
    standings = assessing.current(patient, by=caller.actor, now=now, wait_s=settings.HOOKS_WAIT_S)
    shown = cards.cards_for(
        [standing for standing in standings if standing.version.pk == active.version_id],
        outcome=active.outcome,
        patient=patient,
        now=now,
        not_supplied=asked.prefetch.missing(tuple(prefetching.templates(active.version))),
    )
    shown = [
        one for one in shown if one.prediction is None or not responding.is_quiet(one.prediction, now=now)
    ]
    _keep(shown, asked, patient, service_id=service_id, caller=caller, now=now)
    return json_response({"cards": [one.card.to_json() for one in shown]})


@endpoint("POST")
def feedback(request: HttpRequest, *, caller: Caller, now: datetime, service_id: str) -> HttpResponse:
    """What clinicians did with cards (INTEROP 17). Sent twice, kept once; an unknown card: 404, audited."""
    items = wire.parse_feedback(wire.parse_json(read_body(request)))
    known = {
        card.pk: card
        for card in CardShown.objects.select_related("prediction__assessment").filter(
            pk__in={item.card for item in items}, service=service_id, client=caller.client
        )
    }
    with transaction.atomic():
        for item in items:
            if item.card in known:
                _keep_feedback(known[item.card], item, caller=caller, now=now)
    unknown = sorted({str(item.card) for item in items} - {str(key) for key in known})
    if unknown:
        raise NotFound(f"no such card of this service: {', '.join(unknown[:10])}; the others were kept")
    return HttpResponse(status=200)


def service_id_of(outcome: str) -> str:
    """The id of the service that answers for an outcome; it stays when models are promoted."""
    return f"{PREFIX}{outcome}{SUFFIX}"


def _get_service(service_id: str) -> ActiveModel:
    for active in registry_queries.list_active():
        if service_id_of(active.outcome) == service_id:
            return active
    raise NotFound("no such service: see /cds-services")


def _describe(active: ActiveModel) -> dict[str, Any]:
    version, outcome = active.version, OUTCOMES.get(active.outcome)
    label = outcome.label if outcome else active.outcome
    return replies.without_empty(
        {
            "hook": HOOK,
            "id": service_id_of(active.outcome),
            "title": f"Risk: {label}",
            "description": (
                f"{label}: calibrated risk with its interval, from the record and the images Tessera holds. "
                f"Model {version.label}. {settings.REGULATORY_LABEL}."
            ),
            "prefetch": prefetching.templates(version),
            "usageRequirements": "Send the prefetch data: this service does not fetch from the FHIR server.",
        }
    )


@transaction.atomic
def _keep(
    shown: list[cards.Shown],
    asked: wire.HookRequest,
    patient: Patient,
    *,
    service_id: str,
    caller: Caller,
    now: datetime,
) -> None:
    """The cards that leave, and who was shown what, in one transaction."""
    CardShown.objects.bulk_create(
        CardShown(
            id=one.card.uuid,
            client=caller.client,
            service=service_id,
            hook_instance=asked.hook_instance,
            prediction=one.prediction,
            kind=one.kind.value,
            shown_at=now,
        )
        for one in shown
    )
    recording.record(
        by=caller.actor,
        action="hook.call",
        object_type="Patient",
        object_id=patient.pk,
        patient_id=patient.pk,
        now=now,
        service=service_id,
        hook_instance=asked.hook_instance,
        user=asked.user,
        cards=[{"id": str(one.card.uuid), "kind": one.kind.value} for one in shown],
    )


def _keep_feedback(card: CardShown, item: wire.FeedbackItem, *, caller: Caller, now: datetime) -> None:
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
    return card.prediction.assessment.patient_id if card.prediction is not None else None
