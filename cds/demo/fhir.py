"""Pieces of FHIR R4 JSON: concepts, quantities, references, moments."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cds.demo.simulating import SimulatedPatient

Resource = dict[str, Any]
LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
UCUM = "http://unitsofmeasure.org"
HGNC, HGVS = "http://www.genenames.org/geneId", "http://varnomen.hgvs.org"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"


def component(code: str, display: str, value: Resource) -> Resource:
    """A component with a coded value, its code from LOINC."""
    return {"code": concept(LOINC, code, display), "valueCodeableConcept": value}


def concept(system: str, code: str, display: str = "") -> Resource:
    """A CodeableConcept of one coding."""
    coding = {"system": system, "code": code} | ({"display": display} if display else {})
    return {"coding": [coding]} | ({"text": display} if display else {})


def quantity(value: float, unit: str) -> Resource:
    """A Quantity in UCUM."""
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def subject(patient: SimulatedPatient) -> Resource:
    """A reference to the patient."""
    return {"reference": f"Patient/{patient.id}"}


def at(moment: datetime) -> str:
    """A dateTime to the second, with its zone."""
    return moment.isoformat(timespec="seconds")
