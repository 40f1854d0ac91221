"""Discovery and CORS: INTEROP 1-6 and 22."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import pytest
from django.test import Client
from django.utils import timezone

from cds.audit.models import AuditEvent
from cds.hooks import templates
from cds.hooks.models import HookClient
from cds.registry.models import ActiveModel, ModelVersion
from tests.cds.hooks.conftest import BASE, SERVICE, Call, hook_body, token

TOKENS = {"{{context.patientId}}"}
SEARCH = re.compile(r"[A-Z][A-Za-z]+\?[a-z]+=[^&]+(&[_a-z]+=[^&]+)*")
PARAMETERS = {"patient", "code", "category", "_sort", "_count"}


def list_services(call: Call) -> list[dict[str, Any]]:
    response = call("/cds-services")
    assert response.status_code == 200
    return response.json()["services"]


HOOKS = (
    "patient-view", "encounter-start", "encounter-discharge", "order-select", "order-sign",
    "appointment-book",
)  # fmt: skip


def test_one_service_per_active_outcome_and_hook(call: Call, version: ModelVersion) -> None:
    ActiveModel.objects.create(outcome="death", version=version, since=version.created_at)
    services = list_services(call)
    assert [(one["id"], one["hook"]) for one in services] == [
        (f"tessera-{outcome}-{hook}", hook) for outcome in ("icu-admission", "death") for hook in HOOKS
    ]
    for one in services:
        of_2_0 = {"hook", "id", "title", "description", "prefetch", "usageRequirements", "extension"}
        assert set(one) == of_2_0 | {"version", "hookVersion"}
        assert all(one.values())  # nothing null or empty (INTEROP 4)
        assert "icu-admission v3" in one["description"]
        assert (one["version"], one["hookVersion"]) == ("3.0.0", "1.0")  # INTEROP 3
        model = one["extension"]["tessera.model"]
        assert (model["name"], model["number"], model["digest"]) == ("icu-admission", 3, "0" * 64)
        assert model["card"].endswith(f"/models/{version.pk}/card")


def test_a_site_chooses_its_hooks(call: Call, version: ModelVersion, settings: Any) -> None:
    settings.HOOKS_OFFERED = ("order-sign", "patient-view")
    assert [one["hook"] for one in list_services(call)] == ["patient-view", "order-sign"]
    assert call("/cds-services/tessera-icu-admission-encounter-start", hook_body()).status_code == 404


def test_without_an_active_model_there_is_no_service(call: Call) -> None:
    assert list_services(call) == []


def test_templates_use_only_what_2_0_allows(call: Call, version: ModelVersion) -> None:
    for template in list_services(call)[0]["prefetch"].values():
        assert set(re.findall(r"\{\{.*?\}\}", template)) <= TOKENS
        plain = template.replace("{{context.patientId}}", "p1")
        if "?" not in plain:
            assert plain == "Patient/p1"
            continue
        assert SEARCH.fullmatch(plain)
        assert {one.split("=")[0] for one in plain.split("?")[1].split("&")} <= PARAMETERS


def version_that_reads(
    number: int, *, fields: tuple[str, ...] = (), channels: tuple[str, ...] = (), **changes: Any
) -> ModelVersion:
    """A version whose bundle says what it reads."""
    names = {"fields": fields, "channels": channels, "genomics": ()}
    config = {name: [{"name": one} for one in held] for name, held in names.items()}
    known: dict[str, Any] = {
        "name": "icu-admission",
        "number": number,
        "outcomes": ["icu-admission"],
        "path": "nowhere",
        "digest": "0" * 64,
        "metadata": {"config": {**config, "modalities": ["tabular", "series"]}},
        "created_at": timezone.now(),
    }
    return ModelVersion.objects.create(**{**known, **changes})


ALWAYS = {"patient", "encounters"}


@pytest.mark.parametrize(
    ("reads", "keys"),
    [
        ({}, ALWAYS),
        ({"fields": ("age", "female")}, ALWAYS),
        ({"fields": ("heart_failure",)}, ALWAYS | {"conditions"}),
        ({"fields": ("active_medications", "family_cardiac")}, ALWAYS | {"medications", "family"}),
        ({"fields": ("lactate", "smoker")}, ALWAYS | {"labs", "smoking"}),
        ({"channels": ("heart_rate",)}, ALWAYS | {"vitals"}),
        ({"encoders": {"text": "minilm:1"}}, ALWAYS | {"notes"}),
        ({"encoders": {"cine": "x:1"}}, ALWAYS | {"imaging"}),
    ],
)
@pytest.mark.django_db
def test_what_the_model_reads_is_asked_for_and_nothing_else(reads: dict[str, Any], keys: set[str]) -> None:
    assert set(templates.templates(version_that_reads(9, **reads))) == keys


@pytest.mark.django_db
def test_results_are_asked_for_by_the_codes_of_the_model_alone() -> None:
    asked = templates.templates(version_that_reads(9, fields=("lactate", "systolic_bp"), channels=("crp",)))
    codes = set(re.findall(r"http://loinc.org\|([0-9-]+)", asked["labs"]))
    assert codes == {"2524-7", "32693-4", "2518-9", "1988-5", "30522-7"}
    assert "85354-9" in asked["vitals"]  # a blood pressure comes as a panel: its own code finds nothing
    assert asked["labs"].endswith("&_sort=-date&_count=29")  # a course and a latest value


@pytest.mark.django_db
def test_an_input_too_few_had_in_training_is_not_asked_for() -> None:
    version = version_that_reads(9, encoders={"text": "minilm:1"})
    version.metadata["left_out"] = {"text, icu-admission": "too few"}
    version.save()
    assert "notes" not in templates.templates(version)


@pytest.mark.parametrize("path", ["/cds-services", SERVICE, f"{SERVICE}/feedback"])
def test_preflight_only_for_registered_origins(
    call: Call, version: ModelVersion, path: str, settings: Any
) -> None:
    settings.HOOKS_OPEN = True  # loopback too: what is no address at all must not trip over that
    http = Client()
    allowed = http.options(path, headers={"Origin": "https://ehr.example.org"})
    assert allowed.status_code == 204
    assert allowed["Access-Control-Allow-Origin"] == "https://ehr.example.org"
    assert "Authorization" in allowed["Access-Control-Allow-Headers"]
    refused = http.options(path, headers={"Origin": "https://elsewhere.example"})
    assert refused.status_code == 403
    assert "Access-Control-Allow-Origin" not in refused
    assert http.options(path, headers={"Origin": "http://["}).status_code == 403
    answer = call(path, {} if path != "/cds-services" else None, Origin="https://ehr.example.org")
    assert answer["Access-Control-Allow-Origin"] == "https://ehr.example.org"
    assert "Origin" in answer["Vary"]


@pytest.mark.parametrize(
    "path",
    ["/cds-services/", "/cds-services/a/b", "/cds-services/a/", f"{SERVICE}/", f"{SERVICE}/feedback/",
     "/cds-services//feedback", "/cds-services/tessera-%00-patient-view", "/cds-services/a%00/feedback",
     f"/cds-services/{'a' * 121}", "/cds-services/tessera-%0A-patient-view", "/cds-services/a%0Ab/c"],
)  # fmt: skip
def test_every_other_address_below_is_404_in_words_of_fhir(
    call: Call, version: ModelVersion, hook_client: HookClient, path: str
) -> None:
    seen = unquote(path)
    for body in (None, hook_body()):
        before = AuditEvent.objects.count()
        answer = call(path, body, bearer=token(BASE + seen))
        if body is None and answer.status_code == 405:
            continue  # an address of a service, were there one of that id
        assert answer.status_code == 404
        assert answer.json()["resourceType"] == "OperationOutcome"
        assert AuditEvent.objects.count() == before + 1
        event = AuditEvent.objects.order_by("pk").last()
        assert event is not None
        assert (event.actor, event.outcome) == (f"client:{hook_client.pk}", "refused")
    unsigned = Client().get(path)
    assert unsigned.status_code in {401, 405}
    assert unsigned.json()["resourceType"] == "OperationOutcome"
