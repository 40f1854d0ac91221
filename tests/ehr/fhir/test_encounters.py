"""Which stays are intensive care: a table to be read with a hospital."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from ehr import EncounterKind, names_intensive_care
from tests.ehr.fhir.resources_for_tests import coded, encounter, read_one, reasons

SNOMED = "http://snomed.info/sct"
K = EncounterKind

KINDS: list[tuple[str, dict[str, Any], EncounterKind]] = [
    ("IMP", {}, K.INPATIENT),
    ("ACUTE", {}, K.INPATIENT),
    ("OBSENC", {}, K.INPATIENT),
    ("EMER", {}, K.EMERGENCY),
    ("AMB", {}, K.AMBULATORY),
    ("VR", {}, K.AMBULATORY),
    ("UNHEARD", {}, K.OTHER),
    ("IMP", {"type": [coded("305351004", SNOMED, "Admission to intensive care unit")]}, K.INTENSIVE_CARE),
    ("IMP", {"type": [coded("local-7", "urn:x", "Medical ICU")]}, K.INTENSIVE_CARE),
    ("IMP", {"type": [{"text": "Intensive care"}]}, K.INTENSIVE_CARE),
    ("IMP", {"serviceType": coded("408478003", SNOMED)}, K.INTENSIVE_CARE),
    ("IMP", {"location": [{"location": {"display": "MICU bed 4"}}]}, K.INTENSIVE_CARE),
    ("IMP", {"location": [{"location": {"display": "Ward 7"}}]}, K.INPATIENT),
    ("AMB", {"type": [{"text": "Post ICU follow-up clinic"}]}, K.AMBULATORY),
    ("IMP", {"location": [{"location": {"display": "ICU step-down"}}]}, K.INPATIENT),
]


@pytest.mark.parametrize(("code", "changes", "kind"), KINDS)
def test_kind_of_stay(code: str, changes: dict[str, Any], kind: EncounterKind) -> None:
    (stay,) = read_one(encounter(code, **changes)).encounters
    assert stay.kind is kind


@pytest.mark.parametrize(
    "text", ["ICU", "Surgical ICU 2", "neuro-ICU", "Critical Care Unit", "Intensivstation 3", "CCU"]
)
def test_names_of_intensive_care(text: str) -> None:
    assert names_intensive_care(text)


@pytest.mark.parametrize(
    "text", ["Difficult airway", "Ward 12", "Post-ICU clinic", "Intermediate care ICU", ""]
)
def test_names_of_other_places(text: str) -> None:
    assert not names_intensive_care(text)


def test_a_transfer_to_intensive_care_is_a_stay_of_its_own() -> None:
    locations = [
        {"location": {"display": "Ward 7"}, "period": {"start": "2020-05-03", "end": "2020-05-04"}},
        {
            "location": {"display": "ICU"},
            "period": {"start": "2020-05-04T08:00:00Z", "end": "2020-05-06T08:00:00Z"},
        },
    ]
    stay, intensive = read_one(encounter(location=locations)).encounters
    assert stay.kind is K.INPATIENT
    assert (intensive.kind, intensive.part, intensive.part_of) == (K.INTENSIVE_CARE, "icu-2", "e1")
    assert intensive.start == datetime(2020, 5, 4, 8, tzinfo=UTC) == intensive.available_at
    assert intensive.end == datetime(2020, 5, 6, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("places", "place", "since"),
    [
        ([("A", "2020-05-03"), ("B", "2020-05-06")], "B", "2020-05-06"),
        ([("B", "2020-05-06"), ("A", "2020-05-03")], "B", "2020-05-06"),
        ([("A", "2020-05-03"), ("B", "")], "B", ""),
        ([("A", "2020-05-03"), ("B", "2020-05-06 planned")], "A", "2020-05-03"),
        ([("B", "2020-05-06 reserved")], "", ""),
    ],
    ids=["in order", "the other way", "without a period", "planned", "only planned"],
)
def test_where_the_patient_is_and_since_when(places: list[tuple[str, str]], place: str, since: str) -> None:
    said = []
    for name, when in places:
        start, _, status = when.partition(" ")
        period = {"period": {"start": f"{start}T08:00:00Z"}} if start else {}
        said.append({"location": {"display": name}, **period, **({"status": status} if status else {})})
    (stay,) = read_one(encounter(location=said)).encounters
    assert stay.location == place
    assert (stay.located_at.date().isoformat() if stay.located_at else "") == since


def test_the_code_of_a_location_counts() -> None:
    place = {"resourceType": "Location", "id": "l1", "name": "4 West", "type": [
        coded("ICU", "http://terminology.hl7.org/CodeSystem/v3-RoleCode")]}  # fmt: skip
    (stay,) = read_one(place, encounter(location=[{"location": {"reference": "Location/l1"}}])).encounters
    assert (stay.kind, stay.location) == (K.INTENSIVE_CARE, "4 West")


def test_an_open_stay_has_no_end_and_is_known_from_its_start() -> None:
    (stay,) = read_one(encounter(status="in-progress", period={"start": "2020-05-03"})).encounters
    assert stay.end is None
    assert stay.start == datetime(2020, 5, 3, tzinfo=UTC)
    assert stay.available_at == datetime(2020, 5, 3, 23, 59, 59, 999999, tzinfo=UTC)


def test_entered_in_error_is_retracted() -> None:
    record = read_one(encounter(status="entered-in-error"))
    assert record.encounters == ()
    assert record.retracted == (("Encounter", "e1"),)


def test_a_broken_period_is_set_aside_with_its_rule() -> None:
    assert reasons(encounter(period={"start": "0000-01-01"})) == [
        "Encounter.period.start is not a FHIR date or dateTime"
    ]
