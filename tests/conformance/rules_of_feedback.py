"""Rule 17: what an EHR says was done with cards."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from tests.conformance.judging import NotApplicable, cards, outcome, rule, status
from tests.conformance.rules_of_messages import a_view
from tests.conformance.service import UNSET, Service


def _feedback(of: str, /, **changes: Any) -> dict[str, Any]:
    item = {"card": of, "outcome": "accepted", "outcomeTimestamp": "2026-03-01T08:00:00Z", **changes}
    return {name: value for name, value in item.items() if value is not UNSET}


def _a_card(service: Service) -> tuple[str, str]:
    path, card = _answerable(service)
    return path, card["uuid"]


def _answerable(service: Service) -> tuple[str, Mapping[str, Any]]:
    """Where feedback goes, and a card that it can be about, with suggestions if there is one."""
    one = a_view(service)
    found = [card for card in cards(service.call(one)) if "uuid" in card]
    if not found:
        raise NotApplicable("no card was shown that has a uuid")
    return f"cds-services/{one['id']}/feedback", max(found, key=lambda card: "suggestions" in card)


@rule(17, "feedback is taken: accepted, overridden, in a batch")
def feedback(service: Service) -> None:
    path, shown = _answerable(service)
    card, suggested = shown["uuid"], [one for one in shown.get("suggestions", []) if "uuid" in one]
    chosen = {"acceptedSuggestions": [{"id": one["uuid"]} for one in suggested]} if suggested else {}
    overridden = _feedback(card, outcome="overridden", overrideReason={"userComment": "seen"})
    status(service.send("POST", path, body={"feedback": [_feedback(card, **chosen)]}), 200)
    status(service.send("POST", path, body={"feedback": [_feedback(card), overridden]}), 200)


@rule(17, "the same feedback twice is fine")
def feedback_twice(service: Service) -> None:
    path, card = _a_card(service)
    for _ in range(2):
        status(service.send("POST", path, body={"feedback": [_feedback(card)]}), 200)


@rule(17, "feedback about an unknown card: 4xx")
def feedback_unknown(service: Service) -> None:
    path, _ = _a_card(service)
    outcome(service.send("POST", path, body={"feedback": [_feedback(str(uuid.uuid4()))]}), 400, 404, 422)


@rule(17, "feedback that is malformed: 400, naming the field")
def feedback_malformed(service: Service) -> None:
    path, card = _a_card(service)
    wrong: list[Any] = [{}, {"feedback": {}}, {"feedback": ["x"]}]
    wrong += [
        {"feedback": [_feedback(card, **{name: UNSET})]} for name in ("card", "outcome", "outcomeTimestamp")
    ]
    wrong += [{"feedback": [_feedback(card, outcome="ignored")]}, {"feedback": [_feedback("not-a-uuid")]}]
    for body in wrong:
        outcome(service.send("POST", path, body=body), 400, 404)
