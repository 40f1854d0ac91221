"""Prefetch: null, absent, failed, whole, partial, and never another patient's."""

from __future__ import annotations

from typing import Any

import pytest

from ehr import BadResource, PatientRecord, read_prefetch
from tests.ehr.fhir.resources_for_tests import encounter, observation, patient


def searchset(*resources: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        "entry": [{"resource": item} for item in resources],
    } | changes


def read(**prefetch: Any) -> PatientRecord:
    return read_prefetch(prefetch, patient_id="p1")


def test_resources_and_bundles() -> None:
    record = read(patient=patient(), labs=searchset(observation()), stay=encounter())
    assert not record.patient.is_stub
    assert (len(record.observations), len(record.encounters), record.set_aside) == (1, 1, ())


def test_null_says_there_is_none_and_absent_says_nothing() -> None:
    record = read(patient=patient(), labs=None)
    assert (record.observations, record.set_aside) == ((), ())
    assert read().patient.is_stub
    assert read(labs=searchset(entry=None)).observations == ()


def test_an_operation_outcome_is_said() -> None:
    outcome = {
        "resourceType": "OperationOutcome",
        "issue": [{"code": "forbidden", "diagnostics": "no scope"}],
    }
    (item,) = read(labs=outcome).set_aside
    assert (item.where, item.reason) == ("prefetch.labs", "the client failed: forbidden no scope")


def test_further_pages_are_said() -> None:
    paged = searchset(observation(), link=[{"relation": "next", "url": "https://ehr.example/2"}])
    record = read(labs=paged)
    assert len(record.observations) == 1
    assert "further pages" in record.set_aside[0].reason


@pytest.mark.parametrize(
    "other",
    [
        patient(id="p2"),
        observation(subject={"reference": "Patient/p2"}),
        searchset(observation(), observation(id="o2", subject={"reference": "Patient/p2"})),
        searchset(patient(id="p2")),
        searchset(searchset(observation(subject={"reference": "https://ehr.example/Patient/p2"}))),
        observation(subject={"reference": "Patient/p2"}, status="entered-in-error"),
        observation(subject={"reference": "Patient/p2"}, valueQuantity={"value": "bad"}),
    ],
)
def test_another_patient_is_never_taken(other: dict[str, Any]) -> None:
    with pytest.raises(BadResource, match=r"prefetch"):
        read(patient=patient(), other=other)


@pytest.mark.parametrize("value", [7, "x", [], True])
def test_what_is_no_resource(value: Any) -> None:
    with pytest.raises(BadResource, match=r"prefetch\.x must be a FHIR resource or null"):
        read(x=value)


def test_what_names_nobody_is_set_aside() -> None:
    record = read(
        patient=patient(), labs=searchset(observation(subject=None), {"no": "resource"}, observation(id="o2"))
    )
    assert [found.resource_id for found in record.observations] == ["o2"]
    assert [item.reason for item in record.set_aside] == [
        "Observation names no patient",
        "not a FHIR resource: resourceType is missing",
    ]


def test_a_bad_value_is_set_aside_for_this_patient() -> None:
    record = read(patient=patient(), labs=searchset(observation(unit="kg"), observation(id="o2")))
    assert [found.resource_id for found in record.observations] == ["o2"]
    assert "cannot be converted" in record.set_aside[0].reason
