"""Where a card leads: a SMART link only for an EHR that may launch us. INTEROP 16 and 24."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.utils import timezone

from cds.audit import recording
from cds.hooks import linking
from cds.hooks.models import HookClient
from cds.launch import registering
from cds.patients import importing
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import SERVICE, Call, hook_body, make_score

FHIR = "http://127.0.0.1:9/fhir"
OTHER = "http://127.0.0.1:9/other"
BY = recording.system("tests")


def launches(issuer: str = FHIR, *, source: str = "ehr") -> None:
    """An operator lets an EHR launch us."""
    now = timezone.now()
    registering.register(
        "Example EHR",
        issuer=issuer,
        client_id="tessera",
        source=importing.get_source(source, now=now),
        by=BY,
        now=now,
    )
    linking.forget()


def links(call: Call, **changes: Any) -> list[dict[str, Any]]:
    (card,) = call(SERVICE, hook_body(**changes)).json()["cards"]
    return list(card["links"])


def types(found: list[dict[str, Any]]) -> list[str]:
    return [link["type"] for link in found]


@pytest.fixture
def client(hook_client: HookClient) -> HookClient:
    """The EHR with a FHIR server."""
    hook_client.fhir_servers = [FHIR]
    hook_client.save()
    return hook_client


def test_an_ehr_that_may_launch_us_gets_a_link_to_this_very_score(
    call: Call, version: ModelVersion, client: HookClient
) -> None:
    launches()
    body = hook_body()
    call(SERVICE, body)
    score = make_score(Patient.objects.get(), version)
    smart, absolute = call(SERVICE, body).json()["cards"][0]["links"]
    assert (smart["type"], smart["url"]) == ("smart", "http://127.0.0.1:8000/launch")
    assert json.loads(smart["appContext"]) == {"assessment": str(score.pk), "outcome": "icu-admission"}
    assert absolute["type"] == "absolute"
    assert "appContext" not in absolute


def test_before_there_is_a_score_the_link_leads_to_the_panel(
    call: Call, version: ModelVersion, client: HookClient
) -> None:
    launches()
    smart, _ = links(call)
    assert json.loads(smart["appContext"])["outcome"] == "icu-admission"


@pytest.mark.parametrize(
    ("registered", "source", "named"),
    [
        ("", "ehr", None),  # nobody may launch us
        (OTHER, "ehr", None),  # another server than the client's may
        (FHIR, "elsewhere", None),  # its launches are for patients of another source
        (FHIR, "ehr", OTHER),  # the call is about a server that may not
    ],
)
def test_otherwise_the_panel_by_its_address_alone(
    call: Call, version: ModelVersion, client: HookClient, registered: str, source: str, named: str | None
) -> None:
    if registered:
        launches(registered, source=source)
    found = links(call, **({"fhirServer": named} if named else {}))
    assert types(found) == ["absolute"]
    assert "appContext" not in found[0]


def test_the_server_a_call_names_counts(call: Call, version: ModelVersion, client: HookClient) -> None:
    launches(OTHER)
    assert types(links(call, fhirServer=OTHER + "/")) == ["smart", "absolute"]


def test_a_withdrawn_registration_takes_the_link_away(
    call: Call, version: ModelVersion, client: HookClient
) -> None:
    launches()
    assert types(links(call)) == ["smart", "absolute"]
    registering.withdraw(FHIR, by=BY, now=timezone.now())
    linking.forget()
    assert types(links(call)) == ["absolute"]
