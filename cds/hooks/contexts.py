"""The hooks we answer, and what the context of each must hold (INTEROP 10).

patient-view                         userId, patientId, encounterId?
encounter-start, encounter-discharge userId, patientId, encounterId
order-select                         userId, patientId, encounterId?, selections[], draftOrders
order-sign                           userId, patientId, encounterId?, draftOrders
appointment-book                     userId, patientId, encounterId?, appointments
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cds.hooks import fields
from cds.hooks.fields import BadRequest

FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
USER = re.compile(r"(Practitioner|PractitionerRole|Patient|RelatedPerson)/[A-Za-z0-9\-.]{1,64}")
MAX_ORDERS = 200

HOOKS: dict[str, str] = {
    "patient-view": "when a chart is opened",
    "encounter-start": "when an encounter starts",
    "encounter-discharge": "before a patient is discharged",
    "order-select": "when an order is picked",
    "order-sign": "before orders are signed",
    "appointment-book": "when an appointment is booked",
}
WITH_ENCOUNTER = frozenset({"encounter-start", "encounter-discharge"})
WITH_ORDERS = frozenset({"order-select", "order-sign"})


@dataclass(frozen=True, slots=True)
class Context:
    """What a hook is about.

    user    [Type]/[id] of who acts in the EHR
    orders  the draft orders the hook is about: those just selected (order-select), or all (order-sign)
    drafts  all draft orders, so that nothing is suggested that is being ordered already
    """

    user: str
    patient_id: str
    encounter_id: str = ""
    orders: tuple[Mapping[str, Any], ...] = ()
    drafts: tuple[Mapping[str, Any], ...] = ()

    @property
    def role(self) -> str:
        """The FHIR type of the user."""
        return self.user.partition("/")[0]

    @property
    def roles(self) -> frozenset[str]:
        """What a hook says of who the user is: the FHIR type, and the resource itself.

        A PractitionerRole is one person in one role, so that a nurse and a physician, or one person as
        either, are told apart by it. Of a Practitioner nothing but the type is known.
        """
        return frozenset({self.role, self.user})


def parse_context(sent: Mapping[str, Any], *, hook: str) -> Context:
    """Read `context` of a hook. Raises BadRequest, naming the field."""
    for name in ("userId", "patientId"):
        fields.text(sent, name, within="context")
    if not USER.fullmatch(sent["userId"]):
        raise BadRequest("userId must be [Practitioner…]/[id]", expression="context.userId")
    if hook in WITH_ENCOUNTER:
        fields.text(sent, "encounterId", within="context")
    for name in ("patientId", "encounterId"):
        if sent.get(name) is not None and not FHIR_ID.fullmatch(fields.text(sent, name, within="context")):
            raise BadRequest(f"{name} must be a FHIR id", expression=f"context.{name}")
    patient_id = sent["patientId"]
    orders: list[dict[str, Any]] = []
    drafts: list[dict[str, Any]] = []
    if hook in WITH_ORDERS:
        drafts = _about(sent, "draftOrders", patient_id)
        orders = _selected(sent, drafts) if hook == "order-select" else drafts
    elif hook == "appointment-book":
        fields.bundle(sent, "appointments", within="context")
    return Context(sent["userId"], patient_id, sent.get("encounterId") or "", tuple(orders), tuple(drafts))


def _about(sent: Mapping[str, Any], name: str, patient_id: str) -> list[dict[str, Any]]:
    """The resources of a Bundle of orders; one about another patient is refused."""
    resources = fields.bundle(sent, name, within="context")
    if len(resources) > MAX_ORDERS:
        raise BadRequest(f"at most {MAX_ORDERS} orders", expression=f"context.{name}", code="too-long")
    for place, resource in enumerate(resources):
        for role in ("subject", "patient"):
            subject = resource.get(role)
            reference = subject.get("reference") if isinstance(subject, dict) else None
            if isinstance(reference, str) and reference.rpartition("Patient/")[1:] not in (
                ("Patient/", patient_id),
                ("", reference),
            ):
                raise BadRequest(
                    "an order about another patient than context.patientId",
                    expression=f"context.{name}.entry[{place}].resource.{role}",
                )
    return resources


def _selected(sent: Mapping[str, Any], drafts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    selections = sent.get("selections")
    if not isinstance(selections, list) or not selections:
        raise BadRequest(
            "selections lists at least one order", expression="context.selections", code="required"
        )
    held = {f"{order['resourceType']}/{order.get('id')}": order for order in drafts}
    found = []
    for place, one in enumerate(selections):
        if not isinstance(one, str) or one not in held:
            raise BadRequest(
                "a selection is [Type]/[id] of an order in draftOrders",
                expression=f"context.selections[{place}]",
            )
        found.append(held[one])
    return found
