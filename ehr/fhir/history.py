"""Conditions, medications, procedures, allergies and family history.

https://hl7.org/fhir/R4/ condition, medicationrequest, medicationstatement, medicationadministration,
procedure, allergyintolerance and familymemberhistory. What did not happen (not-done, not-taken, doNotPerform)
or is refuted is retracted, so that it never counts as having happened.
"""

from __future__ import annotations

from datetime import datetime

from ehr.codes import OtherCode
from ehr.errors import BadResource
from ehr.fhir.dates import Span, end_of, get_choice, get_last_updated, get_period, get_span, latest, start_of
from ehr.fhir.elements import (
    MAX_CODE,
    Concept,
    Json,
    get_bool,
    get_concept,
    get_list,
    get_number,
    get_object,
    get_text,
)
from ehr.fhir.observations import unit_of
from ehr.fhir.scope import reference_of
from ehr.fhir.subject import About, Retraction, Unused, Waiting
from ehr.records import (
    AllergyRecord,
    ConditionRecord,
    Fact,
    FamilyHistoryRecord,
    MedicationRecord,
    ProcedureRecord,
    is_over,
)

STILL_TAKEN = frozenset({"active", "intended", "on-hold"})  # of a MedicationStatement
_YEARS = {"a": 1.0, "mo": 1 / 12, "wk": 7 / 365.25, "d": 1 / 365.25}  # UCUM codes that Age allows


def _required_code(about: About, name: str = "code") -> Concept:
    concept = get_concept(about.resource, name, about.kind)
    if concept is None:
        raise BadResource(f"{about.kind}.{name} has neither coding nor text")
    return concept


def read_condition(about: About) -> list[Fact]:
    """Read a Condition. Known from the later of onset and recordedDate."""
    verification = about.concept_status("verificationStatus")
    concept = _required_code(about)
    onset, _ = get_choice(about.resource, "onset", "Condition")
    abated, ended = get_choice(about.resource, "abatement", "Condition")
    abated, clinical = ended or abated, about.concept_status("clinicalStatus")
    return [
        ConditionRecord(
            resource_type="Condition",
            resource_id=about.identity,
            available_at=latest(onset, get_span(about.resource, "recordedDate", "Condition")),
            code=concept.code,
            also=concept.also,
            clinical_status=clinical,
            verification_status=verification,
            onset_at=start_of(onset),
            abated_at=end_of(abated),
            over_at=_over_at(about, is_over(clinical) and abated is None),
        )
    ]


def read_medication(about: About) -> list[Fact]:
    """Read a MedicationRequest, MedicationStatement or MedicationAdministration."""
    resource, kind = about.resource, about.kind
    status = about.status(retracted=frozenset({"not-taken", "not-done"}))
    if get_bool(resource, "doNotPerform", kind):
        raise Retraction
    concept = _drug(about)
    start: Span | None
    end: Span | None
    if kind == "MedicationRequest":
        known = get_span(resource, "authoredOn", kind)
        start, end = _dosage_period(resource)
        available = latest(known) if known else latest(start)
        start = start or known
    else:
        start, end = get_choice(resource, "effective", kind)
        if end is start and status in STILL_TAKEN:
            end = None  # a lone effectiveDateTime of what is still taken is when it began
        available = latest(start, get_span(resource, "dateAsserted", kind))
    return [
        MedicationRecord(
            resource_type=kind,
            resource_id=about.identity,
            available_at=available,
            code=concept.code,
            also=concept.also,
            status=status,
            start=start_of(start),
            end=end_of(end),
            over_at=_over_at(about, is_over(status) and end is None),
        )
    ]


def _over_at(about: About, is_undated: bool) -> datetime | None:
    return end_of(get_last_updated(about.resource, about.kind)) if is_undated else None


def _drug(about: About) -> Concept:
    """medicationCodeableConcept, else the code of the Medication referred to, else the reference's display.

    Raises Waiting when that Medication may still come.
    """
    resource, kind = about.resource, about.kind
    concept = get_concept(resource, "medicationCodeableConcept", kind)
    if concept:
        return concept
    reference = reference_of(resource, "medicationReference", kind)
    if not reference:
        raise BadResource(f"{kind}.medication[x] has neither coding, text nor reference")
    found = about.scope.find(reference, resource)
    concept = get_concept(found, "code", "Medication") if found else None
    if concept is None and found is None and not about.last_chance:
        raise Waiting
    if concept is None:
        display = get_text(get_object(resource, "medicationReference", kind) or {}, "display", kind).strip()
        if not display:
            raise BadResource(f"{kind}.medicationReference: no coded Medication of that id was read")
        concept = Concept(OtherCode(display[:MAX_CODE], display[:300]), (), display)
    return concept


