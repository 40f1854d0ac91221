"""Feedback: INTEROP 17."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from cds.audit.models import AuditEvent
from cds.hooks.models import CardShown, Feedback
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk.models import Response
from tests.cds.hooks.conftest import SERVICE, Call, hook_body, make_score

URL = f"{SERVICE}/feedback"
AT = "2026-03-01T12:00:00Z"
SOME = str(uuid.uuid4())
REASON = {"reason": {"code": "patient-refuses", "system": "http://terminology.hl7.org/CodeSystem/x"}}


@pytest.fixture
def card(call: Call, version: ModelVersion) -> str:
    """The uuid of a card that showed a number."""
    body = hook_body()
    call(SERVICE, body)
    make_score(Patient.objects.get(), version)
    return str(call(SERVICE, body).json()["cards"][0]["uuid"])


def overridden(card: str, **changes: Any) -> dict[str, Any]:
    return {"card": card, "outcome": "overridden", "overrideReason": REASON, "outcomeTimestamp": AT} | changes


def test_an_override_is_kept_once_and_reaches_the_panel(call: Call, card: str) -> None:
    for _ in range(2):
        assert call(URL, {"feedback": [overridden(card)]}).status_code == 200
    kept = Feedback.objects.get()
    assert (kept.outcome, kept.reason_code) == ("overridden", "patient-refuses")
    answer = Response.objects.get()
    assert (answer.kind, answer.via, answer.reason_code) == ("overridden", "hook", "patient-refuses")
    assert AuditEvent.objects.filter(action="hook.feedback").count() == 1


def test_an_acceptance_acknowledges(call: Call, card: str) -> None:
    accepted = {
        "card": card,
        "outcome": "accepted",
        "acceptedSuggestions": [{"id": "s1"}],
        "outcomeTimestamp": AT,
    }
    assert call(URL, {"feedback": [accepted, accepted]}).status_code == 200
    assert Feedback.objects.get().accepted_suggestions == ["s1"]
    assert Response.objects.get().kind == "acknowledged"


def test_a_reason_of_the_ehrs_own_is_kept_with_the_feedback(call: Call, card: str) -> None:
    own = {"reason": {"code": "ours", "system": "urn:ehr"}, "userComment": "no bed"}
    assert call(URL, {"feedback": [overridden(card, overrideReason=own)]}).status_code == 200
    assert (Feedback.objects.get().reason_code, Feedback.objects.get().comment) == ("ours", "no bed")
    assert not Response.objects.exists()


def test_an_unknown_card_is_404_and_audited_while_the_known_one_is_kept(call: Call, card: str) -> None:
    response = call(URL, {"feedback": [overridden(SOME), overridden(card)]})
    assert response.status_code == 404
    assert Feedback.objects.count() == 1
    assert AuditEvent.objects.filter(action="hook.call", outcome="refused").count() == 1


def test_a_card_of_another_ehr_is_unknown(call: Call, card: str) -> None:
    CardShown.objects.update(client=None)
    assert call(URL, {"feedback": [overridden(card)]}).status_code == 404
    assert not Feedback.objects.exists()


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({}, "feedback"),
        ({"feedback": []}, "feedback"),
        ({"feedback": [1]}, "feedback[0]"),
        ({"feedback": [overridden("x")]}, "feedback[0].card"),
        ({"feedback": [overridden(SOME, outcome="ignored")]}, "feedback[0].outcome"),
        (
            {"feedback": [overridden(SOME, outcomeTimestamp="now")]},
            "feedback[0].outcomeTimestamp",
        ),
        (
            {"feedback": [overridden(SOME, outcomeTimestamp="2026-03-01T12:00:00")]},
            "feedback[0].outcomeTimestamp",
        ),
        (
            {"feedback": [overridden(SOME, overrideReason={"userComment": "x" * 501})]},
            "feedback[0].overrideReason.userComment",
        ),
        (
            {"feedback": [overridden(SOME, overrideReason={"reason": {"system": "s"}})]},
            "feedback[0].overrideReason.reason.code",
        ),
    ],
)
def test_what_is_wrong_is_named(call: Call, version: ModelVersion, sent: dict[str, Any], field: str) -> None:
    response = call(URL, sent)
    assert response.status_code == 400
    assert response.json()["issue"][0]["expression"] == [field]
