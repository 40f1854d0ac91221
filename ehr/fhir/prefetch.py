"""CDS Hooks prefetch → the record of the one patient it must be about.

CDS Hooks 2.0.1 "Prefetch"; per key (INTEROP 7): a resource, a Bundle, `null` (there is no data; nothing to
say), or an OperationOutcome (the client failed; set aside, so that "unknown" is never taken for "none").
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from ehr.errors import BadResource
from ehr.fhir.elements import Json, get_list, get_text
from ehr.fhir.reading import read_resources
from ehr.fhir.resources import ReadingTally, walk
from ehr.fhir.scope import identify
from ehr.records import PatientIdentity, PatientRecord, SetAside


def read_prefetch(
    prefetch: Mapping[str, Any],
    *,
    patient_id: str,
    tally: ReadingTally | None = None,
    unread: Container[int] = (),
) -> PatientRecord:
    """Read what the client prefetched.

    prefetch    template key → resource, Bundle, OperationOutcome or None
    patient_id  context.patientId
    unread      `Parts.unread`: resources that were read before and say nothing new
    returns     the patient's record, what names nobody being set aside in it; a stub identity when the
                Patient resource was not among it. A Bundle with further pages is read as far as it goes,
                and that is said in `set_aside`.
    raises      BadResource: not an object, or a resource about another patient than `patient_id`
    """
    if not isinstance(prefetch, Mapping):
        raise BadResource("prefetch must be an object")
    if not patient_id:
        raise BadResource("context.patientId is empty")
    resources: list[tuple[str, Json]] = []
    notes: list[SetAside] = []
    for key, value in prefetch.items():
        where = f"prefetch.{key}"
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise BadResource(f"{where} must be a FHIR resource or null")
        if value.get("resourceType") == "OperationOutcome":
            notes.append(SetAside(where, "OperationOutcome", "", f"the client failed: {outcome_text(value)}"))
            continue
        if value.get("resourceType") == "Bundle" and _has_next(value):
            notes.append(SetAside(where, "Bundle", "", "further pages (link next) were not prefetched"))
        _check_patients(value, patient_id, where)
        resources.append((where, value))
    found = PatientRecord(patient=PatientIdentity(resource_id=patient_id, is_stub=True))
    for record in read_resources(resources, tally=tally, unread=unread):
        if record.patient.resource_id == patient_id:
            found = record
        elif record.patient.resource_id:
            raise BadResource("prefetch holds a resource of another patient than context.patientId")
        else:
            notes.extend(record.set_aside)
    return replace(found, set_aside=(*found.set_aside, *notes))


def outcome_text(outcome: Json) -> str:
    """What an OperationOutcome says: code and text of its first issues, at most 300 characters."""
    said = []
    try:
        for issue in get_list(outcome, "issue", "OperationOutcome")[:3]:
            details = issue.get("details")
            text = details.get("text") if isinstance(details, Mapping) else None
            text = text or get_text(issue, "diagnostics", "OperationOutcome.issue")
            said.append(f"{get_text(issue, 'code', 'OperationOutcome.issue')} {text}".strip())
    except BadResource:
        pass  # an outcome that is not well formed says nothing more
    return "; ".join(said)[:300] or "an OperationOutcome without an issue"


def is_failure(resource: Json) -> bool:
    """Whether a resource tells of a failure and of nothing else: an OperationOutcome, or a Bundle of such.

    A search that failed may come as a Bundle whose entries are all OperationOutcomes; were it taken for an
    empty one, "unknown" would become "none". One that only informs (no match, say) is an empty answer.
    """
    if resource.get("resourceType") == "OperationOutcome":
        return True
    entries = resource.get("entry")
    if resource.get("resourceType") != "Bundle" or not isinstance(entries, list):
        return False
    held = [entry.get("resource") if isinstance(entry, dict) else None for entry in entries]
    outcomes = [
        one for one in held if isinstance(one, dict) and one.get("resourceType") == "OperationOutcome"
    ]
    return len(outcomes) == len(entries) and not all(_is_information(one) for one in outcomes)


def _is_information(outcome: Json) -> bool:
    issues = outcome.get("issue")
    said = issues if isinstance(issues, list) else []
    return bool(said) and all(
        isinstance(one, dict) and one.get("severity") in ("information", "success") for one in said
    )


def _has_next(bundle: Json) -> bool:
    return any(link.get("relation") == "next" for link in get_list(bundle, "link", "Bundle"))


def _check_patients(value: Json, patient_id: str, where: str) -> None:
    for resource in walk(value):
        kind = resource.get("resourceType")
        if kind == "Patient" and identify(resource) != patient_id:
            raise BadResource(f"{where} is a Patient other than context.patientId")