def _dosage_period(resource: Json) -> tuple[Span | None, Span | None]:
    for dosage in get_list(resource, "dosageInstruction", "MedicationRequest"):
        timing = get_object(dosage, "timing", "MedicationRequest.dosageInstruction") or {}
        repeat = get_object(timing, "repeat", "MedicationRequest.dosageInstruction.timing") or {}
        start, end = get_period(repeat, "boundsPeriod", "MedicationRequest.dosageInstruction.timing.repeat")
        if start or end:
            return start, end
    return None, None


def read_procedure(about: About) -> list[Fact]:
    """Read a Procedure. Known when it was over."""
    status = about.status(retracted=frozenset({"not-done"}))
    concept = _required_code(about)
    start, end = get_choice(about.resource, "performed", "Procedure")
    return [
        ProcedureRecord(
            resource_type="Procedure",
            resource_id=about.identity,
            available_at=latest(start, end),
            code=concept.code,
            also=concept.also,
            status=status,
            performed_at=start_of(start or end),
        )
    ]


def read_allergy(about: About) -> list[Fact]:
    """Read an AllergyIntolerance; its code, or the substance of its first reaction."""
    verification, clinical = (about.concept_status(f"{one}Status") for one in ("verification", "clinical"))
    concept = get_concept(about.resource, "code", "AllergyIntolerance")
    if concept is None:
        for reaction in get_list(about.resource, "reaction", "AllergyIntolerance"):
            concept = concept or get_concept(reaction, "substance", "AllergyIntolerance.reaction")
    if concept is None:
        raise BadResource("AllergyIntolerance has neither code nor reaction.substance")
    onset, _ = get_choice(about.resource, "onset", "AllergyIntolerance")
    return [
        AllergyRecord(
            resource_type="AllergyIntolerance",
            resource_id=about.identity,
            available_at=latest(onset, get_span(about.resource, "recordedDate", "AllergyIntolerance")),
            code=concept.code,
            criticality=get_text(about.resource, "criticality", "AllergyIntolerance")[:30],
            clinical_status=clinical,
            verification_status=verification,
            over_at=_over_at(about, is_over(clinical)),
        )
    ]


def read_family_history(about: About) -> list[Fact]:
    """Read a FamilyMemberHistory: a record per condition of the relative, `part` being its code."""
    about.status(retracted=frozenset({"health-unknown"}))
    kind = "FamilyMemberHistory"
    relationship = _required_code(about, "relationship")
    available = latest(get_span(about.resource, "date", kind))
    facts: list[Fact] = []
    taken: set[str] = set()
    for item in get_list(about.resource, "condition", kind):
        concept = get_concept(item, "code", f"{kind}.condition")
        if concept is None:
            about.keep_apart(f"{kind}.condition.code has neither coding nor text")
            continue
        part, count = concept.code.code[:70], 1
        while part in taken:
            count += 1
            part = f"{concept.code.code[:70]}#{count}"
        taken.add(part)
        facts.append(
            FamilyHistoryRecord(
                resource_type=kind,
                resource_id=about.identity,
                part=part,
                available_at=available,
                relationship=relationship.code,
                condition=concept.code,
                onset_age=_age_in_years(item, f"{kind}.condition"),
            )
        )
    if not facts and not about.set_aside:
        raise Unused("FamilyMemberHistory (no condition)")
    return facts


def _age_in_years(item: Json, element: str) -> float | None:
    age = get_object(item, "onsetAge", element)
    if age is None:
        between = get_object(item, "onsetRange", element)
        age = get_object(between, "low", f"{element}.onsetRange") if between else None
    if age is None:
        return None
    number = get_number(age, "value", f"{element}.onsetAge")
    factor = _YEARS.get(unit_of(age, f"{element}.onsetAge"))
    return None if number is None or factor is None else number * factor
