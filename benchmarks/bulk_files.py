# ruff: noqa: E501 - resources are read by row
"""A Bulk Data export of simulated patients, of any size: one NDJSON file a type, as a server would send it.

About 100 resources a patient, 60 of them measurements; units as vendors print them, notes, coded history, a
type that Tessera does not read. Written patient by patient, so that a million resources take no memory.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import orjson

LOINC, SNOMED, UCUM = "http://loinc.org", "http://snomed.info/sct", "http://unitsofmeasure.org"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
PER_PATIENT = 100
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
# LOINC, name, unit sent, middle, spread
MEASURED = (
    ("8867-4", "Heart rate", "/min", 80.0, 12.0),
    ("9279-1", "Respiratory rate", "/min", 17.0, 3.0),
    ("59408-5", "Oxygen saturation", "%", 96.0, 2.0),
    ("8310-5", "Body temperature", "[degF]", 98.4, 0.8),
    ("2160-0", "Creatinine", "mg/dL", 1.1, 0.3),
    ("2345-7", "Glucose", "mmol/L", 5.6, 0.9),
    ("2951-2", "Sodium", "mmol/L", 139.0, 3.0),
    ("2823-3", "Potassium", "meq/L", 4.1, 0.4),
    ("718-7", "Haemoglobin", "g/L", 131.0, 12.0),
    ("6690-2", "Leukocytes", "K/uL", 8.1, 2.0),
    ("777-3", "Platelets", "10*3/uL", 240.0, 50.0),
    ("1988-5", "C reactive protein", "mg/L", 12.0, 4.0),
)
CONDITIONS = (("44054006", "Diabetes"), ("38341003", "Hypertension"), ("84114007", "Heart failure"))
DRUGS = (("860975", "Metformin"), ("314076", "Lisinopril"), ("617312", "Atorvastatin"))
NOTE = (
    "Seen on the ward round. Short of breath on exertion, no chest pain. Crackles at the left base. "
    "Continue oxygen, repeat the chest radiograph tomorrow. "
) * 3


def write_export(folder: Path, *, resources: int, seed: int = 1) -> int:
    """Write an export of about `resources` resources into `folder`; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, written = random.Random(seed), 0
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for number in range(max(1, resources // PER_PATIENT)):
            for resource in _patient(f"sim-{seed}-{number:07}", chance):
                kind = resource["resourceType"]
                if kind not in files:
                    files[kind] = stack.enter_context((folder / f"{kind}-00001.ndjson").open("wb"))
                files[kind].write(orjson.dumps(resource, option=orjson.OPT_APPEND_NEWLINE))
                written += 1
    return written


def _patient(key: str, chance: random.Random) -> Iterator[dict[str, Any]]:
    subject = {"reference": f"Patient/{key}"}
    start = BEGAN + timedelta(minutes=chance.randrange(500_000))

    def at(hours: float) -> str:
        return (start + timedelta(hours=hours)).isoformat(timespec="seconds")

    def numbered(kind: str, number: int, **rest: Any) -> dict[str, Any]:
        meta = {"versionId": "1", "lastUpdated": at(100)}
        return {"resourceType": kind, "id": f"{key}-{kind[:3].lower()}-{number}", "meta": meta, **rest}

    yield {
        "resourceType": "Patient",
        "id": key,
        "meta": {"versionId": "1", "lastUpdated": at(0)},
        "identifier": [{"system": "urn:example:mrn", "value": f"MRN-{key}"}],
        "name": [{"use": "official", "family": f"Simulated-{key}", "given": ["Patient"]}],
        "gender": chance.choice(("female", "male")),
        "birthDate": f"{chance.randrange(1930, 2005)}-{chance.randrange(1, 13):02}-15",
    }
    for number in range(4):
        yield numbered(
            "Encounter", number, status="finished", subject=subject,
            **{"class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}},
            period={"start": at(number * 30), "end": at(number * 30 + 20)},
            location=[{"location": {"display": f"Ward {chance.randrange(8)}"}}],
        )  # fmt: skip
    for number in range(60):
        code, name, unit, middle, spread = MEASURED[number % len(MEASURED)]
        yield numbered(
            "Observation", number, status="final", subject=subject, code=_concept(LOINC, code, name),
            category=[_concept("http://terminology.hl7.org/CodeSystem/observation-category", "laboratory")],
            encounter={"reference": f"Encounter/{key}-enc-{number % 4}"},
            effectiveDateTime=at(number), issued=at(number + 0.5),
            valueQuantity=_quantity(round(chance.gauss(middle, spread / 3), 2), unit),
            referenceRange=[{"low": _quantity(middle - spread, unit), "high": _quantity(middle + spread, unit)}],
        )  # fmt: skip
    for number in range(60, 68):
        yield numbered(
            "Observation", number, status="final", subject=subject,
            code=_concept(LOINC, "85354-9", "Blood pressure"), effectiveDateTime=at(number - 50),
            component=[
                {"code": _concept(LOINC, "8480-6"), "valueQuantity": _quantity(chance.randrange(95, 170), "mmHg")},
                {"code": _concept(LOINC, "8462-4"), "valueQuantity": _quantity(chance.randrange(50, 94), "mmHg")},
            ],
        )  # fmt: skip
    for number in range(6):
        code, name = chance.choice(CONDITIONS)
        yield numbered(
            "Condition", number, subject=subject, code=_concept(SNOMED, code, name), recordedDate=at(number),
            clinicalStatus=_concept("http://terminology.hl7.org/CodeSystem/condition-clinical", "active"),
            verificationStatus=_concept(
                "http://terminology.hl7.org/CodeSystem/condition-ver-status", "confirmed"
            ),
        )  # fmt: skip
    for number in range(10):
        code, name = chance.choice(DRUGS)
        yield numbered(
            "MedicationRequest", number, status="active", intent="order", subject=subject,
            medicationCodeableConcept=_concept(RXNORM, code, name), authoredOn=at(number),
        )  # fmt: skip
    for number in range(4):
        yield numbered(
            "Procedure", number, status="completed", subject=subject, performedDateTime=at(number),
            code=_concept(SNOMED, "399208008", "Plain chest X-ray"),
        )  # fmt: skip
    for number in range(3):
        yield numbered(
            "DocumentReference", number, status="current", subject=subject, date=at(number),
            type=_concept(LOINC, "11506-3", "Progress note"),
            content=[{"attachment": {"contentType": "text/plain", "data": _text(f"{NOTE} {key} {number}")}}],
        )  # fmt: skip
    yield numbered(
        "AllergyIntolerance", 0, patient=subject, recordedDate=at(0),
        code=_concept(SNOMED, "91936005", "Allergy to penicillin"),
    )  # fmt: skip
    for number in range(3):
        yield numbered(
            "Immunization", number, status="completed", patient=subject, occurrenceDateTime=at(0),
            vaccineCode=_concept("http://hl7.org/fhir/sid/cvx", "140", "Influenza"),
        )  # fmt: skip


def _concept(system: str, code: str, display: str = "") -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, **({"display": display} if display else {})}]}


def _quantity(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def _text(said: str) -> str:
    return base64.b64encode(said.encode()).decode()
