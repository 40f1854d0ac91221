"""Device, DiagnosticReport, Provenance and RiskAssessment: valid by independent validators; who made what."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ehr import BadResource, build_device, build_diagnostic_report, build_provenance
from tests.ehr.fhir.test_risk_assessment import NOW, build
from tests.ehr.fhir.validating import list_faults

UUID = "6f0d7c1e-0d8f-4a37-9b43-0a5a4a4f7d12"
DIGEST = "ab" * 32


def report(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "identifier": UUID, "status": "final", "patient_id": "p1", "risk_assessment_id": "7",
        "outcome": "Admission to intensive care", "occurred_at": NOW, "issued_at": NOW + timedelta(seconds=3),
        "panel_url": "https://tessera.example/patients/x/risk", "conclusion": "42 %.", "encounter_id": "e1",
        "study_uids": ["1.2.840.1.5", "1.2.840.1.5"],
    }  # fmt: skip
    return build_diagnostic_report(**(arguments | changes))


def device() -> dict[str, Any]:
    return build_device(
        identifier=UUID, name="icu-admission", version="3", digest=DIGEST, notice="Research use only"
    )


def provenance(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "target": "RiskAssessment/7", "device_id": "1", "recorded_at": NOW, "model_digest": DIGEST,
        "inputs_digest": "cd" * 32,
    }  # fmt: skip
    return build_provenance(**(arguments | changes))


@pytest.mark.parametrize(
    "resource",
    [
        device(),
        report(),
        report(status="preliminary", conclusion="", encounter_id="", study_uids=()),
        provenance(),
        provenance(is_amended=True),
        build(device_id="1", notice="Research use only"),
        build(basis=[("ImagingStudy", "1.2.840.1.5"), ("Observation", "o1")]),
    ],
    ids=lambda resource: resource["resourceType"],
)
def test_validators_find_no_fault(resource: dict[str, Any]) -> None:
    assert list_faults(resource) == []


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"status": "finished"}, "Pyrofile"),
        ({"performer": {"reference": "#nobody"}}, "Pyrofile"),
        ({"subject": None}, "fhirkit"),
        ({"occurrenceDateTime": "2026-13-01"}, "fhirkit"),
        ({"risk": 42}, "fhir.resources"),
    ],
)
def test_the_validators_see_faults(changes: dict[str, Any], by: str) -> None:
    broken = {name: value for name, value in (build() | changes).items() if value is not None}
    assert any(fault.startswith(by) for fault in list_faults(broken))


def test_they_point_to_each_other_and_name_the_model() -> None:
    made = provenance()
    digests = [one["what"]["identifier"]["value"] for one in made["entity"]]
    assert digests == [DIGEST, "cd" * 32]
    assert made["agent"][0]["who"] == {"reference": "Device/1"}
    assert made["target"] == [{"reference": "RiskAssessment/7"}]
    pointer = report()
    assert pointer["extension"][0]["valueReference"] == {"reference": "RiskAssessment/7"}
    assert pointer["presentedForm"][0]["url"].endswith("/risk")
    assert pointer["imagingStudy"] == [
        {"type": "ImagingStudy", "identifier": {"system": "urn:dicom:uid", "value": "urn:oid:1.2.840.1.5"}}
    ]
    assert build(device_id="9")["performer"]["reference"] == "Device/9"
    assert "contained" not in build(device_id="9")


def test_a_study_known_by_uid_only_is_a_logical_reference() -> None:
    assert build(basis=[("ImagingStudy", "s1"), ("ImagingStudy", "1.2.840.1.5")])["basis"] == [
        {"reference": "ImagingStudy/s1"},
        {"type": "ImagingStudy", "identifier": {"system": "urn:dicom:uid", "value": "urn:oid:1.2.840.1.5"}},
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"patient_id": ""},
        {"risk_assessment_id": "", "conclusion": ""},  # the report would say nothing
        {"issued_at": NOW.replace(tzinfo=None)},
    ],
)
def test_a_report_without_its_ends_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadResource):
        report(**changes)
