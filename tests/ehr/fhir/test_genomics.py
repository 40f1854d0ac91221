# ruff: noqa: E501 - tables are read by row
"""Variants, what they mean, and scores."""

from __future__ import annotations

from typing import Any

from ehr import ReadingTally
from tests.ehr.fhir.resources_for_tests import coded, read_all, read_one, resource


def part(code: str, display: str) -> dict[str, Any]:
    return {"code": coded(code), "valueCodeableConcept": coded("x", "urn:x", display)}


def variant(**changes: Any) -> dict[str, Any]:
    return resource(
        "Observation", status="final", effectiveDateTime="2020", code=coded("69548-6"),
        valueCodeableConcept=coded("LA9633-4", display="Present"),
        component=[part("48018-6", "BRCA1"), part("48004-6", "NM_007294.4:c.68_69del")],
    ) | changes  # fmt: skip


def test_a_variant() -> None:
    (found,) = read_one(variant()).genomics
    assert (found.kind, found.gene, found.variant, found.present) == (
        "variant",
        "BRCA1",
        "NM_007294.4:c.68_69del",
        True,
    )
    assert found.available_at
    assert found.available_at.year == 2020


def test_an_absent_variant_is_known_to_be_absent() -> None:
    assert read_one(variant(valueCodeableConcept=coded("LA9634-2"))).genomics[0].present is False
    assert read_one(variant(valueCodeableConcept=coded("LA18198-4"))).genomics[0].present is None


def test_an_implication_carries_the_significance_of_its_variant() -> None:
    meaning = resource(
        "Observation", status="final", code=coded("diagnostic-implication", "http://hl7.org/fhir/uv/genomics-reporting"),
        component=[part("53037-8", "Pathogenic")], derivedFrom=[{"reference": "Observation/v1"}],
    )  # fmt: skip
    found = read_one(variant(id="v1"), meaning).genomics
    assert [(item.gene, item.significance) for item in found] == [("BRCA1", ""), ("BRCA1", "Pathogenic")]
    assert found[1].present is True, "a model counts only what is said to be present"


def test_an_implication_is_known_when_what_it_takes_over_was() -> None:
    """Its gene and presence come from the variant: from then on they were known, and not before."""
    meaning = resource(
        "Observation", status="final", code=coded("diagnostic-implication", "http://hl7.org/fhir/uv/genomics-reporting"),
        component=[part("53037-8", "Pathogenic")], derivedFrom=[{"reference": "Observation/v1"}],
        issued="2019-01-01T10:00:00Z",
    )  # fmt: skip
    for dates, known in (
        ({"issued": "2021-03-04T10:00:00Z"}, 2021),
        ({"issued": "2018-03-04T10:00:00Z", "effectiveDateTime": "2018"}, 2019),
        ({"effectiveDateTime": "2022"}, 2022),
    ):
        _, found = read_one(variant(id="v1", **dates), meaning).genomics
        assert found.available_at is not None
        assert (found.available_at.year, found.gene) == (known, "BRCA1")
    del meaning["issued"]
    assert read_one(variant(id="v1"), meaning).genomics[1].available_at is None, "it does not say so itself"


def test_a_significance_without_words_is_known_by_its_code() -> None:
    bare = {"code": coded("53037-8"), "valueCodeableConcept": coded("LA26332-9")}
    assert read_one(variant(component=[bare])).genomics[0].significance == "Likely pathogenic"


def test_a_polygenic_score() -> None:
    score = resource("Observation", status="final", category=[coded("GE", "urn:x")], valueQuantity={"value": 1.7},
                     code={"text": "Polygenic risk score, coronary artery disease"})  # fmt: skip
    (found,) = read_one(score).genomics
    assert (found.kind, found.value) == ("score", 1.7)
    assert read_one(score).observations == ()


def test_what_is_not_read_is_counted() -> None:
    tally = ReadingTally()
    read_all(variant(code=coded("84414-2")), tally=tally)
    assert tally.ignored == {"Observation (genomics: haplotype)": 1}
