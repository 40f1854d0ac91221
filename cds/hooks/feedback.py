"""Feedback on the wire (INTEROP 17): batches, each item read strictly by itself. No database here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from cds.hooks import fields
from cds.hooks.fields import BadRequest

MAX_FEEDBACK = 1000
MAX_COMMENT = 500


@dataclass(frozen=True, slots=True)
class FeedbackItem:
    """What happened to one card (INTEROP 17). A suggestion's uuid is in small letters, as ours are."""

    card: UUID
    outcome: str
    outcome_at: datetime
    accepted_suggestions: tuple[str, ...] = ()
    reason_code: str = ""
    reason_system: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it was sent: by their places the sound items, and what is wrong with each of the others."""

    size: int
    items: Mapping[int, FeedbackItem]
    faults: Mapping[int, BadRequest]


def parse_feedback(sent: Mapping[str, Any]) -> Batch:
    """Read a batch of feedback (INTEROP 17). Raises BadRequest where it is no batch at all."""
    items = sent.get("feedback")
    if not isinstance(items, list) or not items:
        raise BadRequest("feedback must be a list of at least one", expression="feedback", code="required")
    if len(items) > MAX_FEEDBACK:
        raise BadRequest(f"at most {MAX_FEEDBACK} in one batch", expression="feedback", code="too-long")
    sound: dict[int, FeedbackItem] = {}
    faults: dict[int, BadRequest] = {}
    for place, item in enumerate(items):
        try:
            sound[place] = _parse_item(item, f"feedback[{place}]")
        except BadRequest as error:
            faults[place] = error
    return Batch(len(items), sound, faults)


def _parse_item(item: Any, where: str) -> FeedbackItem:
    if not isinstance(item, dict):
        raise BadRequest("feedback holds objects", expression=where)
    try:
        card = UUID(fields.text(item, "card", within=where))
    except ValueError:
        raise BadRequest("card must be the uuid of a card", expression=f"{where}.card") from None
    outcome = fields.text(item, "outcome", within=where)
    if outcome not in {"accepted", "overridden"}:
        raise BadRequest("outcome is accepted or overridden", expression=f"{where}.outcome")
    at = fields.moment(fields.text(item, "outcomeTimestamp", within=where), f"{where}.outcomeTimestamp")
    suggestions: list[str] = []
    if outcome == "accepted":
        chosen = item.get("acceptedSuggestions", [])
        if not isinstance(chosen, list):
            raise BadRequest("acceptedSuggestions must be a list", expression=f"{where}.acceptedSuggestions")
        for place, one in enumerate(chosen):
            path = f"{where}.acceptedSuggestions[{place}]"
            if not isinstance(one, dict):
                raise BadRequest("acceptedSuggestions holds objects with an id", expression=path)
            suggestions.append(fields.short(one, "id", 64, path).lower())
    code, system, comment = _override_reason(item, where) if outcome == "overridden" else ("", "", "")
    return FeedbackItem(card, outcome, at, tuple(suggestions), code, system, comment)


def _override_reason(item: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    if item.get("overrideReason") is None:
        return "", "", ""
    override, path = fields.an_object(item, "overrideReason", within=where), f"{where}.overrideReason"
    comment = override.get("userComment")
    if comment is not None and not isinstance(comment, str):
        raise BadRequest("userComment must be text", expression=f"{path}.userComment")
    comment = comment or ""
    if len(comment) > MAX_COMMENT:  # an answer counts more than the end of its comment
        comment = f"{comment[: MAX_COMMENT - 1]}…"
    if override.get("reason") is None:
        return "", "", comment
    reason, path = fields.an_object(override, "reason", within=path), f"{path}.reason"
    return fields.short(reason, "code", 80, path), fields.short(reason, "system", 300, path), comment
