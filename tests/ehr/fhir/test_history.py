# ruff: noqa: E501 - tables are read by row
"""Conditions, medications, procedures, allergies, relatives: what is kept, what is retracted, and from when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.ehr.fhir.resources_for_tests import coded, read_one, reasons, resource

SNOMED, RXNORM = "http://snomed.info/sct", "http://www.nlm.nih.gov/research/umls/rxnorm"
DRUG = {"medicationCodeableConcept": coded("860975", RXNORM, "Metformin 500 MG")}


def test_a_condition_is_known_when_it_was_recorded() -> None:
    (found,) = read_one(
        resource("Condition", code=coded("44054006", SNOMED), onsetDateTime="2010", recordedDate="2012-03-04T10:00:00Z",
                 clinicalStatus=coded("active", "x"), verificationStatus=coded("confirmed", "x"))
    ).conditions  # fmt: skip
    assert found.onset_at == datetime(2010, 1, 1, tzinfo=UTC)
    assert found.available_at == datetime(2012, 3, 4, 10, tzinfo=UTC)
    assert (found.clinical_status, found.verification_status) == ("active", "confirmed")


def test_a_condition_of_a_vague_year_is_known_at_its_end() -> None:
    (found,) = read_one(
        resource("Condition", code=coded("44054006", SNOMED), onsetDateTime="2010")
    ).conditions
    assert found.available_at
    assert found.available_at.isoformat() == "2010-12-31T23:59:59.999999+00:00"


CODE: dict[str, Any] = {"code": coded("44054006", SNOMED)}
RETRACTED: list[tuple[str, dict[str, Any]]] = [
    ("Condition", CODE | {"verificationStatus": coded("refuted", "x")}),
    ("Condition", CODE | {"verificationStatus": coded("entered-in-error", "x")}),
    ("Condition", CODE | {"verificationStatus": "entered-in-error"}),  # as FHIR STU3 wrote it
    ("AllergyIntolerance", CODE | {"verificationStatus": coded("refuted", "x")}),
    ("Procedure", CODE | {"status": "not-done"}),
    ("MedicationStatement", DRUG | {"status": "not-taken"}),
    ("MedicationAdministration", DRUG | {"status": "not-done"}),
    ("MedicationRequest", DRUG | {"status": "active", "doNotPerform": True}),
    ("MedicationRequest", DRUG | {"status": "entered-in-error"}),
    ("FamilyMemberHistory", {"status": "health-unknown"}),
    ("DiagnosticReport", {"status": "cancelled"}),
    ("DocumentReference", {"status": "current", "docStatus": "entered-in-error"}),
    ("ImagingStudy", {"status": "entered-in-error"}),
]


@pytest.mark.parametrize(("kind", "elements"), RETRACTED)
def test_what_did_not_happen_never_counts(kind: str, elements: dict[str, Any]) -> None:
    record = read_one(resource(kind, **elements))
    assert record.retracted == ((kind, "r1"),)
    facts = (*record.conditions, *record.medications, *record.procedures, *record.allergies)
    assert facts == ()


@pytest.mark.parametrize("kind", ["Condition", "AllergyIntolerance"])
@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("clinicalStatus", {"text": "Resolved"}, "resolved"),
        ("clinicalStatus", {"coding": [{"system": "urn:x", "code": "R", "display": "Resolved"}]}, "resolved"),
        ("clinicalStatus", {"coding": [{"system": "urn:x", "code": "R"}, {"system": "urn:y", "code": "inactive"}]}, "inactive"),
        ("clinicalStatus", "resolved", "resolved"),
        ("clinicalStatus", None, ""),
        ("clinicalStatus", {"text": "gone, we hope"}, None),
        ("clinicalStatus", coded("55561003", SNOMED), None),
        ("clinicalStatus", coded("entered-in-error", "x"), None),
        ("verificationStatus", {"text": "Entered in error"}, "retracted"),
        ("verificationStatus", {"text": " Refuted "}, "retracted"),
        ("verificationStatus", {"coding": [{"code": "E", "display": "Entered in Error"}]}, "retracted"),
        ("verificationStatus", {"coding": [{"code": "confirmed"}, {"code": "entered-in-error"}]}, "retracted"),
        ("verificationStatus", {"text": "Unconfirmed"}, "unconfirmed"),
        ("verificationStatus", {"text": "somebody said so"}, None),
    ],
)  # fmt: skip
def test_a_status_that_is_relied_on_is_a_code_or_the_resource_is_set_aside(
    kind: str, name: str, said: Any, expected: str | None
) -> None:
    record = read_one(resource(kind, **CODE, **({} if said is None else {name: said})))
    facts = (*record.conditions, *record.allergies)
    if expected == "retracted":
        assert (facts, record.retracted) == ((), ((kind, "r1"),))
    elif expected is None:
        assert facts == ()
        assert record.retracted == ()
        assert (
            f"{kind}.{name} is not a code of its required value set: send one of"
            in record.set_aside[0].reason
        )
    else:
        (found,) = facts
        kept = {"clinicalStatus": found.clinical_status, "verificationStatus": found.verification_status}
        assert kept[name] == expected


def test_an_allergy_that_is_over_is_over_since_its_source_last_wrote_it() -> None:
    written = {"meta": {"lastUpdated": "2026-01-02T10:00:00Z"}, "clinicalStatus": coded("inactive", "x")}
    (found,) = read_one(resource("AllergyIntolerance", **CODE, **written)).allergies
    assert found.over_at == datetime(2026, 1, 2, 10, tzinfo=UTC)


def test_medications_of_three_kinds() -> None:
    record = read_one(
        resource("MedicationRequest", status="active", authoredOn="2020-01-02", **DRUG),
        resource("MedicationStatement", status="active", dateAsserted="2020-02-02",
                 effectivePeriod={"start": "2019-01-01", "end": "2021-01-01"}, **DRUG),
        resource("MedicationAdministration", status="completed", effectiveDateTime="2020-03-02T10:00:00Z", **DRUG),
    )  # fmt: skip
    assert [item.code.display for item in record.medications] == ["Metformin 500 MG"] * 3
    asked, told, given = record.medications
    assert asked.start == datetime(2020, 1, 2, tzinfo=UTC)
    assert told.available_at
    assert told.available_at.date().isoformat() == "2020-02-02"
    assert told.end == datetime(2021, 1, 1, 23, 59, 59, 999999, tzinfo=UTC)
    assert given.available_at == given.start == datetime(2020, 3, 2, 10, tzinfo=UTC)


def test_a_medication_may_stand_elsewhere_even_later() -> None:
    request = resource("MedicationRequest", medicationReference={"reference": "Medication/m1"})
    drug = {"resourceType": "Medication", "id": "m1", "code": coded("860975", RXNORM)}
    assert read_one(request, drug).medications[0].code.code == "860975"
    contained = resource("MedicationRequest", contained=[drug], medicationReference={"reference": "#m1"})
    assert read_one(contained).medications[0].code.code == "860975"
    bundle = {"resourceType": "Bundle", "entry": [{"resource": request}, {"resource": drug}]}
    assert read_one(bundle).medications[0].code.code == "860975"


def test_a_medication_not_to_be_found_goes_by_its_name_or_not_at_all() -> None:
    named = {"reference": "Medication/m1", "display": "Aspirin 81 mg"}
    assert (
        read_one(resource("MedicationRequest", medicationReference=named)).medications[0].code.code
        == "Aspirin 81 mg"
    )
    unnamed = resource("MedicationRequest", medicationReference={"reference": "Medication/m1"})
    assert "no coded Medication" in reasons(unnamed)[0]


def test_a_procedure_is_known_when_it_is_over() -> None:
    period = {"start": "2020-01-01T10:00:00Z", "end": "2020-01-01T12:00:00Z"}
    (found,) = read_one(resource("Procedure", status="completed", performedPeriod=period, **CODE)).procedures
    assert found.performed_at == datetime(2020, 1, 1, 10, tzinfo=UTC)
    assert found.available_at == datetime(2020, 1, 1, 12, tzinfo=UTC)


def test_an_allergy_by_its_reaction() -> None:
    reaction = [{"substance": coded("227493005", SNOMED, "Cashew nuts")}]
    allergy = resource(
        "AllergyIntolerance", reaction=reaction, criticality="high", patient={"reference": "Patient/p1"}
    )
    allergy.pop("subject")
    (found,) = read_one(allergy).allergies
    assert (found.code.display, found.criticality) == ("Cashew nuts", "high")


def test_each_condition_of_a_relative() -> None:
    conditions = [
        {"code": coded("22298006", SNOMED, "Myocardial infarction"), "onsetAge": {"value": 60, "code": "a"}},
        {"code": coded("22298006", SNOMED), "onsetAge": {"value": 24, "unit": "mo", "code": "mo"}},
        {"code": {}},
    ]
    record = read_one(
        resource("FamilyMemberHistory", status="completed", relationship=coded("FTH", "v3"), condition=conditions, date="2015")
    )  # fmt: skip
    assert [(item.part, item.onset_age) for item in record.family_history] == [
        ("22298006", 60),
        ("22298006#2", 2),
    ]
    assert record.set_aside[0].reason.startswith("FamilyMemberHistory.condition.code")


@pytest.mark.parametrize(
    ("kind", "elements", "reason"),
    [
        ("Condition", {}, "Condition.code has neither coding nor text"),
        ("Condition", CODE | {"onsetDateTime": "soon"}, "Condition.onsetDateTime is not a FHIR date"),
        (
            "Procedure",
            CODE | {"subject": {"reference": "urn:uuid:1"}},
            "not in the Bundle and is not Patient/[id]",
        ),
        ("MedicationRequest", {}, "medication[x] has neither"),
        ("AllergyIntolerance", {}, "neither code nor reaction.substance"),
        ("ImagingStudy", {}, "no Study Instance UID"),
        ("FamilyMemberHistory", {}, "FamilyMemberHistory.relationship has neither"),
    ],
)
def test_what_is_missing_is_named(kind: str, elements: dict[str, Any], reason: str) -> None:
    (said,) = reasons(resource(kind) | elements)
    assert reason in said
