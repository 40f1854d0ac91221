"""The hooks we answer, and what the context of each must hold (INTEROP 10).

patient-view                         userId, patientId, encounterId?
encounter-start, encounter-discharge userId, patientId, encounterId
order-select                         userId, patientId, encounterId?, selections[], draftOrders
order-sign                           userId, patientId, encounterId?, draftOrders
appointment-book                     userId, patientId, encounterId?, appointments
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cds.hooks import fields
from cds.hooks.fields import BadRequest

FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
USER = re.compile(r"(Practitioner|PractitionerRole|Patient|RelatedPerson)/[A-Za-z0-9\-.]{1,64}")
# Patient/[id], absolute or relative, with a version or without (FHIR R4 §2.3)
_PATIENT = re.compile(r"(?:.*/)?Patient/([^/\s?#]+)(?:/_history/[^/\s?#]+)?", re.DOTALL)
CLINICIANS = frozenset({"Practitioner", "PractitionerRole"})  # for whom cards are
MAX_ORDERS = 200  # or appointments
NOUNS = {"draftOrders": "an order", "appointments": "an appointment"}

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
        _about(sent, "appointments", patient_id)
    return Context(sent["userId"], patient_id, sent.get("encounterId") or "", tuple(orders), tuple(drafts))


def _about(sent: Mapping[str, Any], name: str, patient_id: str) -> list[dict[str, Any]]:
    """The resources of a Bundle of orders or appointments; one about another patient is refused."""
    resources = fields.bundle(sent, name, within="context")
    if len(resources) > MAX_ORDERS:
        raise BadRequest(f"at most {MAX_ORDERS} entries", expression=f"context.{name}", code="too-long")
    for place, resource in enumerate(resources):
        for role, references in _patients_of(resource):
            if references and not any(_is_of(one, patient_id) for one in references):
                raise BadRequest(
                    f"{NOUNS[name]} about another patient than context.patientId",
                    expression=f"context.{name}.entry[{place}].resource.{role}",
                )
    return resources


def _patients_of(resource: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The elements that say whom a resource is about, and the Patients they name; one of them must be ours.

    An appointment may be of several patients, as a mother's and her child's; an order is of one.
    """
    for role in ("subject", "patient"):
        yield role, _named(resource.get(role))
    if resource["resourceType"] == "Appointment":
        held = resource.get("participant")
        taking_part = [one for one in (held if isinstance(held, list) else []) if isinstance(one, dict)]
        yield "participant", [name for one in taking_part for name in _named(one.get("actor"))]


def _named(reference: Any) -> list[str]:
    """What a Reference says, when that names a Patient."""
    said = reference.get("reference") if isinstance(reference, dict) else None
    return [said] if isinstance(said, str) and "Patient/" in said else []


def _is_of(reference: str, patient_id: str) -> bool:
    found = _PATIENT.fullmatch(reference)
    return found is not None and found[1] == patient_id


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
