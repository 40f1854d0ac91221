"""What a simulated patient brings along: conditions, medications, notes, family history and genes."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from datetime import timedelta

from cds.demo.fhir import (
    LOINC,
    RXNORM,
    SNOMED,
    TERMINOLOGY,
    Resource,
    at,
    component,
    concept,
    quantity,
    subject,
)
from cds.demo.notes import write_admission_note, write_nursing_note
from cds.demo.simulating import SimulatedPatient

# (SNOMED CT, name, share at 66 years, log-odds per unit of standardised age)
_CONDITIONS = (
    ("38341003", "Hypertension", 0.55, 0.6),
    ("84114007", "Heart failure", 0.30, 0.5),
    ("53741008", "Coronary arteriosclerosis", 0.28, 0.6),
    ("44054006", "Type 2 diabetes mellitus", 0.25, 0.3),
    ("13645005", "Chronic obstructive lung disease", 0.20, 0.2),
    ("49436004", "Atrial fibrillation", 0.20, 0.7),
    ("709044004", "Chronic kidney disease", 0.18, 0.6),
)
_DRUGS = {  # RxNorm ingredients by condition
    "38341003": (("29046", "Lisinopril"),),
    "84114007": (("4603", "Furosemide"), ("6918", "Metoprolol")),
    "53741008": (("83367", "Atorvastatin"), ("1191", "Aspirin")),
    "44054006": (("6809", "Metformin"),),
    "13645005": (("435", "Albuterol"),),
    "49436004": (("1364430", "Apixaban"),),
    "709044004": (("9997", "Spironolactone"),),
}
_ON_ADMISSION = (("2193", "Ceftriaxone"), ("4603", "Furosemide"))


def pick_conditions(patient: SimulatedPatient) -> list[tuple[str, str]]:
    """Chronic conditions as (SNOMED CT code, name); likelier with age."""
    rng = patient.rng("conditions")
    chosen = []
    for code, name, share, per_age in _CONDITIONS:
        odds = math.log(share / (1 - share)) + per_age * patient.causes.age
        if rng.random() < 1 / (1 + math.exp(-odds)):
            chosen.append((code, name))
    return chosen


def build_conditions(patient: SimulatedPatient, chosen: list[tuple[str, str]]) -> Iterator[Resource]:
    """The chronic conditions, and what brought the patient in."""
    rng = patient.rng("condition dates")
    for i, (code, name) in enumerate([*chosen, ("267036007", "Dyspnea")]):
        since = patient.admitted_at - (
            timedelta(days=rng.uniform(200, 4000)) if i < len(chosen) else timedelta(days=3)
        )
        recorded = since if i < len(chosen) else patient.admitted_at
        yield {
            "resourceType": "Condition",
            "id": f"{patient.id}-condition-{i}",
            "clinicalStatus": concept(f"{TERMINOLOGY}/condition-clinical", "active"),
            "verificationStatus": concept(f"{TERMINOLOGY}/condition-ver-status", "confirmed"),
            "category": [concept(f"{TERMINOLOGY}/condition-category", "problem-list-item")],
            "code": concept(SNOMED, code, name),
            "subject": subject(patient),
            "onsetDateTime": since.date().isoformat(),
            "recordedDate": at(recorded),
        }


def build_medications(patient: SimulatedPatient, chosen: list[tuple[str, str]]) -> Iterator[Resource]:
    """Drugs for the conditions, and what was begun on admission."""
    rng = patient.rng("medications")
    drugs = {drug: patient.admitted_at - timedelta(days=90) for code, _ in chosen for drug in _DRUGS[code]}
    for drug in _ON_ADMISSION:
        if rng.random() < 0.6:
            drugs.setdefault(drug, patient.admitted_at + timedelta(minutes=40))
    for i, ((code, name), since) in enumerate(drugs.items()):
        yield {
            "resourceType": "MedicationRequest",
            "id": f"{patient.id}-medication-{i}",
            "status": "active",
            "intent": "order",
            "medicationCodeableConcept": concept(RXNORM, code, name),
            "subject": subject(patient),
            "authoredOn": at(since),
        }


def build_notes(patient: SimulatedPatient, conditions: list[str]) -> Iterator[Resource]:
    """The doctor's note on admission and, for most, the nurse's."""
    written = (
        (
            "34117-2",
            "History and physical note",
            "Simulated physician",
            45,
            write_admission_note(patient, conditions),
        ),
        ("34746-8", "Nurse Note", "Simulated nurse", 58, write_nursing_note(patient)),
    )
    is_short = patient.rng("note count").random() < 0.3
    for i, (code, title, author, minutes, text) in enumerate(written[: 1 if is_short else 2]):
        written_at = patient.admitted_at + timedelta(minutes=minutes)
        yield {
            "resourceType": "DocumentReference",
            "id": f"{patient.id}-note-{i}",
            "status": "current",
            "docStatus": "final",
            "type": concept(LOINC, code, title),
            "subject": subject(patient),
            "date": at(written_at),
            "author": [{"display": author}],
            "description": title,
            "content": [
                {
                    "attachment": {
                        "contentType": "text/plain; charset=utf-8",
                        "data": base64.b64encode(text.encode()).decode(),
                        "title": title,
                        "creation": at(written_at),
                    }
                }
            ],
        }


def build_family(patient: SimulatedPatient) -> Iterator[Resource]:
    """One parent's illness; unknown for one in four."""
    rng = patient.rng("family")
    if rng.random() < 0.25:
        return
    role, name = (("FTH", "father"), ("MTH", "mother"))[int(rng.integers(2))]
    is_cardiac = rng.random() < (0.7 if patient.causes.has_variant else 0.3)
    condition = ("84114007", "Heart failure") if is_cardiac else ("73211009", "Diabetes mellitus")
    yield {
        "resourceType": "FamilyMemberHistory",
        "id": f"{patient.id}-family",
        "status": "completed",
        "patient": subject(patient),
        "date": at(patient.admitted_at + timedelta(minutes=35)),
        "relationship": concept(f"{TERMINOLOGY}/v3-RoleCode", role, name),
        "condition": [
            {
                "code": concept(SNOMED, *condition),
                "onsetAge": quantity(int(rng.integers(45, 80)), "a") | {"unit": "years"},
            }
        ],
    }


