"""Hook calls while their source is paused: answered from what is held, marked stale; nothing sent is kept."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from cds.audit import recording
from cds.hooks import client_auth
from cds.hooks.models import HookClient, PrefetchRead
from cds.patients import sources
from cds.patients.models import Observation, Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import SERVICE, Call, heart_rate, hook_body, make_score, searchset

BY = recording.system("tests")


def pause(client: HookClient) -> None:
    sources.pause(client.source, by=BY, now=timezone.now())
    client_auth.forget()  # every process does so by itself within two seconds


def resume(client: HookClient) -> None:
    sources.resume(client.source, by=BY, now=timezone.now())
    client_auth.forget()


def faster() -> Any:
    vitals = searchset(heart_rate(131, at=timezone.now(), resource_id="hr2"))
    return hook_body(prefetch={"vitals": vitals})


def test_the_card_comes_from_what_is_held_and_says_so(
    call: Call, version: ModelVersion, hook_client: HookClient
) -> None:
    call(SERVICE, hook_body())
    patient = Patient.objects.get()
    make_score(patient, version)
    pause(hook_client)
    (card,) = call(SERVICE, faster()).json()["cards"]
    assert card["summary"].startswith("Stale: was 31 %")
    assert "takes nothing in from this EHR since" in card["detail"]
    assert "what came with this call was not read" in card["detail"]
    assert not Observation.objects.filter(resource_id="hr2").exists()
    assert Patient.objects.get().revision == patient.revision
    resume(hook_client)
    call(SERVICE, faster())
    assert Observation.objects.filter(resource_id="hr2").exists()


def test_even_a_prefetch_that_was_read_before_is_stale_then(
    call: Call, version: ModelVersion, hook_client: HookClient
) -> None:
    body = hook_body()
    call(SERVICE, body)
    make_score(Patient.objects.get(), version)
    assert PrefetchRead.objects.exists()
    assert "Stale" not in call(SERVICE, body).json()["cards"][0]["summary"]
    pause(hook_client)
    assert call(SERVICE, body).json()["cards"][0]["summary"].startswith("Stale")


@pytest.mark.usefixtures("version")
def test_of_somebody_never_met_nothing_is_made(call: Call, hook_client: HookClient) -> None:
    pause(hook_client)
    refused = call(SERVICE, hook_body("stranger"))
    assert refused.status_code == 412
    said = refused.json()["issue"][0]["diagnostics"]
    assert "nothing is known here of this patient" in said
    assert "source ehr is paused: resume it on the Sources screen" in said
    assert not Patient.objects.exists()


@pytest.mark.usefixtures("version")
def test_a_call_that_breaks_the_rules_is_still_told_so(call: Call, hook_client: HookClient) -> None:
    pause(hook_client)
    assert call(SERVICE, hook_body(hook="order-sign")).status_code == 400
