"""Parts of a prefetch: what was read before need not be read again, and the record comes out the same."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ehr import PatientRecord, prefetch_parts, read_prefetch
from ehr.fhir import prefetch_parts as module
from tests.ehr.fhir.resources_for_tests import coded, encounter, observation, patient, resource
from tests.ehr.fhir.test_genomics import part, variant

Prefetch = dict[str, Any]
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"


def searchset(*resources: Any) -> Prefetch:
    return {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": one} for one in resources]}


def read_after(before: Prefetch, now: Prefetch) -> PatientRecord:
    """What is read of `now` by somebody who has read `before`."""
    unread = prefetch_parts(now).unread(prefetch_parts(before).packed)
    return read_prefetch(now, patient_id="p1", unread=unread)


def lab(identity: str, value: float, **changes: Any) -> dict[str, Any]:
    return observation(value=value, id=identity, **changes)


def test_only_what_is_new_or_changed_is_read() -> None:
    before = {"patient": patient(), "labs": searchset(lab("a", 1), lab("b", 2)), "stay": encounter()}
    record = read_after(before, {**before, "labs": searchset(lab("b", 2), lab("a", 9), lab("c", 3))})
    assert [(one.resource_id, one.value) for one in record.observations] == [("a", 9.0), ("c", 3.0)]
    assert record.patient.is_stub, "nothing new is said of who it is"
    assert record.encounters == ()
    assert read_after(before, before).observations == ()


def test_all_is_read_by_whoever_has_read_nothing() -> None:
    now = {"patient": patient(), "labs": searchset(lab("a", 1))}
    assert read_after({}, now) == read_prefetch(now, patient_id="p1")


def test_a_changed_patient_is_read() -> None:
    record = read_after({"patient": patient()}, {"patient": patient(gender="male")})
    assert (record.patient.is_stub, record.patient.sex) == (False, "male")


def test_of_two_versions_of_a_resource_both_are_read() -> None:
    """Or an older one that is new here would take the place of the newer one."""
    newer = lab("a", 2, meta={"lastUpdated": "2024-01-02T00:00:00Z"})
    before = {"labs": searchset(newer), "vitals": searchset()}
    older = lab("a", 1, meta={"lastUpdated": "2024-01-01T00:00:00Z"})
    record = read_after(before, {**before, "vitals": searchset(older)})
    assert [one.value for one in record.observations] == [2.0]


def test_what_others_point_to_has_them_read_again() -> None:
    order = resource("MedicationRequest", id="r1", medicationReference={"reference": "Medication/m1"})
    drug = {"resourceType": "Medication", "id": "m1", "code": coded("860975", RXNORM)}
    before = {"medications": searchset(order, drug)}
    other = {**drug, "code": coded("197361", RXNORM)}
    (found,) = read_after(before, {"medications": searchset(order, other)}).medications
    assert found.code.code == "197361"

    meaning = resource(
        "Observation",
        id="i1",
        status="final",
        code=coded("diagnostic-implication", "http://hl7.org/fhir/uv/genomics-reporting"),
        component=[part("53037-8", "Pathogenic")],
        derivedFrom=[{"reference": "Observation/v1"}],
    )
    before = {"variants": searchset(variant(id="v1"), meaning)}
    absent = variant(id="v1", valueCodeableConcept=coded("LA9634-2"))
    found = read_after(before, {"variants": searchset(absent, meaning)}).genomics
    assert {one.present for one in found} == {False}


def test_what_points_to_others_still_finds_them_when_they_say_nothing_new() -> None:
    drug = {"resourceType": "Medication", "id": "m1", "code": coded("860975", RXNORM)}
    order = resource("MedicationRequest", id="r1", medicationReference={"reference": "Medication/m1"})
    (found,) = read_after(
        {"medications": searchset(drug)}, {"medications": searchset(drug, order)}
    ).medications
    assert found.code.code == "860975"


def test_a_bundle_within_a_bundle_has_all_read() -> None:
    before = {"labs": searchset(lab("a", 1), searchset(lab("b", 2)))}
    record = read_after(before, {"labs": searchset(lab("a", 1), searchset(lab("b", 3)))})
    assert {one.resource_id for one in record.observations} == {"a", "b"}


@pytest.mark.parametrize(
    "broken", [{"resourceType": {}}, {"id": ["a"]}, {"id": {"a": 1}}, {"id": None}, {"code": 7}, {"code": []}]
)
def test_what_is_broken_is_read_and_set_aside_as_ever(broken: dict[str, Any]) -> None:
    before = {"labs": searchset(lab("a", 1))}
    now = {"labs": searchset(lab("a", 1), {**lab("b", 2), **broken})}
    told = {(one.kind, one.reason) for one in read_after(before, now).set_aside}
    assert told == {(one.kind, one.reason) for one in read_prefetch(now, patient_id="p1").set_aside}


@pytest.mark.parametrize(
    "value", [None, 7, {"resourceType": "Bundle", "entry": 7}, {"resourceType": "Bundle"}]
)
def test_what_holds_no_resource_has_no_parts(value: Any) -> None:
    assert prefetch_parts({"labs": value}).packed == b""


def test_another_salt_or_another_reader_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prefetch = {"labs": searchset(lab("a", 1))}
    known = prefetch_parts(prefetch, salt="map 1").packed
    assert prefetch_parts(prefetch, salt="map 1").unread(known)
    assert not prefetch_parts(prefetch, salt="map 2").unread(known)
    monkeypatch.setattr(module, "reader_fingerprint", lambda: "another release")
    assert not prefetch_parts(prefetch, salt="map 1").unread(known)


def test_whoever_reads_only_what_is_new_knows_as_much_as_whoever_reads_all() -> None:
    """Over long random courses, with resources that come, change, go, and point to each other."""
    for seed in range(60):
        rng = random.Random(seed)
        whole, parts = dict[Any, Any](), dict[Any, Any]()
        before: Prefetch = {}
        for _ in range(8):
            now = _random_prefetch(rng, before)
            _overlay(whole, read_prefetch(now, patient_id="p1"))
            _overlay(parts, read_after(before, now))
            assert parts == whole, seed
            before = now


def _overlay(held: dict[Any, Any], record: PatientRecord) -> None:
    """As an import does: what a resource says takes the place of what it said; what is not named stays."""
    said: dict[Any, list[Any]] = {}
    for facts in (record.observations, record.medications, record.encounters, record.genomics):
        for one in facts:
            said.setdefault((one.resource_type, one.resource_id), []).append(one)
    held.update(said)
    for key in record.retracted:
        held.pop(key, None)


def _random_prefetch(rng: random.Random, before: Prefetch) -> Prefetch:
    def some() -> dict[str, Any]:
        match rng.randrange(6):
            case 0:
                return lab(
                    f"o{rng.randrange(4)}",
                    rng.randrange(3),
                    status=rng.choice(["final", "final", "entered-in-error"]),
                )
            case 1:
                return {
                    "resourceType": "Medication",
                    "id": "m1",
                    "code": coded(rng.choice(["860975", "197361"]), RXNORM),
                }
            case 2:
                return resource(
                    "MedicationRequest",
                    id=f"r{rng.randrange(2)}",
                    status=rng.choice(["active", "stopped"]),
                    medicationReference={"reference": "Medication/m1", "display": "a drug"},
                )
            case 3:
                return encounter(id="e1", status=rng.choice(["in-progress", "finished"]))
            case 4:
                return variant(id="v1", valueCodeableConcept=coded(rng.choice(["LA9633-4", "LA9634-2"])))
            case _:
                return resource(
                    "Observation",
                    id="i1",
                    status="final",
                    code=coded("diagnostic-implication", "http://hl7.org/fhir/uv/genomics-reporting"),
                    component=[part("53037-8", rng.choice(["Pathogenic", "Benign"]))],
                    derivedFrom=[{"reference": "Observation/v1"}],
                )

    held = [entry["resource"] for value in before.values() for entry in value["entry"]]
    # What others point to stays: of one that is left out, whoever reads all anew forgets what it said.
    kept = [one for one in held if one["id"] in ("m1", "v1") or rng.random() < 0.8]
    named: dict[Any, dict[str, Any]] = {}
    for one in [*kept, *(some() for _ in range(rng.randrange(3)))]:
        named[one["resourceType"], one["id"]] = one
    entries = list(named.values())
    rng.shuffle(entries)
    labs = [one for one in entries if one["id"].startswith("o")]
    return {"labs": searchset(*labs), "rest": searchset(*(one for one in entries if one not in labs))}
