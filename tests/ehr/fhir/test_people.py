"""Patient: names, birth, death, merging."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from ehr import Identifier, Sex
from tests.ehr.fhir.resources_for_tests import observation, patient, read_one, reasons


def test_a_patient() -> None:
    found = read_one(
        patient(
            name=[
                {"use": "old", "family": "Maiden"},
                {"use": "official", "family": "Doe", "given": ["Jane", "Q"]},
            ],
            identifier=[
                {"system": "urn:mrn", "value": "77"},
                {"use": "old", "value": "1"},
                {"system": "urn:x"},
                {"system": "urn:mrn", "value": "77"},
            ],
        )
    ).patient
    assert (found.family, found.given, found.sex) == ("Doe", "Jane Q", Sex.FEMALE)
    assert found.birth_date == date(1950, 2, 3)
    assert found.identifiers == (Identifier("urn:mrn", "77"),)
    assert not found.is_stub


def test_death() -> None:
    assert read_one(patient(deceasedBoolean=True)).patient.deceased
    exact = read_one(patient(deceasedDateTime="2020-05-03T10:00:00Z")).patient
    assert (exact.deceased, exact.deceased_at) == (True, datetime(2020, 5, 3, 10, tzinfo=UTC))
    vague = read_one(patient(deceasedDateTime="2020")).patient
    assert (vague.deceased, vague.deceased_at) == (True, None)  # an outcome needs the day


def test_a_merged_patient_names_the_survivor() -> None:
    link = [{"type": "replaced-by", "other": {"reference": "Patient/p2"}}]
    assert read_one(patient(link=link)).patient.replaced_by == "p2"


def test_a_patient_only_referred_to_is_a_stub() -> None:
    record = read_one(observation())
    assert record.patient.is_stub
    assert len(record.observations) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gender": "F"}, "Patient.gender is not a code of administrative-gender"),
        ({"birthDate": "unknown"}, "Patient.birthDate is not a FHIR date"),
        ({"name": "Jane"}, "Patient.name must be a list of objects"),
        ({"deceasedBoolean": "no"}, "Patient.deceasedBoolean must be true or false"),
        ({"meta": {"lastUpdated": "x"}}, "Patient.meta.lastUpdated is not"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], reason: str) -> None:
    assert reason in reasons(patient(**changes))[0]


def test_the_version_last_updated_counts_wherever_it_stands() -> None:
    new = patient(gender="male", meta={"lastUpdated": "2021-01-01T00:00:00Z"})
    old = patient(meta={"lastUpdated": "2020-01-01T00:00:00Z"})
    assert read_one(new, old).patient.sex is Sex.MALE
    assert read_one(old, new).patient.sex is Sex.MALE
    newer = observation(value=2.0, meta={"lastUpdated": "2021-01-01T00:00:00Z"})
    assert [found.value for found in read_one(newer, observation()).observations] == [2.0]
    wrong = observation(status="entered-in-error", meta={"lastUpdated": "2022-01-01T00:00:00Z"})
    record = read_one(wrong, newer)
    assert (record.observations, record.retracted) == ((), (("Observation", "o1"),))
