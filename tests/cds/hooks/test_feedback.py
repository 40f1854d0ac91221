"""Feedback: INTEROP 17."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.hooks.models import CardShown, Feedback
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk import responding
from cds.risk.models import Response, RiskPrediction
from tests.cds.hooks.conftest import SERVICE, Call, hook_body, make_score

URL = f"{SERVICE}/feedback"
AT = "2026-03-01T12:00:00Z"
PREFETCH = hook_body()["prefetch"]  # the same each time: nothing new, so nothing stale
SOME = str(uuid.uuid4())
REASON = {"reason": {"code": "patient-refuses", "system": responding.REASON_SYSTEM}}


@pytest.fixture
def shown(call: Call, version: ModelVersion) -> dict[str, Any]:
    """A card that showed a number, and suggests an order for each of two inputs."""
    body = hook_body(prefetch=PREFETCH)
    call(SERVICE, body)
    make_score(Patient.objects.get(), version)
    (found,) = call(SERVICE, body).json()["cards"]
    return dict(found)


@pytest.fixture
def card(shown: dict[str, Any]) -> str:
    """Its uuid."""
    return str(shown["uuid"])


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


def accepted(card: str, *suggestions: str) -> dict[str, Any]:
    return {
        "card": card,
        "outcome": "accepted",
        "acceptedSuggestions": [{"id": one} for one in suggestions],
        "outcomeTimestamp": AT,
    }


def test_an_acceptance_acknowledges(call: Call, shown: dict[str, Any]) -> None:
    first = shown["suggestions"][0]["uuid"]
    item = accepted(shown["uuid"], first.upper(), first)
    assert call(URL, {"feedback": [item, item]}).status_code == 200
    assert Feedback.objects.get().accepted_suggestions == [first]
    assert Response.objects.get().kind == "acknowledged"


def test_suggestions_that_are_told_one_by_one_are_all_kept(call: Call, shown: dict[str, Any]) -> None:
    """An EHR may tell each accepted suggestion by itself, with the same second."""
    first, second = (one["uuid"] for one in shown["suggestions"])
    each = [accepted(shown["uuid"], one) for one in (first, second)]
    for sent in ([each[0]], [each[1]], each, [accepted(shown["uuid"])]):
        assert call(URL, {"feedback": sent}).status_code == 200
        assert Feedback.objects.get().accepted_suggestions[:1] == [first]
    assert Feedback.objects.get().accepted_suggestions == [first, second]
    assert Response.objects.get().kind == "acknowledged"
    assert (
        AuditEvent.objects.filter(action="hook.feedback").count() == 2
    )  # what said nothing new is not noted


def test_suggestions_of_one_batch_are_all_kept(call: Call, shown: dict[str, Any]) -> None:
    first, second = (one["uuid"] for one in shown["suggestions"])
    items = [accepted(shown["uuid"], one) for one in (second, first)]
    assert call(URL, {"feedback": items}).status_code == 200
    assert Feedback.objects.get().accepted_suggestions == [second, first]


def test_a_card_is_kept_with_what_it_suggested(shown: dict[str, Any]) -> None:
    offered = {one["uuid"]: one["label"] for one in shown["suggestions"]}
    assert set(offered.values()) == {"Order: Echocardiogram", "Order: Lactate"}
    assert CardShown.objects.get(pk=shown["uuid"]).suggestions == offered
    assert CardShown.objects.exclude(pk=shown["uuid"]).get().suggestions == {}  # "not yet known" offers none


def test_what_the_card_did_not_suggest_cannot_be_accepted(call: Call, shown: dict[str, Any]) -> None:
    first = shown["suggestions"][0]["uuid"]
    told = [accepted(shown["uuid"], first, SOME), overridden(shown["uuid"])]
    response = call(URL, {"feedback": told})
    assert response.status_code == 400
    wrong, rest = response.json()["issue"]
    assert wrong["expression"] == ["feedback[0].acceptedSuggestions[1].id"]
    assert SOME in wrong["diagnostics"]
    assert "1 of 2 items are kept" in rest["diagnostics"]
    assert Feedback.objects.get().outcome == "overridden"
    CardShown.objects.update(suggestions={})
    assert call(URL, {"feedback": [accepted(shown["uuid"], first)]}).status_code == 400
    CardShown.objects.update(suggestions=None)  # of a card from before they were noted nobody can tell
    assert call(URL, {"feedback": told}).status_code == 200


@pytest.mark.parametrize("code", ["ours", "patient-refuses"])  # the same letters in another system
def test_a_reason_of_the_ehrs_own_is_kept_with_the_feedback(call: Call, card: str, code: str) -> None:
    own = {"reason": {"code": code, "system": "urn:ehr"}, "userComment": "no bed"}
    assert call(URL, {"feedback": [overridden(card, overrideReason=own)]}).status_code == 200
    assert (Feedback.objects.get().reason_code, Feedback.objects.get().comment) == (code, "no bed")
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
            {"feedback": [overridden(SOME, overrideReason={"userComment": 1})]},
            "feedback[0].overrideReason.userComment",
        ),
        (
            {"feedback": [overridden(SOME, overrideReason={"reason": {"code": "c"}})]},
            "feedback[0].overrideReason.reason.system",
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


def test_a_bad_item_does_not_take_the_others_with_it(call: Call, card: str) -> None:
    later = "2026-03-01T13:00:00Z"
    sent = [
        overridden(card, outcome="ignored"),
        overridden(card),
        overridden(SOME),
        overridden(card, overrideReason={"reason": {"code": "c" * 81, "system": "s"}}),
        overridden(card, outcomeTimestamp=later),
    ]
    for _ in range(2):
        response = call(URL, {"feedback": sent})
        assert response.status_code == 400
        *wrong, rest = response.json()["issue"]
        assert [one["expression"] for one in wrong] == [
            ["feedback[0].outcome"],
            ["feedback[2].card"],
            ["feedback[3].overrideReason.reason.code"],
        ]
        assert SOME in wrong[1]["diagnostics"]
        assert (rest["severity"], rest["diagnostics"]) == (
            "information", "2 of 5 items are kept; those named are not",
        )  # fmt: skip
        assert Feedback.objects.count() == 2
    assert AuditEvent.objects.filter(action="hook.call", outcome="refused").count() == 2


def test_a_long_comment_is_cut_and_the_answer_counts(call: Call, card: str) -> None:
    for length, at in ((500, "12"), (501, "13"), (5000, "14")):
        said = {**REASON, "userComment": "x" * length}
        item = overridden(card, overrideReason=said, outcomeTimestamp=f"2026-03-01T{at}:00:00Z")
        assert call(URL, {"feedback": [item]}).status_code == 200
    kept = list(Feedback.objects.order_by("outcome_at").values_list("comment", flat=True))
    assert kept == ["x" * 500, "x" * 499 + "…", "x" * 499 + "…"]
    assert list(Response.objects.order_by("at").values_list("comment", flat=True)) == kept


def test_feedback_that_comes_late_counts_from_when_it_was_given(call: Call, card: str) -> None:
    now, prediction = timezone.now(), RiskPrediction.objects.get()
    CardShown.objects.update(shown_at=now - timedelta(hours=13))  # or the first card would quiet the next
    body = hook_body(context={"userId": "Practitioner/2", "patientId": "p1"}, prefetch=PREFETCH)
    given = now - timedelta(hours=10)
    accepted = {"card": card, "outcome": "accepted", "outcomeTimestamp": given.isoformat()}
    assert call(URL, {"feedback": [accepted]}).status_code == 200
    assert Response.objects.get().at == given
    (found,) = call(SERVICE, body).json()["cards"]
    assert "Acknowledged at" in found["detail"]  # for two hours more
    Response.objects.update(at=given - timedelta(hours=3))
    responding.answer_of.cache_clear()
    (found,) = call(SERVICE, body).json()["cards"]
    assert found["indicator"] == "warning"
    Response.objects.all().delete()
    snoozed = responding.snooze(
        prediction, by=recording.system("tests"), user=None, now=now - timedelta(hours=1)
    )
    told = overridden(card, outcomeTimestamp=given.isoformat())
    assert call(URL, {"feedback": [told]}).status_code == 200
    assert Response.objects.count() == 2
    assert responding.last_response(prediction) == snoozed
    assert call(SERVICE, body).json()["cards"] == []  # snoozed since


def test_feedback_from_a_clock_that_is_fast_counts_from_now(call: Call, card: str) -> None:
    ahead = (timezone.now() + timedelta(hours=2)).isoformat()
    assert call(URL, {"feedback": [overridden(card, outcomeTimestamp=ahead)]}).status_code == 200
    assert Response.objects.get().at <= timezone.now()
