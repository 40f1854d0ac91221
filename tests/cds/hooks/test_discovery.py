"""Discovery and CORS: INTEROP 1-6 and 22."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client

from cds.registry.models import ActiveModel, ModelVersion
from tests.cds.hooks.conftest import SERVICE, Call

TOKENS = {"{{context.patientId}}"}
SEARCH = re.compile(r"[A-Z][A-Za-z]+\?[a-z]+=[^&]+(&[_a-z]+=[^&]+)*")
PARAMETERS = {"patient", "code", "category", "_sort", "_count"}


def list_services(call: Call) -> list[dict[str, Any]]:
    response = call("/cds-services")
    assert response.status_code == 200
    return response.json()["services"]


def test_one_patient_view_service_per_active_outcome(call: Call, version: ModelVersion) -> None:
    ActiveModel.objects.create(outcome="death", version=version, since=version.created_at)
    services = list_services(call)
    assert [one["id"] for one in services] == [
        "tessera-icu-admission-patient-view",
        "tessera-death-patient-view",
    ]
    for one in services:
        assert one["hook"] == "patient-view"
        assert set(one) <= {"hook", "id", "title", "description", "prefetch", "usageRequirements"}
        assert all(one.values())  # nothing null or empty (INTEROP 4)


def test_without_an_active_model_there_is_no_service(call: Call) -> None:
    assert list_services(call) == []


def test_templates_use_only_what_2_0_allows(call: Call, version: ModelVersion) -> None:
    (service,) = list_services(call)
    for template in service["prefetch"].values():
        assert set(re.findall(r"\{\{.*?\}\}", template)) <= TOKENS
        plain = template.replace("{{context.patientId}}", "p1")
        if "?" not in plain:
            assert plain == "Patient/p1"
            continue
        assert SEARCH.fullmatch(plain)
        assert {one.split("=")[0] for one in plain.split("?")[1].split("&")} <= PARAMETERS


def test_templates_are_sized_to_the_model(call: Call, version: ModelVersion) -> None:
    assert {"notes", "imaging"} <= set(list_services(call)[0]["prefetch"])
    ModelVersion.objects.filter(pk=version.pk).update(encoders={})
    assert not {"notes", "imaging"} & set(list_services(call)[0]["prefetch"])


@pytest.mark.parametrize("path", ["/cds-services", SERVICE, f"{SERVICE}/feedback"])
def test_preflight_only_for_registered_origins(call: Call, version: ModelVersion, path: str) -> None:
    http = Client()
    allowed = http.options(path, headers={"Origin": "https://ehr.example.org"})
    assert allowed.status_code == 204
    assert allowed["Access-Control-Allow-Origin"] == "https://ehr.example.org"
    assert "Authorization" in allowed["Access-Control-Allow-Headers"]
    refused = http.options(path, headers={"Origin": "https://elsewhere.example"})
    assert refused.status_code == 403
    assert "Access-Control-Allow-Origin" not in refused
    answer = call(path, {} if path != "/cds-services" else None, Origin="https://ehr.example.org")
    assert answer["Access-Control-Allow-Origin"] == "https://ehr.example.org"
    assert "Origin" in answer["Vary"]
