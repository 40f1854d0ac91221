"""The smallest sound resource of each type, to be changed by the test that uses it."""

from __future__ import annotations

from typing import Any

from ehr import PatientRecord, ReadingTally, SetAside, read_resources

Json = dict[str, Any]
SUBJECT = {"reference": "Patient/p1"}
WHEN = "2020-05-03T10:00:00Z"


def coded(code: str, system: str = "http://loinc.org", display: str = "") -> Json:
    coding = {"system": system, "code": code}
    return {"coding": [coding | ({"display": display} if display else {})]}


def patient(**changes: Any) -> Json:
    return {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1950-02-03"} | changes


def observation(loinc: str = "2160-0", value: Any = 1.0, unit: str = "mg/dL", **changes: Any) -> Json:
    return {
        "resourceType": "Observation",
        "id": "o1",
        "status": "final",
        "code": coded(loinc),
        "subject": SUBJECT,
        "effectiveDateTime": WHEN,
        "valueQuantity": {"value": value, "unit": unit, "code": unit, "system": "http://unitsofmeasure.org"},
    } | changes


def encounter(code: str = "IMP", **changes: Any) -> Json:
    return {
        "resourceType": "Encounter",
        "id": "e1",
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": code},
        "subject": SUBJECT,
        "period": {"start": WHEN, "end": "2020-05-09T10:00:00Z"},
    } | changes


def resource(kind: str, **elements: Any) -> Json:
    return {"resourceType": kind, "id": "r1", "subject": SUBJECT} | elements


def read_one(*resources: Json) -> PatientRecord:
    """The record of patient p1 made from `resources`."""
    records = {record.patient.resource_id: record for record in read_all(*resources)}
    return records["p1"]


def read_all(*resources: Json, tally: ReadingTally | None = None) -> list[PatientRecord]:
    return read_resources([(f"test#{i}", item) for i, item in enumerate(resources)], tally=tally)


def reasons(*resources: Json) -> list[str]:
    """Why something was set aside."""
    return [item.reason for item in all_set_aside(*resources)]


def all_set_aside(*resources: Json) -> list[SetAside]:
    return [item for record in read_all(*resources) for item in record.set_aside]
