"""FHIR Subscriptions by rest-hook: what to ask a server for, and what its notifications say (INTEROP 37).

Two shapes. R4 (https://hl7.org/fhir/R4/subscription.html): `criteria` is a search, and a notification is an
empty POST or the resource itself; nothing numbers them. The R4 backport of topics
(https://hl7.org/fhir/uv/subscriptions-backport/): a Bundle that begins with a status (Parameters, or
SubscriptionStatus as from R4B on), numbers its events, and comes as a heartbeat when there is nothing to say,
so that a lost one is noticed.

A notification is a hint and no more: what it names is read from the server, never believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson

from ehr.errors import BadResource
from ehr.fhir.elements import Json, get_list, get_object, get_text
from ehr.fhir.scope import Scope, patient_of

_BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
_TYPES = ("history", "subscription-notification")
MAX_EVENTS = 10_000


class SubscriptionShape(StrEnum):
    """How a server speaks of subscriptions."""

    R4 = "r4"
    BACKPORT = "backport"


class NotificationKind(StrEnum):
    """What a notification is; the last five as the backport and R5 spell them."""

    PING = "ping"  # R4 without payload: something has changed
    RESOURCE = "resource"  # R4 with payload
    HANDSHAKE = "handshake"
    HEARTBEAT = "heartbeat"
    EVENT = "event-notification"
    QUERY_STATUS = "query-status"
    QUERY_EVENT = "query-event"


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """One resource that has changed.

    number   its place among the subscription's events, from 1; None in R4, which does not count
    patient  id of the patient it is about, "" when the notification does not tell
    deleted  it is gone
    """

    resource_type: str
    resource_id: str
    number: int | None = None
    patient: str = ""
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """What a server has said.

    status  of the subscription, as the server sees it: active, error, off …; "" when it does not say
    total   events since the subscription began; None in R4
    """

    kind: NotificationKind
    status: str = ""
    total: int | None = None
    events: tuple[ChangeEvent, ...] = ()


def build_subscription(
    *,
    shape: SubscriptionShape,
    criteria: str,
    endpoint: str,
    secret: str,
    reason: str,
    payload: str = "",
    topic: str = "",
    heartbeat_s: int | None = None,
    end: datetime | None = None,
) -> dict[str, Any]:
    """The Subscription to create at a server. It calls `endpoint` with `Authorization: Bearer [secret]`.

    criteria  a search such as "Observation?"; of a topic its filter, which may be ""
    payload   R4: "" (nothing but the fact) or "full-resource"; backport: "empty" (also ""), "id-only",
              "full-resource"
    topic     canonical URL of the topic, backport only
    """
    channel: dict[str, Any] = {
        "type": "rest-hook",
        "endpoint": endpoint,
        "header": [f"Authorization: Bearer {secret}"],
    }
    asked: dict[str, Any] = {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": reason,
        "criteria": criteria,
        "channel": channel,
    }
    if end is not None:
        asked["end"] = end.isoformat(timespec="seconds")
    if shape is SubscriptionShape.R4:
        if payload == "full-resource":
            channel["payload"] = "application/fhir+json"
        return asked
    asked["meta"] = {"profile": [f"{_BACKPORT}backport-subscription"]}
    asked["criteria"] = topic
    if criteria:
        asked["_criteria"] = {
            "extension": [{"url": f"{_BACKPORT}backport-filter-criteria", "valueString": criteria}]
        }
    channel["payload"] = "application/fhir+json"
    content = {"url": f"{_BACKPORT}backport-payload-content", "valueCode": payload or "empty"}
    channel["_payload"] = {"extension": [content]}
    if heartbeat_s:
        period = {"url": f"{_BACKPORT}backport-heartbeat-period", "valueUnsignedInt": heartbeat_s}
        channel["extension"] = [period]
    return asked


def read_notification(body: bytes) -> Notification:
    """Read what a server sent to a rest-hook. Raises BadResource."""
    if not body.strip():
        return Notification(kind=NotificationKind.PING)
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadResource("the notification is not JSON") from error
    if not isinstance(sent, dict) or not isinstance(sent.get("resourceType"), str):
        raise BadResource("the notification is not a FHIR resource")
    if sent["resourceType"] != "Bundle":
        return Notification(kind=NotificationKind.RESOURCE, events=(_event_of(sent),))
    if get_text(sent, "type", "Bundle") not in _TYPES:
        raise BadResource(f"Bundle.type of a notification is one of {', '.join(_TYPES)}")
    entries = get_list(sent, "entry", "Bundle")
    status = get_object(entries[0], "resource", "Bundle.entry") if entries else None
    if status is None or status.get("resourceType") not in ("Parameters", "SubscriptionStatus"):
        raise BadResource("a notification Bundle begins with its SubscriptionStatus or Parameters")
    found = _as_status(status)
    inside = _entries(entries[1:])
    kind = get_text(found, "type", "SubscriptionStatus")
    if kind not in set(NotificationKind) - {NotificationKind.PING, NotificationKind.RESOURCE}:
        raise BadResource("SubscriptionStatus.type is not a code of subscription-notification-type")
    events = [_numbered(item, inside) for item in get_list(found, "notificationEvent", "SubscriptionStatus")]
    if len(events) > MAX_EVENTS:
        raise BadResource(f"more than {MAX_EVENTS} events in one notification")
    if not events:  # an empty focus is left out by some; what lies in the Bundle is then all there is
        events = [ChangeEvent(*key, None, patient, gone) for key, (patient, gone) in inside.items()]
    total = found.get("eventsSinceSubscriptionStart")
    return Notification(
        kind=NotificationKind(kind),
        status=get_text(found, "status", "SubscriptionStatus")[:20],
        total=_number(total) if total is not None else None,
        events=tuple(events),
    )


def _as_status(resource: Json) -> Mapping[str, Any]:
    """A SubscriptionStatus; Parameters of the R4 profile are turned into one."""
    if resource.get("resourceType") == "SubscriptionStatus":
        return resource
    found: dict[str, Any] = {"notificationEvent": []}
    for item in get_list(resource, "parameter", "Parameters"):
        name = _camel(get_text(item, "name", "Parameters.parameter"))
        if name == "notificationEvent":
            event: dict[str, Any] = {"additionalContext": []}
            for part in get_list(item, "part", "Parameters.parameter"):
                part_name, value = _camel(get_text(part, "name", "Parameters.parameter.part")), _value(part)
                if part_name == "additionalContext":
                    event[part_name].append(value)
                else:
                    event[part_name] = value
            found["notificationEvent"].append(event)
        else:
            found[name] = _value(item)
    return found


def _camel(name: str) -> str:
    """event-number → eventNumber: the IG writes the one, some servers the other."""
    first, *rest = name.split("-")
    return first + "".join(word.capitalize() for word in rest)


def _value(parameter: Json) -> Any:
    return next((parameter[name] for name in parameter if name.startswith("value")), None)


def _number(value: Any) -> int:
    """integer64 comes as text, older builds sent numbers."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text.isdecimal() or len(text) > 18:
        raise BadResource("an event number or count of a notification is not a whole number")
    return int(text)


