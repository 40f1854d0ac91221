"""Orders that would bring what a score is missing; which orders are imaging says `imaging_orders`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from cds import catalogue
from cds.hooks.contexts import Context
from cds.hooks.imaging_orders import KINDS, Imaging, imaging_named, imaging_ordered
from cds.hooks.replies import Action, Coding, Suggestion
from cds.hooks.templates import VITAL_SIGNS

IMAGING = Coding("363679005", catalogue.SNOMED, "Imaging")
LABORATORY = Coding("108252007", catalogue.SNOMED, "Laboratory procedure")
MAX_SUGGESTIONS = 3
__all__ = ["KINDS", "Imaging", "imaging_named", "imaging_ordered", "suggest"]


def suggest(
    missing: Sequence[str],
    missing_fields: Sequence[str],
    *,
    context: Context,
    because: str,
    now: datetime,
) -> tuple[Suggestion, ...]:
    """Orders for what a score did without: imaging first, then laboratory results; not what is being
    ordered already, and not what an order forbids.

    Vital signs are measured, not ordered; CT is left to people.
    """
    drafted = {one.modality for one in imaging_named(context.drafts)}
    codes = {code for order in context.drafts for code in _codes_of(order.get("code"))}
    wanted: list[tuple[str, Coding, Coding]] = [
        (kind.label, kind.order, IMAGING)
        for kind in KINDS
        if kind.order is not None and kind.modality in missing and kind.modality not in drafted
    ]
    for name in missing_fields:
        measured = catalogue.find_measurement(name)
        if measured is None or name in VITAL_SIGNS or codes & set(measured.loinc):
            continue
        wanted.append(
            (measured.label, Coding(measured.loinc[0], catalogue.LOINC, measured.label), LABORATORY)
        )
    return tuple(
        Suggestion(
            label=f"Order: {label}",
            uuid=uuid.uuid4(),
            actions=(
                Action(
                    "create",
                    f"Order {label}, which the score is missing",
                    _service_request(code, category, context, because, now),
                ),
            ),
        )
        for label, code, category in wanted[:MAX_SUGGESTIONS]
    )


def _service_request(
    code: Coding, category: Coding, context: Context, because: str, now: datetime
) -> dict[str, Any]:
    """A whole FHIR R4 ServiceRequest, as a draft to be signed."""
    request: dict[str, Any] = {
        "resourceType": "ServiceRequest",
        "status": "draft",
        "intent": "order",
        "category": [_concept(category)],
        "code": _concept(code),
        # as the EHR names them in this call: it may still know them by an id that was merged into another
        "subject": {"reference": f"Patient/{context.patient_id}"},
        "authoredOn": now.isoformat(timespec="seconds"),
        "reasonCode": [{"text": because}],
    }
    if context.encounter_id:
        request["encounter"] = {"reference": f"Encounter/{context.encounter_id}"}
    if context.role in ("Practitioner", "PractitionerRole"):
        request["requester"] = {"reference": context.user}
    return request


@lru_cache(maxsize=256)
def _concept(code: Coding) -> dict[str, Any]:
    """A CodeableConcept, the same in every order of it; nobody changes it."""
    return {"coding": [code.to_json()], "text": code.display}


def _codes_of(concept: Any) -> set[str]:
    """The codes of a CodeableConcept, whatever their systems."""
    codings = concept.get("coding") if isinstance(concept, Mapping) else None
    held = [one for one in (codings if isinstance(codings, list) else []) if isinstance(one, Mapping)]
    return {one["code"] for one in held if isinstance(one.get("code"), str)}
