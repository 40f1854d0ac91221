"""A simulated patient's record as a FHIR R4 bundle, as a hospital's server would hand it out.

Codes are LOINC, SNOMED CT, RxNorm and UCUM. Every resource carries the tag HTEST (v3 ActReason, "test health
data"); names say that the patient is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from cds.demo import history, measurements
from cds.demo.fhir import SNOMED, TERMINOLOGY, Resource, at, concept, subject
from cds.demo.simulating import SimulatedPatient

RECORD_NUMBERS = "urn:tessera:simulated:record-number"
TAG = {"system": f"{TERMINOLOGY}/v3-ActReason", "code": "HTEST", "display": "test health data"}
WARDS = ("Simulated Ward A", "Simulated Ward B")

_FEMALE = ("Ada", "Bea", "Clara", "Dora", "Edith", "Freya", "Greta", "Hanna", "Ida", "Julia", "Lena", "Mia")
_MALE = ("Anton", "Bruno", "Carl", "David", "Emil", "Felix", "Georg", "Hugo", "Ivan", "Jonas", "Karl", "Leo")
_TREES = (
    "Alder", "Ash", "Aspen", "Beech", "Birch", "Cedar", "Cherry", "Cypress", "Elder", "Elm", "Fir",
    "Hawthorn", "Hazel", "Hickory", "Holly", "Hornbeam", "Juniper", "Larch", "Laurel", "Linden", "Maple",
    "Oak", "Olive", "Pine", "Poplar", "Rowan", "Spruce", "Sycamore", "Walnut", "Willow", "Yew",
)  # fmt: skip


def build_bundle(patient: SimulatedPatient) -> Resource:
    """Everything of one patient: a FHIR R4 Bundle of type collection."""
    conditions = history.pick_conditions(patient)
    resources: list[Resource] = [_patient(patient), *_encounters(patient)]
    resources += history.build_conditions(patient, conditions)
    resources += history.build_medications(patient, conditions)
    resources += measurements.build_measurements(patient)
    resources += measurements.build_smoking(patient)
    if patient.has_notes:
        resources += history.build_notes(patient, [name for _, name in conditions])
    resources += history.build_family(patient)
    resources += history.build_genomics(patient)
    entries = []
    for resource in resources:
        resource["meta"] = {"lastUpdated": at(patient.until), "tag": [TAG]}
        address = f"urn:tessera:{resource['resourceType']}:{resource['id']}"
        entries.append({"fullUrl": address, "resource": resource})
    return {"resourceType": "Bundle", "id": patient.id, "type": "collection", "entry": entries}


def ward_of(patient: SimulatedPatient) -> str:
    """Where the patient lies."""
    return WARDS[patient.number % len(WARDS)]


# -- who, and where ---------------------------------------------------------------------------------------
def _patient(patient: SimulatedPatient) -> Resource:
    rng = patient.rng("name")
    given = (_FEMALE if patient.is_female else _MALE)[int(rng.integers(12))]
    family = f"{_TREES[patient.number * 7 % len(_TREES)]}-Simulated"
    born = patient.admitted_at - timedelta(days=patient.age_years * 365.25)
    out: Resource = {
        "resourceType": "Patient",
        "id": patient.id,
        "active": True,
        "identifier": [
            {
                "use": "usual",
                "type": {"coding": [{"system": f"{TERMINOLOGY}/v2-0203", "code": "MR"}]},
                "system": RECORD_NUMBERS,
                "value": patient.record_number,
            }
        ],
        "name": [{"use": "official", "family": family, "given": [given]}],
        "gender": "female" if patient.is_female else "male",
        "birthDate": born.date().isoformat(),
    }
    if patient.died_at:
        out["deceasedDateTime"] = at(patient.died_at)
    return out


def _encounters(patient: SimulatedPatient) -> Iterator[Resource]:
    stay = f"{patient.id}-stay"
    yield _encounter(patient, stay, "IMP", "inpatient encounter", patient.admitted_at,
                     None if patient.is_current else patient.until, ward_of(patient))  # fmt: skip
    if patient.intensive_care_at:
        end = min(patient.until, patient.intensive_care_at + timedelta(days=3))
        care = _encounter(patient, f"{patient.id}-icu", "IMP", "inpatient encounter",
                          patient.intensive_care_at, end, "Simulated Intensive Care Unit")  # fmt: skip
        care["partOf"] = {"reference": f"Encounter/{stay}"}
        care["type"] = [concept(SNOMED, "305351004", "Admission to intensive care unit")]
        care["location"][0]["physicalType"] = concept(
            f"{TERMINOLOGY}/v3-RoleCode", "ICU", "Intensive care unit"
        )
        yield care
    if patient.followed_up_at:
        yield _encounter(patient, f"{patient.id}-visit", "AMB", "ambulatory", patient.followed_up_at,
                         patient.followed_up_at + timedelta(minutes=30), "Simulated Clinic")  # fmt: skip


def _encounter(
    patient: SimulatedPatient,
    id: str,
    kind: str,
    display: str,
    start: datetime,
    end: datetime | None,
    place: str,
) -> Resource:
    period = {"start": at(start)} | ({"end": at(end)} if end else {})
    return {
        "resourceType": "Encounter",
        "id": id,
        "status": "finished" if end else "in-progress",
        "class": {"system": f"{TERMINOLOGY}/v3-ActCode", "code": kind, "display": display},
        "subject": subject(patient),
        "period": period,
        "location": [{"location": {"display": place}}],
    }
