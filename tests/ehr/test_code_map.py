"""A site's own codes: the table is checked by line and column, and applied to every kind of fact."""

from __future__ import annotations

from typing import Any

import pytest

from ehr import BadCodeMap, Loinc, OtherCode, PatientRecord, Snomed, read_code_map
from tests.ehr.fhir.resources_for_tests import coded, observation, read_one, resource

LAB = "urn:oid:1.2.276.0.99"
HEADER = "system,code,target_system,target_code,unit,factor,display,comment\n"


def table(*lines: str) -> bytes:
    return ("\ufeff" + HEADER + "\n".join(lines) + "\n").encode()


def mapped(line: str, *resources: dict[str, Any]) -> PatientRecord:
    return read_code_map(table(line)).apply(read_one(*resources))


def local(code: str, value: float, unit: str = "", **changes: Any) -> dict[str, Any]:
    found = observation(value=value, unit=unit, **changes) | {"code": coded(code, LAB, "Kreatinin")}
    if not unit:
        found["valueQuantity"] = {"value": value}
    return found


class TestApplying:
    def test_a_result_becomes_one_of_loinc_in_the_canonical_unit(self) -> None:
        (kept,) = mapped(f"{LAB},KREA,LOINC,2160-0,,,,", local("KREA", 88.4, "umol/L")).observations
        assert (kept.code, kept.unit) == (Loinc("2160-0"), "mg/dL")
        assert kept.value == pytest.approx(1.0, rel=1e-3)
        assert kept.also == (OtherCode("KREA", "Kreatinin", LAB),), "the local code stays"

    def test_a_unit_that_is_not_sent_comes_from_the_table(self) -> None:
        (kept,) = mapped(f"{LAB},KREA,LOINC,2160-0,umol/L,,,", local("KREA", 88.4)).observations
        assert kept.value == pytest.approx(1.0, rel=1e-3)

    def test_a_unit_of_the_house_is_replaced_and_one_of_ucum_is_not(self) -> None:
        line = f"{LAB},KREA,LOINC,2160-0,umol/L,,,"
        (house,) = mapped(line, local("KREA", 88.4, "Einh.")).observations
        (sent,) = mapped(line, local("KREA", 1.0, "mg/dL")).observations
        assert (house.value, sent.value) == (pytest.approx(1.0, rel=1e-3), 1.0)

    def test_a_factor_is_applied_to_value_and_range(self) -> None:
        ranges = [{"low": {"value": 5}, "high": {"value": 10}}]
        line = f"{LAB},KREA,LOINC,2160-0,mg/dL,0.1,,"
        (kept,) = mapped(line, local("KREA", 9, "dg/L", referenceRange=ranges)).observations
        assert (kept.value, kept.unit) == (pytest.approx(0.9), "mg/dL")

    def test_a_unit_that_does_not_fit_leaves_the_local_code_and_is_said(self) -> None:
        record = mapped(f"{LAB},KREA,LOINC,2160-0,,,,", local("KREA", 88.4, "mmHg"))
        assert record.observations[0].code == OtherCode("KREA", "Kreatinin", LAB)
        assert record.observations[0].value == 88.4
        assert "kept under its local code" in record.set_aside[0].reason

    def test_a_code_of_a_standard_is_left_alone(self) -> None:
        both = observation() | {"code": {"coding": [*coded("X", LAB)["coding"], *coded("2160-0")["coding"]]}}
        (kept,) = mapped(f"{LAB},X,LOINC,8480-6,,,,", both).observations
        assert kept.code == Loinc("2160-0")

    def test_conditions_drugs_procedures_allergies_notes_relatives_and_answers(self) -> None:
        line = f"{LAB},X,SNOMED,84114007,,,,"
        own = coded("X", LAB)
        record = mapped(
            line,
            resource("Condition", code=own),
            resource("MedicationRequest", medicationCodeableConcept=own, status="active"),
            resource("Procedure", code=own, status="completed"),
            resource("AllergyIntolerance", code=own, patient={"reference": "Patient/p1"}),
            resource("DiagnosticReport", code=own, status="final", conclusion="x"),
            resource(
                "FamilyMemberHistory",
                status="completed",
                relationship={"text": "father"},
                condition=[{"code": own}],
            ),
            observation(valueCodeableConcept=own) | {"id": "q", "valueQuantity": None},
        )
        codes = [
            record.conditions[0].code,
            record.medications[0].code,
            record.procedures[0].code,
            record.allergies[0].code,
            record.notes[0].kind,
            record.family_history[0].condition,
        ]
        assert codes == [Snomed("84114007")] * 6

    def test_an_empty_map_changes_nothing(self) -> None:
        record = read_one(local("KREA", 1))
        assert read_code_map(HEADER.encode()).apply(record) is record


class TestChecking:
    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            (f"{LAB},,LOINC,2160-0,,,,", "line 2, column code: is empty"),
            (f"{LAB},K,LIONC,2160-0,,,,", "line 2, column target_system: is one of LOINC, SNOMED"),
            (
                f"{LAB},K,LOINC,2160-1,,,,",
                "line 2, column target_code: is not a LOINC code (form",
            ),
            (
                f"{LAB},K,SNOMED,84114008,,,,",
                "column target_code: is not a SNOMED code (form",
            ),
            (f"{LAB},K,ICD-10,fever,,,,", "column target_code: is not a ICD-10 code"),
            (f"{LAB},K,LOINC,2160-0,mmHg,,,", "line 2, column unit: unit 'mmHg'"),
            (f"{LAB},K,LOINC,2160-0,,2,,", "column unit: is needed beside a factor"),
            (f'{LAB},K,LOINC,2160-0,mg/dL,"0,1",,', "column factor: is not a number above 0"),
            (f"{LAB},K,LOINC,2160-0,mg/dL,-1,,", "column factor: is not a number above 0"),
        ],
    )
    def test_line_and_column_are_named(self, line: str, problem: str) -> None:
        with pytest.raises(BadCodeMap) as refused:
            read_code_map(table(line))
        assert problem in refused.value.problems[0]

    def test_a_code_twice_names_both_lines(self) -> None:
        line = f"{LAB},K,LOINC,2160-0,,,,"
        with pytest.raises(BadCodeMap, match="line 3, column code: the same code as line 2"):
            read_code_map(table(line, line))

    def test_a_missing_column_and_a_wrong_encoding_are_said(self) -> None:
        with pytest.raises(BadCodeMap, match="no column target_code"):
            read_code_map(b"system,code,target_system\n")
        with pytest.raises(BadCodeMap, match="line 2: not UTF-8"):
            read_code_map(HEADER.encode() + "x,Stück,LOINC,2160-0".encode("latin-1"))

    def test_everything_wrong_is_told_at_once(self) -> None:
        with pytest.raises(BadCodeMap) as refused:
            read_code_map(table(f"{LAB},A,LOINC,1-1,,,,", f"{LAB},B,SNOMED,1,,,,"))
        assert len(refused.value.problems) == 2
