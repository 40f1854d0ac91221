"""Orders: which imaging study an order asks for, and orders that would bring what a score is missing.

An order is recognised by its code (SNOMED CT, CPT), else by the words it is written in. A study that we do
not know still counts as imaging when its category says so. Other orders are none of our business.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cds import catalogue
from cds.hooks.contexts import Context
from cds.hooks.replies import Action, Coding, Suggestion
from cds.hooks.templates import VITAL_SIGNS
from cds.patients.models import Patient

SNOMED, CPT = catalogue.SNOMED, "http://www.ama-assn.org/go/cpt"
IMAGING = Coding("363679005", SNOMED, "Imaging")
LABORATORY = Coding("108252007", SNOMED, "Laboratory procedure")
CATEGORIES = frozenset({"363679005", "RAD", "IMG", "imaging", "CUS", "RUS", "CT", "NMR", "RX", "XRC"})
MAX_SUGGESTIONS = 3
ORDER_TYPES = frozenset({"ServiceRequest", "ProcedureRequest"})


@dataclass(frozen=True, slots=True)
class Imaging:
    """A kind of imaging study a model may read.

    modality  fusion's name of the input it becomes; "" for imaging that no model of ours reads
    dicom     DICOM Modality (0008,0060) of its Series
    order     how it is ordered, for a suggestion; None: never suggested (CT irradiates)
    """

    modality: str
    label: str
    codes: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()  # all must be found in how it is written
    dicom: tuple[str, ...] = ()
    order: Coding | None = None


CHEST_WORDS = r"chest|thora[xc]|lung"
KINDS: tuple[Imaging, ...] = (
    Imaging(
        "image",
        "Chest radiograph",
        frozenset({"399208008", "71045", "71046", "71047", "71048"}),
        (r"x-? ?ray|radiograph|\bc?xr\b", CHEST_WORDS + r"|\bcxr\b"),
        ("CR", "DX", "DR", "RG"),
        Coding("399208008", SNOMED, "Plain chest X-ray"),
    ),
    Imaging(
        "cine",
        "Echocardiogram",
        frozenset({"40701008", "433236007", "93303", "93306", "93307", "93308"}),
        (r"echocardio|cardiac ultraso|\btte\b|heart ultraso",),
        ("US",),
        Coding("40701008", SNOMED, "Echocardiography"),
    ),
    Imaging(
        "volume",
        "Chest CT",
        frozenset({"169069000", "71250", "71260", "71270"}),
        (r"\bct\b|computed tomography", CHEST_WORDS),
        ("CT",),
    ),
)
OTHER = Imaging("", "This imaging study")
ANY_IMAGING = re.compile(
    r"x-? ?ray|radiograph|\b(xr|ct|mri?|pet|us)\b|tomogra|magnetic resonance|ultraso|echocardio|angiogra"
    r"|scintigra",
    re.IGNORECASE,
)


def imaging_ordered(orders: Sequence[Mapping[str, Any]]) -> list[Imaging]:
    """The imaging studies among draft orders, each kind once."""
    found = [recognise(order) for order in orders if order.get("resourceType") in ORDER_TYPES]
    return list(dict.fromkeys(one for one in found if one is not None))


def recognise(order: Mapping[str, Any]) -> Imaging | None:
    """What an order asks for; None when it is no imaging."""
    codes, written = _said(order.get("code"))
    for kind in KINDS:
        if codes & kind.codes:
            return kind
    for kind in KINDS:
        if all(re.search(word, written, re.IGNORECASE) for word in kind.words):
            return kind
    categories = order.get("category")
    category = {
        code for one in (categories if isinstance(categories, list) else []) for code in _said(one)[0]
    }
    return OTHER if category & CATEGORIES or ANY_IMAGING.search(written) else None


def suggest(
    missing: Sequence[str],
    missing_fields: Sequence[str],
    *,
    patient: Patient,
    context: Context,
    because: str,
    now: datetime,
) -> tuple[Suggestion, ...]:
    """Orders for what a score did without: imaging first, then laboratory results; not what is being ordered.

    Vital signs are measured, not ordered; CT is left to people.
    """
    drafted = {one.modality for one in imaging_ordered(context.drafts)}
    codes = {code for order in context.drafts for code in _said(order.get("code"))[0]}
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
                    _service_request(code, category, patient, context, because, now),
                ),
            ),
        )
        for label, code, category in wanted[:MAX_SUGGESTIONS]
    )


def _service_request(
    code: Coding, category: Coding, patient: Patient, context: Context, because: str, now: datetime
) -> dict[str, Any]:
    """A whole FHIR R4 ServiceRequest, as a draft to be signed."""
    request: dict[str, Any] = {
        "resourceType": "ServiceRequest",
        "status": "draft",
        "intent": "order",
        "category": [{"coding": [category.to_json()], "text": category.display}],
        "code": {"coding": [code.to_json()], "text": code.display},
        "subject": {"reference": f"Patient/{patient.resource_id}"},
        "authoredOn": now.isoformat(timespec="seconds"),
        "reasonCode": [{"text": because}],
    }
    if context.encounter_id:
        request["encounter"] = {"reference": f"Encounter/{context.encounter_id}"}
    if context.role in ("Practitioner", "PractitionerRole"):
        request["requester"] = {"reference": context.user}
    return request


def _said(concept: Any) -> tuple[set[str], str]:
    """The codes of a CodeableConcept, and its words."""
    if not isinstance(concept, Mapping):
        return set(), ""
    codings = concept.get("coding")
    held = [one for one in (codings if isinstance(codings, list) else []) if isinstance(one, Mapping)]
    words = [concept.get("text"), *(one.get("display") for one in held)]
    codes = {one["code"] for one in held if isinstance(one.get("code"), str)}
    return codes, " ".join(word for word in words if isinstance(word, str))
