"""FHIR Encounter → EncounterRecords, and how an intensive care stay is recognised.

R4 has no class for intensive care (v3 ActEncounterCode ends at "inpatient acute"), so hospitals say it in one
of three ways, tried in this order:

1. the Encounter's class, type or serviceType is one of `INTENSIVE_CARE_CODES`, or its text names intensive
   care: the whole Encounter is an intensive care stay;
2. Encounter.location names an intensive care unit (code of the Location, or text) with a period: the stay is
   that period, a record of its own with part "icu-<n>" beside the Encounter;
3. as 2 but without a period, and no other location: the whole Encounter is an intensive care stay.
"""

from __future__ import annotations

import re
from datetime import datetime

from ehr.fhir.dates import end_of, get_period, latest, start_of
from ehr.fhir.elements import (
    Concept,
    Json,
    get_concept,
    get_concepts,
    get_list,
    get_object,
    get_text,
    read_coding,
)
from ehr.fhir.scope import reference_of
from ehr.fhir.subject import About
from ehr.records import EncounterKind, EncounterRecord, Fact

_SNOMED, _ROLE = "http://snomed.info/sct", "http://terminology.hl7.org/CodeSystem/v3-RoleCode"
INTENSIVE_CARE_CODES = frozenset(
    [f"{_SNOMED}|{code}" for code in (
        "305351004",  # Admission to intensive care unit (procedure)
        "309904001",  # Intensive care unit (environment)
        "309905000",  # Adult intensive care unit
        "309910001",  # Paediatric intensive care unit
        "405269005",  # Neonatal intensive care unit
        "418433008",  # Surgical intensive care unit
        "441994008",  # Medical intensive care unit
        "408478003",  # Critical care medicine (specialty)
    )]
    + [f"{_ROLE}|{code}" for code in ("ICU", "CCU", "PEDICU", "PEDNICU")]
)  # fmt: skip
_NAMES_ICU = re.compile(
    r"\b(icu|micu|sicu|nicu|picu|cvicu|ccu|itu|intensive[ -]care|critical[ -]care|intensivstation|"
    r"r[ée]animation|cuidados intensivos|terapia intensiva)\b",
    re.IGNORECASE,
)
_NOT_ICU = re.compile(
    r"\b(post|after|follow[ -]?up|outpatient|clinic|step[ -]?down|intermediate|discharge)\b", re.IGNORECASE
)

_KINDS = {
    "IMP": EncounterKind.INPATIENT, "ACUTE": EncounterKind.INPATIENT, "NONAC": EncounterKind.INPATIENT,
    "OBSENC": EncounterKind.INPATIENT, "SS": EncounterKind.INPATIENT, "inpatient": EncounterKind.INPATIENT,
    "EMER": EncounterKind.EMERGENCY, "emergency": EncounterKind.EMERGENCY,
    "AMB": EncounterKind.AMBULATORY, "HH": EncounterKind.AMBULATORY, "VR": EncounterKind.AMBULATORY,
    "FLD": EncounterKind.AMBULATORY, "outpatient": EncounterKind.AMBULATORY,
    "ambulatory": EncounterKind.AMBULATORY,
}  # fmt: skip


def names_intensive_care(text: str) -> bool:
    """Whether a text names an intensive care unit, and not what comes after one."""
    return bool(_NAMES_ICU.search(text)) and not _NOT_ICU.search(text)


def read_encounter(about: About) -> list[Fact]:
    """Read an Encounter: itself, and one record per dated stay on an intensive care unit."""
    resource = about.resource
    status = about.status()
    start, end = get_period(resource, "period", "Encounter")
    kind = _kind(resource)
    locations = get_list(resource, "location", "Encounter")
    units = [(index, item) for index, item in enumerate(locations, 1) if _is_intensive(about, item)]
    dated = [(index, item) for index, item in units if get_object(item, "period", "Encounter.location")]
    if units and not dated and len(locations) == 1:
        kind = EncounterKind.INTENSIVE_CARE
    place, located_at = _last_place(about, locations)
    reasons = get_concepts(resource, "reasonCode", "Encounter")
    stay = EncounterRecord(
        resource_type="Encounter",
        resource_id=about.identity,
        available_at=latest(start),
        status=status,
        kind=kind,
        start=start_of(start),
        end=end_of(end),
        part_of=about.id_of("partOf"),
        location=place,
        located_at=located_at,
        reason=reasons[0].code if reasons else None,
    )
    facts: list[Fact] = [stay]
    if kind is EncounterKind.INTENSIVE_CARE:
        return facts
    for index, item in dated:
        entered, left = get_period(item, "period", "Encounter.location")
        facts.append(
            EncounterRecord(
                resource_type="Encounter",
                resource_id=about.identity,
                part=f"icu-{index}",
                available_at=latest(entered),
                status=status,
                kind=EncounterKind.INTENSIVE_CARE,
                start=start_of(entered),
                end=end_of(left) or end_of(end),
                part_of=about.identity,
                location=_place_text(about, item)[:200],
                located_at=start_of(entered),
            )
        )
    return facts


def _kind(resource: Json) -> EncounterKind:
    concepts = [*get_concepts(resource, "type", "Encounter")]
    service = get_concept(resource, "serviceType", "Encounter")
    if service:
        concepts.append(service)
    codes = [read_coding(item, "Encounter.class") for item in get_list(resource, "class", "Encounter")]
    classes = [code for code in codes if code]
    concepts.extend(Concept(code, (), code.display) for code in classes)
    if any(_concept_is_intensive(concept) for concept in concepts):
        return EncounterKind.INTENSIVE_CARE
    return next((_KINDS[code.code] for code in classes if code.code in _KINDS), EncounterKind.OTHER)


def _concept_is_intensive(concept: Concept) -> bool:
    return concept.has(INTENSIVE_CARE_CODES) or any(
        names_intensive_care(text) for text in (concept.text, *(code.display for code in concept.codes))
    )


def _is_intensive(about: About, item: Json) -> bool:
    place = about.scope.find(reference_of(item, "location", "Encounter.location"), about.resource)
    if place and any(_concept_is_intensive(concept) for concept in get_concepts(place, "type", "Location")):
        return True
    return names_intensive_care(_place_text(about, item))


def _last_place(about: About, locations: list[Json]) -> tuple[str, datetime | None]:
    """Where the patient came to last, and from when that is known; a place that is only planned is none."""
    found: list[tuple[datetime | None, str]] = []
    for item in locations:
        if get_text(item, "status", "Encounter.location") not in ("planned", "reserved"):
            entered, _ = get_period(item, "period", "Encounter.location")
            found.append((latest(entered), _place_text(about, item)[:200]))
    if not found:
        return "", None
    # the later listed of two that began together; one without a period stands where it is listed
    dated = [moment for moment, _ in found if moment is not None]
    since, place = found[-1]
    if since is not None:
        since, place = [one for one in found if one[0] == max(dated)][-1]
    return place, since


def _place_text(about: About, item: Json) -> str:
    reference = get_object(item, "location", "Encounter.location") or {}
    display = get_text(reference, "display", "Encounter.location.location")
    if display:
        return display
    place = about.scope.find(get_text(reference, "reference", "Encounter.location.location"), about.resource)
    return get_text(place, "name", "Location") if place else ""
