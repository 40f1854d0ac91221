"""Codes as types."""

from __future__ import annotations

import pytest

from ehr import Code, Icd10, Loinc, OtherCode, RxNorm, Snomed, parse_coding


@pytest.mark.parametrize(
    ("system", "code", "kind"),
    [
        ("http://loinc.org", "2160-0", Loinc),
        ("https://loinc.org/", "2160-0", Loinc),
        ("urn:oid:2.16.840.1.113883.6.1", "LA9633-4", Loinc),
        ("http://loinc.org", "not-loinc", OtherCode),
        ("http://snomed.info/sct", "305351004", Snomed),
        ("http://snomed.info/sct", "12", OtherCode),
        ("http://www.nlm.nih.gov/research/umls/rxnorm", "860975", RxNorm),
        ("http://hl7.org/fhir/sid/icd-10-cm", "I21.9", Icd10),
        ("urn:local", "CREA", OtherCode),
        ("", "CREA", OtherCode),
    ],
)
def test_a_coding_becomes_the_type_of_its_system(system: str, code: str, kind: type[Code]) -> None:
    found = parse_coding({"system": system, "code": code, "display": "x"})
    assert type(found) is kind
    assert found is not None
    assert found.code == code


def test_a_code_that_breaks_its_shape_is_kept_with_its_system() -> None:
    found = parse_coding({"system": "http://loinc.org", "code": "creatinine"})
    assert found is not None
    assert found.key == "http://loinc.org|creatinine"
    with pytest.raises(ValueError, match="is not a Loinc code"):
        Loinc("creatinine")


def test_no_code_is_none() -> None:
    assert parse_coding({"system": "http://loinc.org"}) is None
    assert parse_coding({"code": "  "}) is None
