"""A case of the chest X-ray collection as a FHIR R4 Bundle (type collection), one patient a Bundle."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from typing import Any

from cds.collections_in.cxr_covid import DAY, MEASUREMENTS, Case, Picture

Resource = dict[str, Any]
IDENTIFIER_SYSTEM = "https://github.com/ieee8023/covid-chestxray-dataset"
SNOMED, LOINC, UCUM = "http://snomed.info/sct", "http://loinc.org", "http://unitsofmeasure.org"
CLASSES = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
CATEGORIES = "http://terminology.hl7.org/CodeSystem/observation-category"

# What the pictures were collected for. Syndromes of severity (ARDS) are outcomes, and are not told.
FINDINGS: tuple[tuple[str, str, str], ...] = (
    ("COVID-19", "840539006", "COVID-19"),
    ("SARS", "398447004", "Severe acute respiratory syndrome"),
)
OTHER_PNEUMONIA = ("233604007", "Pneumonia")
NO_PNEUMONIA = frozenset({"", "No Finding", "ARDS"})


def build_bundle(case: Case) -> Resource:
    """Patient, stays, observations, condition and note of a case."""
    resources = [_patient(case), *_encounters(case), *_observations(case), *_condition(case), *_note(case)]
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"fullUrl": f"{one['resourceType']}/{one['id']}", "resource": one} for one in resources],
    }


def _patient(case: Case) -> Resource:
    patient: Resource = {
        "resourceType": "Patient",
        "id": case.patient_id,
        "identifier": [{"system": IDENTIFIER_SYSTEM, "value": case.patient_id}],
        "name": [{"family": case.patient_id}],
        "gender": case.sex,
    }
    if case.age is not None:
        patient["birthDate"] = (case.first_at - timedelta(days=round(case.age * 365.25))).date().isoformat()
    if case.survived is not None:
        patient["deceasedBoolean"] = not case.survived
    return patient


def _encounters(case: Case) -> list[Resource]:
    stay = _encounter(case, "stay", case.first_at - timedelta(hours=1))
    if case.went_icu is None:
        stay["status"] = "unknown"
    else:
        stay["period"]["end"] = _time(case.last_at + DAY)
    found = [stay]
    for number, intensive in enumerate(case.intensive, 1):
        one = _encounter(case, f"icu-{number}", intensive.start)
        one["partOf"] = {"reference": f"Encounter/{stay['id']}"}
        one["type"] = [
            {
                "coding": [
                    {"system": SNOMED, "code": "305351004", "display": "Admission to intensive care unit"}
                ]
            }
        ]
        end = intensive.end or case.last_at + DAY
        if intensive.start is not None:
            one["period"]["end"] = _time(end)
        found.append(one)
    return found


def _encounter(case: Case, name: str, start: datetime | None) -> Resource:
    encounter: Resource = {
        "resourceType": "Encounter",
        "id": f"{case.patient_id}-{name}",
        "status": "finished",
        "class": {"system": CLASSES, "code": "IMP", "display": "inpatient encounter"},
        "subject": _subject(case),
    }
    if start is not None:
        encounter["period"] = {"start": _time(start)}
    return encounter


def _observations(case: Case) -> list[Resource]:
    return [
        _observation(case, picture, name, value)
        for picture in case.pictures
        if picture.at is not None
        for name, value in picture.values.items()
    ]


def _observation(case: Case, picture: Picture, name: str, value: float) -> Resource:
    code, display, unit, _, category = MEASUREMENTS[name]
    return {
        "resourceType": "Observation",
        "id": f"{case.patient_id}-{picture.number}-{code}",
        "status": "final",
        "category": [{"coding": [{"system": CATEGORIES, "code": category}]}],
        "code": {"coding": [{"system": LOINC, "code": code, "display": display}]},
        "subject": _subject(case),
        "effectiveDateTime": _time(picture.at),
        "valueQuantity": {"value": value, "unit": unit, "system": UCUM, "code": unit},
    }


def _condition(case: Case) -> list[Resource]:
    if case.finding in NO_PNEUMONIA:
        return []
    code, display = next(
        ((code, display) for word, code, display in FINDINGS if case.finding.startswith(word)),
        OTHER_PNEUMONIA,
    )
    return [
        {
            "resourceType": "Condition",
            "id": f"{case.patient_id}-finding",
            "clinicalStatus": _coded("http://terminology.hl7.org/CodeSystem/condition-clinical", "active"),
            "verificationStatus": _coded(
                "http://terminology.hl7.org/CodeSystem/condition-ver-status", "confirmed"
            ),
            "code": {"coding": [{"system": SNOMED, "code": code, "display": display}]},
            "subject": _subject(case),
            "recordedDate": _time(case.first_at),
        }
    ]


def _note(case: Case) -> list[Resource]:
    if not case.note:
        return []
    return [
        {
            "resourceType": "DocumentReference",
            "id": f"{case.patient_id}-note",
            "status": "current",
            "type": {
                "coding": [{"system": LOINC, "code": "34109-9", "display": "Note"}],
                "text": "Clinical notes",
            },
            "subject": _subject(case),
            "date": _time(case.last_at + DAY),  # a case report is written when the case is over
            "content": [
                {
                    "attachment": {
                        "contentType": "text/plain; charset=utf-8",
                        "title": "Clinical notes (sentences on outcome and treatment removed)",
                        "data": base64.b64encode(case.note.encode()).decode(),
                    }
                }
            ],
        }
    ]


def _subject(case: Case) -> Resource:
    return {"reference": f"Patient/{case.patient_id}"}


def _coded(system: str, code: str) -> Resource:
    return {"coding": [{"system": system, "code": code}]}


def _time(moment: datetime | None) -> str:
    if moment is None:
        raise ValueError("only dated things become resources with a time")
    return moment.isoformat(timespec="seconds")
