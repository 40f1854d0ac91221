"""Each resource type of INTEROP 33: read into its record, dropped when entered in error."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ehr import PatientRecord, ReadingTally
from ehr.fhir.resources import READERS
from tests.ehr.fhir.resources_for_tests import (
    coded,
    encounter,
    observation,
    read_all,
    read_one,
    reasons,
    resource,
)

Json = dict[str, Any]
SCT = "http://snomed.info/sct"
TEXT = {"contentType": "text/plain", "data": base64.b64encode(b"Short of breath.").decode()}
IN_ERROR = coded("entered-in-error", "http://terminology.hl7.org/CodeSystem/condition-ver-status")

# type → (a sound resource, where its record goes)
UID = {"system": "urn:dicom:uid", "value": "1.2"}
SAMPLES: dict[str, tuple[Json, str]] = {
    "AllergyIntolerance": (resource("AllergyIntolerance", code=coded("91936005", SCT)), "allergies"),
    "Condition": (resource("Condition", code=coded("84114007", SCT)), "conditions"),
    "DiagnosticReport": (
        resource("DiagnosticReport", status="final", code=coded("24627-2"), conclusion="Clear."),
        "notes",
    ),
    "DocumentReference": (
        resource("DocumentReference", status="current", content=[{"attachment": TEXT}]),
        "notes",
    ),
    "Encounter": (encounter(), "encounters"),
    "FamilyMemberHistory": (
        resource(
            "FamilyMemberHistory",
            status="completed",
            relationship={"text": "father"},
            condition=[{"code": coded("22298006", SCT)}],
        ),
        "family_history",
    ),
    "ImagingStudy": (
        resource("ImagingStudy", status="available", identifier=[UID]),
        "imaging_studies",
    ),
    **{
        kind: (resource(kind, status=status, medicationCodeableConcept={"text": "Furosemide"}), "medications")
        for kind, status in (
            ("MedicationAdministration", "completed"),
            ("MedicationRequest", "active"),
            ("MedicationStatement", "active"),
        )
    },
    "Observation": (observation(), "observations"),
    "Procedure": (resource("Procedure", status="completed", code=coded("232717009", SCT)), "procedures"),
}
BY_VERIFICATION = ("AllergyIntolerance", "Condition")  # they have no status of their own


def test_every_type_that_is_read_is_here() -> None:
    assert set(SAMPLES) == set(READERS)


@pytest.mark.parametrize("kind", SAMPLES)
def test_it_becomes_a_record(kind: str) -> None:
    sample, attribute = SAMPLES[kind]
    (fact,) = getattr(read_one(sample), attribute)
    assert (fact.resource_type, fact.resource_id) == (kind, sample["id"])


@pytest.mark.parametrize("kind", SAMPLES)
def test_entered_in_error_is_retracted(kind: str) -> None:
    sample, attribute = SAMPLES[kind]
    error = {"verificationStatus": IN_ERROR} if kind in BY_VERIFICATION else {"status": "entered-in-error"}
    record: PatientRecord = read_one(sample | error)
    assert getattr(record, attribute) == ()
    assert record.retracted == ((kind, sample["id"]),)


@pytest.mark.parametrize("kind", [kind for kind in SAMPLES if kind not in BY_VERIFICATION])
def test_a_status_outside_its_required_value_set_is_refused(kind: str) -> None:
    (reason,) = reasons(SAMPLES[kind][0] | {"status": "finnished"})
    assert reason.startswith(f"{kind}.status is not a code of its required value set: the source has to send")
    assert "entered-in-error" in reason
    assert "finnished" not in reason


@pytest.mark.parametrize("kind", SAMPLES)
def test_whose_it_is_must_be_told(kind: str) -> None:
    sample = {name: value for name, value in SAMPLES[kind][0].items() if name != "subject"}
    tally = ReadingTally()
    (nobody,) = read_all(sample, tally=tally)
    assert nobody.patient.resource_id == ""
    assert nobody.set_aside[0].reason == f"{kind} names no patient"


@pytest.mark.parametrize("status", ["refuted", "entered-in-error"])
def test_a_condition_that_is_refuted_never_counts(status: str) -> None:
    system = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
    record = read_one(SAMPLES["Condition"][0] | {"verificationStatus": coded(status, system)})
    assert (record.conditions, record.retracted) == ((), (("Condition", "r1"),))


def test_an_absent_value_stays_missing_with_its_reason() -> None:
    absent = observation(dataAbsentReason=coded("not-performed", "http://x")) | {"valueQuantity": None}
    (kept,) = read_one(absent).observations
    assert (kept.value, kept.absent_reason) == (None, "not-performed")


def test_a_blood_pressure_is_two_records() -> None:
    parts = [
        {"code": coded(code), "valueQuantity": {"value": value, "code": "mm[Hg]"}}
        for code, value in (("8480-6", 120), ("8462-4", 80))
    ]
    record = read_one(observation("85354-9", component=parts) | {"valueQuantity": None})
    assert {(one.part, one.value) for one in record.observations} == {("8480-6", 120.0), ("8462-4", 80.0)}


def test_what_is_still_taken_has_no_end_for_having_begun() -> None:
    taken = SAMPLES["MedicationStatement"][0] | {"effectiveDateTime": "2020-01-01"}
    (kept,) = read_one(taken).medications
    assert kept.start is not None
    assert kept.end is None
