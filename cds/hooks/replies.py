"""CDS Hooks 2.0 on the wire, towards the EHR: cards and refusals. Rules of the specification only.

Frozen dataclasses whose `to_json` leaves out what is not set (INTEROP 4); a card that breaks a rule cannot be
made. No database, no settings, no clock here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any
from uuid import UUID

SUMMARY_LIMIT = 140  # "under 140 characters": 139 is the longest


class Indicator(StrEnum):
    """Card.indicator: how much it matters."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Coding:
    """Code, system and display, as in `Source.topic` and in override reasons."""

    code: str
    system: str = ""
    display: str = ""

    def to_json(self) -> dict[str, Any]:
        return without_empty({"code": self.code, "system": self.system, "display": self.display})


OverrideReason = Coding


@dataclass(frozen=True, slots=True)
class Source:
    """Who says so."""

    label: str
    url: str = ""
    icon: str = ""
    topic: Coding | None = None

    def to_json(self) -> dict[str, Any]:
        topic = self.topic.to_json() if self.topic else None
        return without_empty({"label": self.label, "url": self.url, "icon": self.icon, "topic": topic})


@dataclass(frozen=True, slots=True)
class Link:
    """A way on. `app_context` only with type smart (INTEROP 16)."""

    label: str
    url: str
    type: str = "absolute"
    app_context: str = ""

    def __post_init__(self) -> None:
        if self.type not in {"absolute", "smart"}:
            raise ValueError(f"a link is absolute or smart, not {self.type!r}")
        if self.app_context and self.type != "smart":
            raise ValueError("appContext belongs to smart links only")

    def to_json(self) -> dict[str, Any]:
        return without_empty(
            {"label": self.label, "url": self.url, "type": self.type, "appContext": self.app_context}
        )


@dataclass(frozen=True, slots=True)
class Action:
    """One change a suggestion would make: a resource, or for delete the id of one."""

    type: str
    description: str
    resource: Mapping[str, Any] | None = None
    resource_id: str = ""

    def __post_init__(self) -> None:
        if self.type not in {"create", "update", "delete"}:
            raise ValueError(f"an action creates, updates or deletes, not {self.type!r}")
        if (self.type == "delete") != bool(self.resource_id) or (self.type != "delete") != bool(
            self.resource
        ):
            raise ValueError("delete takes resource_id; create and update take a resource")

    def to_json(self) -> dict[str, Any]:
        return without_empty(
            {
                "type": self.type,
                "description": self.description,
                "resource": dict(self.resource) if self.resource else None,
                "resourceId": self.resource_id,
            }
        )


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Something the clinician may accept."""

    label: str
    uuid: UUID
    is_recommended: bool | None = None
    actions: tuple[Action, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return without_empty(
            {
                "label": self.label,
                "uuid": str(self.uuid),
                "isRecommended": self.is_recommended,
                "actions": [action.to_json() for action in self.actions],
            }
        )


@dataclass(frozen=True, slots=True)
class Card:
    """What the clinician reads. `detail` is GitHub-flavoured Markdown; outside text in it must be escaped.

    raises  ValueError for a summary that is empty or 140 characters or longer (INTEROP 13)
    """

    uuid: UUID
    summary: str
    indicator: Indicator
    source: Source
    detail: str = ""
    suggestions: tuple[Suggestion, ...] = ()
    selection_behavior: str = ""
    override_reasons: tuple[OverrideReason, ...] = ()
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.summary) < SUMMARY_LIMIT:
            raise ValueError(f"a summary has 1 to {SUMMARY_LIMIT - 1} characters, not {len(self.summary)}")
        if bool(self.suggestions) != (self.selection_behavior in {"at-most-one", "any"}):
            raise ValueError("suggestions need selectionBehavior at-most-one or any, and only they")

    def to_json(self) -> dict[str, Any]:
        return without_empty(
            {
                "uuid": str(self.uuid),
                "summary": self.summary,
                "indicator": self.indicator.value,
                "source": self.source.to_json(),
                "detail": self.detail,
                "suggestions": [suggestion.to_json() for suggestion in self.suggestions],
                "selectionBehavior": self.selection_behavior,
                "overrideReasons": _reasons(self.override_reasons),
                "links": [link.to_json() for link in self.links],
            }
        )


@lru_cache(maxsize=8)
def _reasons(reasons: tuple[OverrideReason, ...]) -> list[dict[str, Any]]:
    """They are the same on nearly every card."""
    return [reason.to_json() for reason in reasons]


def without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out None, "", {} and [] (INTEROP 4); False and 0 stay."""
    return {key: value for key, value in values.items() if value not in (None, "", {}, [])}


@dataclass(frozen=True, slots=True)
class Issue:
    """One issue of an OperationOutcome; `expression` names the fields it is about."""

    code: str
    diagnostics: str
    expression: tuple[str, ...] = ()
    severity: str = "error"

    def to_json(self) -> dict[str, Any]:
        return without_empty(
            {
                "severity": self.severity,
                "code": self.code,
                "diagnostics": self.diagnostics,
                "expression": list(self.expression),
            }
        )


def operation_outcome(*issues: Issue) -> dict[str, Any]:
    """FHIR OperationOutcome."""
    return {"resourceType": "OperationOutcome", "issue": [issue.to_json() for issue in issues]}