def _numbered(item: Json, inside: Mapping[tuple[str, str], tuple[str, bool]]) -> ChangeEvent:
    number = _number(item.get("eventNumber")) if item.get("eventNumber") is not None else None
    focus = get_object(item, "focus", "notificationEvent")
    reference = get_text(focus, "reference", "notificationEvent.focus") if focus else ""
    kind, identity = Scope().id_of(reference) if reference else ("", "")
    patient, gone = inside.get((kind, identity), ("", False))
    if kind == "Patient":
        patient = identity
    for context in get_list(item, "additionalContext", "notificationEvent") if not patient else ():
        kind_of, other = Scope().id_of(get_text(context, "reference", "notificationEvent.additionalContext"))
        patient = patient or (other if kind_of == "Patient" else "")
    return ChangeEvent(kind, identity, number, patient, gone)


def _entries(entries: list[Json]) -> dict[tuple[str, str], tuple[str, bool]]:
    """(type, id) of what lies in the Bundle → (its patient, whether it was deleted)."""
    found: dict[tuple[str, str], tuple[str, bool]] = {}
    for entry in entries:
        request = get_object(entry, "request", "Bundle.entry") or {}
        resource = get_object(entry, "resource", "Bundle.entry")
        url = get_text(entry, "fullUrl", "Bundle.entry") or get_text(request, "url", "Bundle.entry.request")
        if resource is not None:
            event = _event_of(resource)
            key, patient = (event.resource_type, event.resource_id), event.patient
        else:
            key, patient = Scope().id_of(url), ""
        if key[1]:
            gone = get_text(request, "method", "Bundle.entry.request") == "DELETE"
            found[key] = (patient or (key[1] if key[0] == "Patient" else ""), gone)
    return found


def _event_of(resource: Json) -> ChangeEvent:
    kind, identity = str(resource.get("resourceType")), resource.get("id")
    if not kind.isalpha() or len(kind) > 40 or not isinstance(identity, str) or not 0 < len(identity) <= 128:
        raise BadResource("the resource of a notification has no type and id")
    try:
        patient = identity if kind == "Patient" else patient_of(resource, Scope())
    except BadResource:
        patient = ""  # not told here: it is asked for at the server
    return ChangeEvent(kind, identity, None, patient)
