"""The simulated bundles: valid FHIR R4, labelled as simulated, without what happened later or why."""

import base64
import json
from datetime import UTC, datetime

import pytest
from fhir.resources.R4B.bundle import Bundle

from cds import catalogue
from cds.demo.record import build_bundle
from cds.demo.simulating import simulate_cohort

ANCHOR = datetime(2026, 11, 23, 14, tzinfo=UTC)


@pytest.fixture(scope="module")
def pairs():
    return [
        (patient, build_bundle(patient)) for patient in simulate_cohort(seed=3, patients=24, anchor=ANCHOR)
    ]


def resources(bundle, kind):
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def test_bundles_are_valid_and_tagged(pairs):
    for _, bundle in pairs:
        Bundle.model_validate(bundle)
        for entry in bundle["entry"]:
            assert entry["resource"]["meta"]["tag"][0]["code"] == "HTEST"
        assert resources(bundle, "Patient")[0]["name"][0]["family"].endswith("-Simulated")


def test_bundles_are_deterministic(pairs):
    for patient, bundle in pairs[:3]:
        assert build_bundle(patient) == bundle


def test_outcomes_are_in_encounters_and_death_and_nowhere_else(pairs):
    for patient, bundle in pairs:
        places = [e["location"][0]["location"]["display"] for e in resources(bundle, "Encounter")]
        assert ("Simulated Intensive Care Unit" in places) == (patient.intensive_care_at is not None)
        assert ("deceasedDateTime" in resources(bundle, "Patient")[0]) == (patient.died_at is not None)
        for note in resources(bundle, "DocumentReference"):
            text = base64.b64decode(note["content"][0]["attachment"]["data"]).decode().lower()
            assert "intensive" not in text
            assert "icu" not in text
            assert "died" not in text


def test_causes_and_oracle_are_not_written_down(pairs):
    for patient, bundle in pairs:
        written = json.dumps(bundle)
        assert "oracle" not in written
        for value in (patient.causes.lung, patient.causes.heart, patient.causes.ejection_fraction):
            assert f"{value:.4f}" not in written


def test_current_patients_have_an_open_stay(pairs):
    for patient, bundle in pairs:
        stay = next(e for e in resources(bundle, "Encounter") if e["id"].endswith("-stay"))
        assert (stay["status"] == "in-progress") == patient.is_current
        assert ("end" in stay["period"]) != patient.is_current


def test_measurements_use_the_catalogue_and_follow_physiology():
    known = {code: m.unit for m in catalogue.LATEST for code in m.loinc}
    patients = simulate_cohort(seed=3, patients=60, anchor=ANCHOR)
    weak, strong = [], []
    for patient in patients:
        for one in resources(build_bundle(patient), "Observation"):
            code = one["code"].get("coding", [{}])[0].get("code")
            if "valueQuantity" in one and code:
                assert known[code] == one["valueQuantity"]["code"]
            if code == "2160-0":
                (strong if patient.causes.physiology > 0 else weak).append(one["valueQuantity"]["value"])
    assert sum(strong) / len(strong) > 1.15 * sum(weak) / len(weak)
