"""What the context of each hook must hold. INTEROP 10."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cds.hooks.contexts import HOOKS, parse_context
from cds.hooks.fields import BadRequest

ORDER = {"resourceType": "ServiceRequest", "id": "o1", "subject": {"reference": "Patient/p1"}}
DRUG = {"resourceType": "MedicationRequest", "id": "m1", "subject": {"reference": "Patient/p1"}}
DRAFTS = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": ORDER}, {"resource": DRUG}]}
WHO = {"userId": "PractitionerRole/r1", "patientId": "p1"}
STAY = {**WHO, "encounterId": "e1"}
CONTEXTS: dict[str, dict[str, Any]] = {
    "patient-view": WHO,
    "encounter-start": STAY,
    "encounter-discharge": STAY,
    "order-select": {**WHO, "selections": ["ServiceRequest/o1"], "draftOrders": DRAFTS},
    "order-sign": {**WHO, "draftOrders": DRAFTS},
    "appointment-book": {**WHO, "appointments": {"resourceType": "Bundle", "entry": []}},
}


def test_there_is_a_context_for_every_hook() -> None:
    assert CONTEXTS.keys() == HOOKS.keys()


@pytest.mark.parametrize("hook", CONTEXTS)
def test_the_right_context_is_read(hook: str) -> None:
    found = parse_context(CONTEXTS[hook], hook=hook)
    assert (found.user, found.patient_id, found.role) == ("PractitionerRole/r1", "p1", "PractitionerRole")


def test_only_selected_orders_are_what_order_select_is_about() -> None:
    found = parse_context(CONTEXTS["order-select"], hook="order-select")
    assert [one["id"] for one in found.orders] == ["o1"]
    assert [one["id"] for one in found.drafts] == ["o1", "m1"]
    assert len(parse_context(CONTEXTS["order-sign"], hook="order-sign").orders) == 2


def changed(hook: str, **changes: Any) -> dict[str, Any]:
    context = copy.deepcopy(CONTEXTS[hook]) | changes
    return {name: value for name, value in context.items() if value is not ...}


def drafts(**changes: Any) -> dict[str, Any]:
    order = {name: value for name, value in {**ORDER, **changes}.items() if value is not ...}
    return {"resourceType": "Bundle", "entry": [{"resource": order}]}


def booked(*actors: Any) -> dict[str, Any]:
    participants = [{"actor": actor, "status": "accepted"} for actor in actors]
    appointment = {"resourceType": "Appointment", "status": "proposed", "participant": participants}
    return {"resourceType": "Bundle", "entry": [{"resource": appointment}]}


@pytest.mark.parametrize(
    ("hook", "changes", "field"),
    [
        *((hook, {"userId": ...}, "context.userId") for hook in CONTEXTS),
        *((hook, {"userId": "Device/1"}, "context.userId") for hook in CONTEXTS),
        *((hook, {"patientId": ...}, "context.patientId") for hook in CONTEXTS),
        *((hook, {"encounterId": "a b"}, "context.encounterId") for hook in CONTEXTS),
        ("encounter-start", {"encounterId": ...}, "context.encounterId"),
        ("encounter-discharge", {"encounterId": ...}, "context.encounterId"),
        ("order-select", {"selections": ...}, "context.selections"),
        ("order-select", {"selections": []}, "context.selections"),
        ("order-select", {"selections": ["ServiceRequest/o9"]}, "context.selections[0]"),
        ("order-select", {"selections": ["ServiceRequest/o1", 5]}, "context.selections[1]"),
        ("order-select", {"draftOrders": ...}, "context.draftOrders"),
        ("order-sign", {"draftOrders": ...}, "context.draftOrders"),
        ("order-sign", {"draftOrders": {"resourceType": "List"}}, "context.draftOrders"),
        ("order-sign", {"draftOrders": {"resourceType": "Bundle", "entry": 5}}, "context.draftOrders"),
        (
            "order-sign",
            {"draftOrders": {"resourceType": "Bundle", "entry": [{}]}},
            "context.draftOrders.entry[0].resource",
        ),
        (
            "order-sign",
            {"draftOrders": drafts(subject={"reference": "Patient/p2"})},
            "context.draftOrders.entry[0].resource.subject",
        ),
        (
            "order-sign",
            {"draftOrders": drafts(subject={"reference": "https://ehr.example.org/fhir/Patient/p2"})},
            "context.draftOrders.entry[0].resource.subject",
        ),
        (
            "order-sign",
            {"draftOrders": drafts(subject={"reference": "Patient/p2/_history/1"})},
            "context.draftOrders.entry[0].resource.subject",
        ),
        (
            "order-sign",
            {"draftOrders": drafts(subject=..., patient={"reference": "Patient/"})},
            "context.draftOrders.entry[0].resource.patient",
        ),
        (
            "appointment-book",
            {"appointments": booked({"reference": "Location/1"}, {"reference": "Patient/p2"})},
            "context.appointments.entry[0].resource.participant",
        ),
        ("appointment-book", {"appointments": ...}, "context.appointments"),
        ("appointment-book", {"appointments": []}, "context.appointments"),
    ],
)
def test_what_is_wrong_is_named(hook: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_context(changed(hook, **changes), hook=hook)
    assert caught.value.expression == field


@pytest.mark.parametrize(
    "reference",
    [
        "Patient/p1",
        "Patient/p1/_history/2",
        "https://ehr.example.org/fhir/Patient/p1",
        "https://ehr.example.org/fhir/Patient/p1/_history/2",
        "#contained",
        "urn:uuid:1",
    ],
)
def test_an_order_about_this_patient_or_about_nobody_nameable_is_taken(reference: str) -> None:
    context = changed("order-sign", draftOrders=drafts(subject={"reference": reference}))
    assert len(parse_context(context, hook="order-sign").orders) == 1


@pytest.mark.parametrize(
    "appointments",
    [
        booked({"reference": "Patient/p1"}),
        booked({"reference": "https://ehr.example.org/fhir/Patient/p1"}, {"reference": "Practitioner/1"}),
        booked({"reference": "Patient/child"}, {"reference": "Patient/p1"}),
        booked({"reference": "Location/1"}),
        booked({"display": "somebody"}, None, 5),
        {
            "resourceType": "Bundle",
            "entry": [{"resource": {"resourceType": "Appointment", "participant": 5}}],
        },
    ],
)
def test_an_appointment_of_this_patient_or_of_nobody_nameable_is_taken(appointments: Any) -> None:
    context = changed("appointment-book", appointments=appointments)
    assert parse_context(context, hook="appointment-book").patient_id == "p1"
