"""The sandbox: a real signed call through the real view, of which nothing stays but the note of a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client
from pytest_django import Settings

from cds.audit.models import AuditEvent
from cds.hooks import client_auth, offering, sandbox, signatures
from cds.hooks.models import CardShown, HookClient, PrefetchRead, SpentToken
from cds.jobs.models import OutboxMessage
from cds.patients import access
from cds.patients.models import Observation, Patient, Source
from cds.risk.models import RiskAssessment
from tests.web.clinic import Clinic
from web import cards_shown

pytestmark = pytest.mark.django_db
SERVICE = "tessera-icu-admission-patient-view"
KEPT = (
    CardShown,
    HookClient,
    PrefetchRead,
    SpentToken,
    OutboxMessage,
    Patient,
    Observation,
    Source,
    RiskAssessment,
)


@pytest.fixture(autouse=True)
def _unhurried(settings: Settings) -> None:
    settings.HOOKS_BUDGET_S, settings.HOOKS_REDIS_URL = 60.0, ""
    client_auth.forget()
    offering.forget()


def rows() -> dict[str, int]:
    return {model.__name__: model._default_manager.count() for model in KEPT}


def send(client: Client, **said: str) -> str:
    answer = client.post("/hooks/sandbox", {"service": SERVICE, **said})
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_sample_gets_its_card_and_leaves_nothing_but_a_test_in_the_trail(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    before = rows()
    text = send(sign_in("admin"))
    assert 'data-testid="sandbox-status">200<' in text
    assert "not yet known" in text
    assert "This is not a low risk" in text
    assert "&quot;alg&quot;: &quot;ES384&quot;" in text
    assert rows() == before
    event = AuditEvent.objects.get(action="hook.sandbox")
    assert (event.detail["test"], event.detail["status"], event.detail["cards"]) == (True, 200, 1)
    assert not AuditEvent.objects.filter(action__in=["hook.call", "hook_client.register"]).exists()


@pytest.mark.parametrize("hook", list(sandbox.offering.offered_hooks()))
def test_every_hook_answers_the_sample(hook: str, ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    text = send(sign_in("admin"), service=f"tessera-icu-admission-{hook}")
    assert text.count('data-testid="ehr-card"') == 1


def test_a_patient_is_for_those_who_may_see_them_and_their_score_is_shown_unchanged(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    of = ward.patients[0]
    client = sign_in("admin")
    assert "Sommer" not in client.get("/hooks/sandbox").content.decode()
    assert client.post("/hooks/sandbox", {"service": SERVICE, "patient": str(of.pk)}).status_code == 403
    access.give_role(ward.people["admin"], access.Role.CLINICIAN)
    access.join_unit(ward.people["admin"], "Ward 4")
    before, changed = rows(), of.changed_at
    client = sign_in("admin")
    assert "Sommer" in client.get("/hooks/sandbox").content.decode()
    text = send(client, patient=str(of.pk))
    assert "52 %" in text
    assert "Simulated patient" in text
    assert rows() == before
    of.refresh_from_db()
    assert (of.changed_at, of.family, of.revision) == (changed, "Sommer", 1)
    event = AuditEvent.objects.get(action="hook.sandbox")
    assert event.patient_id == of.pk
    assert AuditEvent.objects.filter(action="patient.sandbox", patient_id=of.pk).count() == 1
    stranger = access.join_unit(ward.people["stranger"], "Ward 9")
    Patient.objects.filter(pk=of.pk).update(unit=stranger)
    assert client.post("/hooks/sandbox", {"service": SERVICE, "patient": str(of.pk)}).status_code == 404


def test_the_call_is_really_authenticated(
    ward: Clinic, sign_in: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signatures, "ALGORITHMS", ["RS384"])
    text = send(sign_in("admin"))
    assert 'data-testid="sandbox-status">401<' in text
    assert "alg must be" in text
    assert AuditEvent.objects.get(action="hook.sandbox").outcome == "refused"
    assert not AuditEvent.objects.filter(action="hook.call").exists()


def test_an_unknown_service_is_not_found(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    assert sign_in("admin").post("/hooks/sandbox", {"service": "tessera-x-patient-view"}).status_code == 404


@pytest.mark.parametrize(
    ("markdown", "shown", "not_shown"),
    [
        ("**bold**\n\n| a | b |\n|---|---|\n| 1 | 2 |", "<table>", "**"),
        ("<script>alert(1)</script>x", "x", "<script"),
        ("![x](https://evil.example/a.png)", "", "<img"),
        ("[x](javascript:alert(1))", "x", "<a"),
        ("[x](https://ehr.example/)", 'href="https://ehr.example/"', "javascript"),
    ],
)
def test_cards_are_shown_without_anything_that_runs_or_loads(
    markdown: str, shown: str, not_shown: str
) -> None:
    html = cards_shown.detail({"detail": markdown})
    assert shown in html
    assert not_shown not in html
