"""Vital signs, laboratory results and smoking of a simulated patient, moved by `physiology` and its trend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from cds.demo.fhir import LOINC, SNOMED, TERMINOLOGY, Resource, at, concept, quantity, subject
from cds.demo.simulating import SimulatedPatient


@dataclass(frozen=True, slots=True)
class _Measured:
    """A vital sign or laboratory value and how physiology moves it.

    level       middle of the population; `is_log` works on its logarithm
    lean        change per unit of `physiology` at admission
    trend       further change per unit of `physiology` per day
    person      standard deviation between people; noise: between two measurements
    """

    loinc: str
    display: str
    unit: str
    level: float
    lean: float
    trend: float
    person: float
    noise: float
    low: float
    high: float
    digits: int = 1
    is_log: bool = False
    reference: tuple[float, float] | None = None


_VITALS = (
    _Measured("8867-4", "Heart rate", "/min", 84, 7, 5, 8, 3, 40, 180, 0, reference=(60, 100)),
    _Measured("9279-1", "Respiratory rate", "/min", 18.5, 2.2, 1.8, 1.8, 1, 8, 48, 0, reference=(12, 20)),
    _Measured("59408-5", "Oxygen saturation by pulse oximetry", "%", 95, -1.3, -0.9, 1, 0.6, 72, 100, 0),
    _Measured("8310-5", "Body temperature", "Cel", 37.1, 0.2, 0.05, 0.3, 0.15, 35, 41, 1),
)
_SYSTOLIC = _Measured("8480-6", "Systolic blood pressure", "mm[Hg]", 130, -6, -4, 13, 4, 70, 220, 0)
_DIASTOLIC = _Measured("8462-4", "Diastolic blood pressure", "mm[Hg]", 75, -3, -2, 8, 3, 35, 130, 0)
_LABS = (
    _Measured("2160-0", "Creatinine", "mg/dL", 1.05, 0.20, 0.14, 0.20, 0.04, 0.4, 12, 2, True, (0.6, 1.2)),
    _Measured("3094-0", "Urea nitrogen", "mg/dL", 20, 0.18, 0.10, 0.22, 0.05, 5, 180, 0, True, (7, 20)),
    _Measured("33762-6", "NT-proBNP", "pg/mL", 900, 0.55, 0.12, 0.6, 0.08, 20, 35000, 0, True, (0, 450)),
    _Measured("1988-5", "C-reactive protein", "mg/L", 22, 0.50, 0.18, 0.7, 0.12, 0.5, 450, 1, True, (0, 5)),
    _Measured("2524-7", "Lactate", "mmol/L", 1.3, 0.24, 0.14, 0.15, 0.06, 0.4, 15, 1, True, (0.5, 2.2)),
    _Measured("6690-2", "Leukocytes", "10*3/uL", 9.0, 0.14, 0.05, 0.22, 0.05, 1.5, 45, 1, True, (4, 11)),
    _Measured("718-7", "Hemoglobin", "g/dL", 12.9, -0.35, -0.1, 1.3, 0.2, 6, 18.5, 1, False, (12, 16)),
    _Measured("777-3", "Platelets", "10*3/uL", 235, -0.06, -0.04, 0.22, 0.04, 30, 700, 0, True, (150, 400)),
    _Measured("2951-2", "Sodium", "mmol/L", 138, -0.8, -0.4, 2.5, 0.8, 118, 156, 0, False, (135, 145)),
    _Measured("2823-3", "Potassium", "mmol/L", 4.2, 0.10, 0.06, 0.35, 0.12, 2.6, 6.6, 1, False, (3.5, 5.1)),
    _Measured("10839-9", "Troponin I", "ng/mL", 0.03, 0.45, 0.10, 0.5, 0.1, 0.005, 12, 3, True, (0, 0.04)),
    _Measured("2345-7", "Glucose", "mg/dL", 118, 0.08, 0.03, 0.18, 0.08, 55, 420, 0, True, (70, 110)),
)


def build_measurements(patient: SimulatedPatient) -> Iterator[Resource]:
    """Vitals often and labs daily, until discharge but for at most four days."""
    rng = patient.rng("measurements")
    stay_hours = min((patient.until - patient.admitted_at).total_seconds() / 3600, 96.0)
    vital_hours = [h for h in (0.3, 3, 6.5, 10, 14, 19, 26, 38, 50, 62, 74, 86) if h < stay_hours]
    lab_hours = [h for h in (0.5, 7.5, 22, 46, 70, 94) if h < stay_hours]
    people = {m.loinc: float(rng.standard_normal()) for m in (*_VITALS, _SYSTOLIC, _DIASTOLIC, *_LABS)}
    count = 0

    def value(measured: _Measured, hours: float) -> float:
        push = patient.causes.physiology * (measured.lean + measured.trend * hours / 24)
        push += measured.person * people[measured.loinc] + measured.noise * float(rng.standard_normal())
        raw = measured.level * math.exp(push) if measured.is_log else measured.level + push
        return round(min(max(raw, measured.low), measured.high), measured.digits)

    def observed(hours: float, category: str, delay_minutes: int) -> Resource:
        nonlocal count
        count += 1
        taken = patient.admitted_at + timedelta(hours=hours)
        return {
            "resourceType": "Observation",
            "id": f"{patient.id}-observation-{count}",
            "status": "final",
            "category": [concept(f"{TERMINOLOGY}/observation-category", category)],
            "subject": subject(patient),
            "encounter": {"reference": f"Encounter/{patient.id}-stay"},
            "effectiveDateTime": at(taken),
            "issued": at(min(taken + timedelta(minutes=delay_minutes), patient.until)),
        }

    for hours in vital_hours:
        for measured in _VITALS:
            yield observed(hours, "vital-signs", 1) | _value(measured, value(measured, hours))
        pressure = observed(hours, "vital-signs", 1)
        pressure["code"] = concept(LOINC, "85354-9", "Blood pressure panel")
        pressure["component"] = [_value(one, value(one, hours)) for one in (_SYSTOLIC, _DIASTOLIC)]
        yield pressure
    index = round(float(min(max(rng.normal(27.5, 4.5), 16), 48)), 1)
    size = observed(0.3, "vital-signs", 1) | {"code": concept(LOINC, "39156-5", "Body mass index")}
    yield size | {"valueQuantity": quantity(index, "kg/m2")}
    if not patient.has_labs:
        return
    for hours in lab_hours:
        for measured in _LABS:
            one = observed(hours, "laboratory", 45) | _value(measured, value(measured, hours))
            if measured.reference:
                low, high = (quantity(bound, measured.unit) for bound in measured.reference)
                one["referenceRange"] = [{"low": low, "high": high}]
            yield one


def _value(measured: _Measured, value: float) -> Resource:
    return {
        "code": concept(LOINC, measured.loinc, measured.display),
        "valueQuantity": quantity(int(value) if measured.digits == 0 else value, measured.unit),
    }


def build_smoking(patient: SimulatedPatient) -> Iterator[Resource]:
    """Smoking status; unknown for one in five."""
    rng = patient.rng("smoking")
    if rng.random() < 0.2:
        return
    smokes = rng.random() < 0.25
    answer = ("77176002", "Smoker") if smokes else ("266919005", "Never smoked tobacco")
    yield {
        "resourceType": "Observation",
        "id": f"{patient.id}-smoking",
        "status": "final",
        "category": [concept(f"{TERMINOLOGY}/observation-category", "social-history")],
        "code": concept(LOINC, "72166-2", "Tobacco smoking status"),
        "subject": subject(patient),
        "effectiveDateTime": at(patient.admitted_at + timedelta(minutes=30)),
        "valueCodeableConcept": concept(SNOMED, *answer),
    }
