# ruff: noqa: E501 - tables are read by row
"""ImagingStudy: which Study, where its pixels are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ehr.fhir.resources_for_tests import read_one, reasons, resource

CR = {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CR"}


def study(system: str = "urn:dicom:uid", value: str = "urn:oid:1.2.840.1", **changes: Any) -> dict[str, Any]:
    identifier = [{"system": "urn:accession", "value": "77"}, {"system": system, "value": value}]
    return resource("ImagingStudy", status="available", started="2020-05-03T10:00:00Z", identifier=identifier,
                    modality=[CR], series=[{"uid": "1.2", "modality": CR}]) | changes  # fmt: skip


@pytest.mark.parametrize("system", ["urn:dicom:uid", "urn:ietf:rfc:3986"])
def test_the_study_uid(system: str) -> None:
    (found,) = read_one(study(system)).imaging_studies
    assert (found.study_uid, found.modalities) == ("1.2.840.1", ("CR",))
    assert found.available_at == found.started_at


def test_where_the_pixels_are() -> None:
    endpoint = {"resourceType": "Endpoint", "id": "a", "address": "https://pacs.example/dicom-web"}
    bundle = {"resourceType": "Bundle", "entry": [{"resource": endpoint}, {"resource": study(endpoint=[{"reference": "Endpoint/a"}])}]}  # fmt: skip
    assert read_one(bundle).imaging_studies[0].endpoint == "https://pacs.example/dicom-web"


@pytest.mark.parametrize(
    "value", ["", "urn:oid:", "1.2.x", "1" * 65, "urn:uuid:0b7cf2c8-4f2f-4d36-9fd2-6a0a1d2a5a3e"]
)
def test_without_a_study_uid_it_is_set_aside(value: str) -> None:
    assert "no Study Instance UID" in reasons(study(value=value))[0]
