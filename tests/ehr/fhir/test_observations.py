# ruff: noqa: E501 - tables are read by row
"""Observations: values, units, components, absence, time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.ehr.fhir.resources_for_tests import coded, observation, read_all, read_one, reasons


def _without_value(**changes: Any) -> dict[str, Any]:
    plain = observation(**changes)
    plain.pop("valueQuantity")
    return plain


def test_a_value_comes_in_its_canonical_unit_with_its_range() -> None:
    ranges = [{"low": {"value": 53, "unit": "umol/L"}, "high": {"value": 106}}]
    (found,) = read_one(observation(value=100, unit="umol/L", referenceRange=ranges)).observations
    assert (found.value, found.unit) == (pytest.approx(1.1312), "mg/dL")
    assert found.low == pytest.approx(0.5995, abs=1e-3)
    assert found.high == pytest.approx(1.199, abs=1e-3)  # a bound without unit has that of the value


def test_a_range_of_another_kind_is_left_out_and_the_value_kept() -> None:
    (found,) = read_one(observation(referenceRange=[{"high": {"value": 1, "unit": "kg"}}])).observations
    assert (found.value, found.high) == (1.0, None)


def test_blood_pressure_is_one_record_per_component() -> None:
    def part(code: str, value: Any, unit: str = "mm[Hg]") -> dict[str, Any]:
        return {"code": coded(code), "valueQuantity": {"value": value, "code": unit}}

    pressure = _without_value(code=coded("85354-9"), component=[part("8480-6", 120), part("8462-4", 80)])
    systolic, diastolic = read_one(pressure).observations
    assert (systolic.part, systolic.code.code, systolic.value) == ("8480-6", "8480-6", 120)
    assert (diastolic.part, diastolic.value, diastolic.unit) == ("8462-4", 80, "mm[Hg]")
    pressure["component"][1] = part("8462-4", 80, "kg")
    record = read_one(pressure)
    assert [found.part for found in record.observations] == ["8480-6"]
    assert "8462-4" not in {found.part for found in record.observations}
    assert "cannot be converted to mm[Hg]" in record.set_aside[0].reason


def test_components_of_one_code_keep_apart() -> None:
    part = {"code": coded("8480-6"), "valueQuantity": {"value": 1, "code": "mm[Hg]"}}
    found = read_one(_without_value(component=[part, part, part])).observations
    assert [item.part for item in found] == ["8480-6", "8480-6#2", "8480-6#3"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"valueCodeableConcept": coded("10828004", "http://snomed.info/sct", "Positive")}, ("10828004", "Positive", None)),
        ({"valueString": "cloudy"}, (None, "cloudy", None)),
        ({"valueBoolean": True}, (None, "true", 1.0)),
        ({"valueInteger": 3}, (None, "", 3.0)),
        ({"valueRatio": {"numerator": {"value": 1}, "denominator": {"value": 128}}}, (None, "1:128", None)),
        ({"valueRange": {"low": {"value": 1, "unit": "mg"}, "high": {"value": 2, "unit": "mg"}}}, (None, "1 mg – 2 mg", None)),
    ],
)  # fmt: skip
def test_kinds_of_value(changes: dict[str, Any], expected: tuple[str | None, str, float | None]) -> None:
    (found,) = read_one(_without_value(code=coded("99999-9"), **changes)).observations
    assert (found.value_code.code if found.value_code else None, found.value_text, found.value) == expected


def test_an_absent_value_keeps_its_reason() -> None:
    reason = coded("unknown", "http://terminology.hl7.org/CodeSystem/data-absent-reason")
    (found,) = read_one(_without_value(dataAbsentReason=reason)).observations
    assert (found.value, found.absent_reason) == (None, "unknown")


def test_below_the_limit_is_the_limit_and_says_so() -> None:
    (found,) = read_one(observation("10839-9", 0.01, "ng/mL", valueQuantity={
        "value": 10, "comparator": "<", "code": "ng/L", "system": "http://unitsofmeasure.org"})).observations  # fmt: skip
    assert (found.value, found.value_text) == (0.01, "< 0.01 ng/mL")


def test_known_when_issued_measured_when_taken() -> None:
    (found,) = read_one(observation(issued="2020-05-04T10:00:00Z")).observations
    assert found.effective_at == datetime(2020, 5, 3, 10, tzinfo=UTC)
    assert found.available_at == datetime(2020, 5, 4, 10, tzinfo=UTC)
    (early,) = read_one(observation(issued="2020-05-01T10:00:00Z")).observations
    assert early.available_at == datetime(2020, 5, 3, 10, tzinfo=UTC)


def test_a_future_result_keeps_its_date_and_an_undated_one_has_none() -> None:
    (future,) = read_one(observation(effectiveDateTime="2190-01-01")).observations
    assert future.available_at
    assert future.available_at.year == 2190
    undated = observation()
    undated.pop("effectiveDateTime")
    assert read_one(undated).observations[0].available_at is None


def test_the_known_loinc_code_leads() -> None:
    codes = {"coding": [{"system": "urn:local", "code": "CREA"}, *coded("2160-0")["coding"]]}
    (found,) = read_one(observation(value=100, unit="umol/L", code=codes)).observations
    assert found.code.code == "2160-0"
    assert [code.key for code in found.also] == ["urn:local|CREA"]
    assert found.unit == "mg/dL"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"code": {}}, "Observation.code has neither coding nor text"),
        ({"code": "x"}, "Observation.code must be an object"),
        ({"valueQuantity": {"value": "1"}}, "Observation.valueQuantity.value must be a number"),
        ({"valueQuantity": {"value": float("nan"), "code": "mg/dL"}}, "must be a finite number"),
        ({"valueQuantity": {"value": 10**400, "code": "mg/dL"}}, "must be a finite number"),
        ({"valueQuantity": {"value": True, "code": "mg/dL"}}, "must be a number"),
        ({"valueQuantity": {"value": 1}}, "Observation.value[x]: the unit is missing"),
        ({"valueQuantity": {"value": 1, "unit": "kg"}}, "cannot be converted to mg/dL"),
        ({"valueString": "1"}, "more than one value[x]"),
        ({"effectiveDateTime": "0000-00-00"}, "Observation.effectiveDateTime is not a FHIR date"),
        ({"subject": {"reference": "Group/1"}}, "Observation.subject is a Group, not a Patient"),
        ({"subject": {"display": "somebody"}}, "has no literal reference"),
        ({"id": "not an id"}, "Observation.id is not a FHIR id"),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_the_rule(changes: dict[str, Any], reason: str) -> None:
    (said,) = reasons(observation() | changes)
    assert reason in said


def test_a_boolean_for_a_measured_quantity_is_set_aside() -> None:
    assert "a measured value in mg/dL is expected" in reasons(_without_value(valueBoolean=True))[0]


@pytest.mark.parametrize("status", ["entered-in-error", "cancelled"])
def test_what_does_not_hold_is_retracted(status: str) -> None:
    record = read_one(observation(status=status))
    assert record.observations == ()
    assert record.retracted == (("Observation", "o1"),)


def test_a_panel_is_counted_and_not_set_aside() -> None:
    assert read_all(_without_value(hasMember=[{"reference": "Observation/o2"}])) == []
    assert "no value[x]" in reasons(_without_value())[0]


def test_the_encounter_is_kept() -> None:
    (found,) = read_one(
        observation(encounter={"reference": "https://ehr.example/fhir/Encounter/e9"})
    ).observations
    assert found.encounter_id == "e9"


def test_text_that_no_database_holds_is_cleaned() -> None:
    (found,) = read_one(_without_value(valueString="a\0b\ud800c")).observations
    assert found.value_text == "ab?c"


def test_a_result_that_only_says_when_it_was_issued() -> None:
    only_issued = observation(issued="2020-05-04T10:00:00Z")
    only_issued.pop("effectiveDateTime")
    (found,) = read_one(only_issued).observations
    assert found.effective_at == found.available_at == datetime(2020, 5, 4, 10, tzinfo=UTC)


def test_spellings_of_code_systems_and_displays() -> None:
    code = {"coding": [{"system": "https://loinc.org/", "code": "2160-0", "display": "Creat\u200binine"}]}
    (found,) = read_one(observation(value=100, unit="umol/L", code=code)).observations
    assert (found.code.key, found.code.display) == ("http://loinc.org|2160-0", "Creatinine")
    assert found.unit == "mg/dL"


def test_a_status_that_is_no_code_of_fhir_is_set_aside_with_its_element() -> None:
    (reason,) = reasons(observation(status="final!"))
    assert reason.startswith("Observation.status is not a code of its required value set: ")