def build_genomics(patient: SimulatedPatient) -> Iterator[Resource]:
    """Genomics Reporting: a variant Observation (present or absent), and a polygenic score."""
    tested = patient.admitted_at - timedelta(days=120)
    base: Resource = {
        "resourceType": "Observation",
        "status": "final",
        "subject": subject(patient),
        "effectiveDateTime": at(tested),
        "issued": at(tested + timedelta(days=14)),
    }
    laboratory = concept(f"{TERMINOLOGY}/observation-category", "laboratory")
    if patient.has_variant_test:
        is_present = patient.causes.has_variant
        answer = ("LA9633-4", "Present") if is_present else ("LA9634-2", "Absent")
        components = [
            component(
                "48018-6",
                "Gene studied [ID]",
                concept("http://www.genenames.org/geneId", "HGNC:12403", "TTN"),
            ),
            component(
                "48004-6",
                "DNA change (c.HGVS)",
                concept("http://varnomen.hgvs.org", "NM_001267550.2:c.74908C>T"),
            ),
        ]
        if is_present:
            components.append(
                component(
                    "53037-8",
                    "Genetic variation clinical significance",
                    concept(LOINC, "LA6668-3", "Pathogenic"),
                )
            )
        yield base | {
            "id": f"{patient.id}-variant",
            "category": [laboratory, concept(f"{TERMINOLOGY}/v2-0074", "GE", "Genetics")],
            "code": concept(LOINC, "69548-6", "Genetic variant assessment"),
            "valueCodeableConcept": concept(LOINC, *answer),
            "component": components,
        }
    if patient.has_polygenic_score:
        yield base | {
            "id": f"{patient.id}-polygenic",
            "category": [laboratory, concept(f"{TERMINOLOGY}/v2-0074", "GE", "Genetics")],
            "code": {"text": "Polygenic risk score for heart failure"},
            "valueQuantity": quantity(round(patient.causes.polygenic, 2), "1"),
        }
