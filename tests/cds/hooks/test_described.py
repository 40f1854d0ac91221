"""The hooks answer as `/openapi.json` says: discovery, cards of several kinds, feedback, refusals."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.utils import timezone

from cds.hooks.models import CardShown, Feedback
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk import responding
from tests.cds.hooks.conftest import SERVICE, Call, hook_body, make_score
from tests.described import answer_faults, body_faults

ONE, TOLD = "/cds-services/{service_id}", "/cds-services/{service_id}/feedback"


def test_discovery_and_cards_are_as_described(call: Call, version: ModelVersion) -> None:
    assert answer_faults("/cds-services", "get", call("/cds-services")) == []
    body = hook_body()
    assert body_faults("HookRequest", body) == []
    assert answer_faults(ONE, "post", call(SERVICE, body)) == []  # not yet known
    make_score(Patient.objects.get(resource_id="p1"), version)
    scored = call(SERVICE, body)
    assert {"links", "overrideReasons", "suggestions"} <= set(scored.json()["cards"][0])
    assert answer_faults(ONE, "post", scored) == []


def test_feedback_is_as_described(call: Call, version: ModelVersion) -> None:
    call(SERVICE, hook_body())
    told = {
        "feedback": [
            {
                "card": str(CardShown.objects.get().pk),
                "outcome": "overridden",
                "outcomeTimestamp": timezone.now().isoformat(),
                "overrideReason": {
                    "reason": {"code": "action-completed", "system": responding.REASON_SYSTEM},
                    "userComment": "seen",
                },
            }
        ]
    }
    assert body_faults("FeedbackBatch", told) == []
    assert answer_faults(TOLD, "post", call(f"{SERVICE}/feedback", told)) == []
    assert Feedback.objects.count() == 1
    told["feedback"][0]["card"] = str(uuid.uuid4())
    assert answer_faults(TOLD, "post", call(f"{SERVICE}/feedback", told)) == []


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (400, {"body": {"hook": "patient-view"}}),
        (400, {"raw": b"not json"}),
        (401, {"body": hook_body(), "bearer": "x.y.z"}),
        (412, {"body": hook_body(prefetch={})}),
        (415, {"raw": b"{}", "content_type": "text/plain"}),
    ],
)
def test_refusals_are_as_described(
    call: Call, version: ModelVersion, status: int, how: dict[str, Any]
) -> None:
    answer = call(SERVICE, **how)
    assert answer.status_code == status
    assert answer_faults(ONE, "post", answer) == []


def test_what_breaks_the_specification_is_seen() -> None:
    body = hook_body()
    assert body_faults("HookRequest", {**body, "hookInstance": "one"})
    assert body_faults("HookRequest", {**body, "context": {"userId": "Practitioner/1"}})
    assert body_faults("Cards", {"cards": [{"summary": "x"}]})
    assert body_faults("FeedbackBatch", {"feedback": []})
