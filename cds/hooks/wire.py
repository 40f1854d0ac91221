"""CDS Hooks 2.0 on the wire, towards us: what an EHR may send. Rules of the specification only.

Requests are read strictly (INTEROP 8-10, 17): a `BadRequest` names the field. What we answer is in `replies`.
No database, no settings, no clock here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from cds.errors import Invalid

MAX_BODY_BYTES = 5 * 1024 * 1024
MAX_FEEDBACK = 1000
MAX_COMMENT = 500
FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
USER = re.compile(r"(Practitioner|PractitionerRole|Patient|RelatedPerson)/[A-Za-z0-9\-.]{1,64}")
CONTEXT_FIELDS = {"patient-view": ("userId", "patientId")}  # other hooks come with their own services


class BadRequest(Invalid):
    """The request breaks the specification; `expression` is the path of the field that does."""

    def __init__(self, message: str, *, expression: str = "", code: str = "invalid") -> None:
        super().__init__(message)
        self.expression = expression
        self.code = code


class Unobtainable(Invalid):
    """The data the service needs were not sent and cannot be fetched (INTEROP 11): 412, never empty cards."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """What the EHR sent ahead (INTEROP 7).

    resources  key -> a FHIR resource
    empty      keys sent as null: the EHR says there is no such data
    failed     keys whose value is an OperationOutcome: the EHR could not read them
    partial    keys whose Bundle has a further page that was not sent
    """

    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()

    def missing(self, expected: tuple[str, ...]) -> tuple[str, ...]:
        """The keys we asked for and did not get whole, in our order."""
        whole = (self.resources.keys() - set(self.partial)) | set(self.empty)
        return tuple(key for key in expected if key not in whole)


@dataclass(frozen=True, slots=True)
class HookRequest:
    """A call of a service. The access token of `fhirAuthorization` is checked for shape and dropped here."""

    hook: str
    hook_instance: str
    user: str
    patient_id: str
    encounter_id: str = ""
    prefetch: Prefetch = field(default_factory=Prefetch)


@dataclass(frozen=True, slots=True)
class FeedbackItem:
    """What happened to one card (INTEROP 17)."""

    card: UUID
    outcome: str
    outcome_at: datetime
    accepted_suggestions: tuple[str, ...] = ()
    reason_code: str = ""
    reason_system: str = ""
    comment: str = ""


def parse_json(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises BadRequest, never quoting the body: it may name a patient."""
    if b"\\u0000" in body:  # no FHIR string may hold it, and PostgreSQL cannot keep it
        raise BadRequest("the body holds a NUL character", code="structure")
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON (position {error.pos})", code="structure") from None
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object", code="structure")
    return found


def parse_request(sent: Mapping[str, Any], *, hook: str) -> HookRequest:
    """Read a call of a service of `hook` by the rules of INTEROP 7-10. Raises BadRequest."""
    named = _text(sent, "hook")
    if named != hook:
        raise BadRequest(f"this service answers {hook}, not the hook that was sent", expression="hook")
    instance = _text(sent, "hookInstance")
    try:
        instance = str(UUID(instance))
    except ValueError:
        raise BadRequest("hookInstance must be a UUID", expression="hookInstance") from None
    context = _object(sent, "context")
    for name in CONTEXT_FIELDS[hook]:
        _text(context, name, within="context")
    if not USER.fullmatch(context["userId"]):
        raise BadRequest("userId must be [Practitioner…]/[id]", expression="context.userId")
    for name in ("patientId", "encounterId"):
        if context.get(name) is not None and not FHIR_ID.fullmatch(_text(context, name, within="context")):
            raise BadRequest(f"{name} must be a FHIR id", expression=f"context.{name}")
    _check_authorization(sent)
    return HookRequest(
        hook=named,
        hook_instance=instance,
        user=context["userId"],
        patient_id=context["patientId"],
        encounter_id=context.get("encounterId") or "",
        prefetch=_parse_prefetch(sent.get("prefetch")),
    )


def parse_feedback(sent: Mapping[str, Any]) -> list[FeedbackItem]:
    """Read a batch of feedback (INTEROP 17). Raises BadRequest."""
    items = sent.get("feedback")
    if not isinstance(items, list) or not items:
        raise BadRequest("feedback must be a list of at least one", expression="feedback", code="required")
    if len(items) > MAX_FEEDBACK:
        raise BadRequest(f"at most {MAX_FEEDBACK} in one batch", expression="feedback", code="too-long")
    return [_parse_feedback_item(item, f"feedback[{place}]") for place, item in enumerate(items)]


def _parse_feedback_item(item: Any, where: str) -> FeedbackItem:
    if not isinstance(item, dict):
        raise BadRequest("feedback holds objects", expression=where)
    try:
        card = UUID(_text(item, "card", within=where))
    except ValueError:
        raise BadRequest("card must be the uuid of a card", expression=f"{where}.card") from None
    outcome = _text(item, "outcome", within=where)
    if outcome not in {"accepted", "overridden"}:
        raise BadRequest("outcome is accepted or overridden", expression=f"{where}.outcome")
    at = _moment(_text(item, "outcomeTimestamp", within=where), f"{where}.outcomeTimestamp")
    suggestions: list[str] = []
    if outcome == "accepted":
        chosen = item.get("acceptedSuggestions", [])
        if not isinstance(chosen, list):
            raise BadRequest("acceptedSuggestions must be a list", expression=f"{where}.acceptedSuggestions")
        for place, one in enumerate(chosen):
            path = f"{where}.acceptedSuggestions[{place}]"
            if not isinstance(one, dict):
                raise BadRequest("acceptedSuggestions holds objects with an id", expression=path)
            suggestions.append(_short(one, "id", 64, path))
    code, system, comment = _override_reason(item, where) if outcome == "overridden" else ("", "", "")
    return FeedbackItem(card, outcome, at, tuple(suggestions), code, system, comment)


def _override_reason(item: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    if item.get("overrideReason") is None:
        return "", "", ""
    override, path = _object(item, "overrideReason", within=where), f"{where}.overrideReason"
    comment = override.get("userComment")
    if comment is not None and not isinstance(comment, str):
        raise BadRequest("userComment must be text", expression=f"{path}.userComment")
    comment = comment or ""
    if len(comment) > MAX_COMMENT:
        raise BadRequest(
            f"userComment has at most {MAX_COMMENT} characters",
            expression=f"{path}.userComment",
            code="too-long",
        )
    if override.get("reason") is None:
        return "", "", comment
    reason, path = _object(override, "reason", within=path), f"{path}.reason"
    return _short(reason, "code", 80, path), _short(reason, "system", 300, path), comment


def _parse_prefetch(sent: Any) -> Prefetch:
    if sent is None:
        return Prefetch()
    if not isinstance(sent, dict):
        raise BadRequest("prefetch must be an object", expression="prefetch")
    resources: dict[str, Mapping[str, Any]] = {}
    empty, failed, partial = [], [], []
    for key, value in sent.items():
        if value is None:
            empty.append(key)
        elif not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
            raise BadRequest("a prefetch value is null or a FHIR resource", expression=f"prefetch.{key[:80]}")
        elif value["resourceType"] == "OperationOutcome":
            failed.append(key)
        else:
            resources[key] = value
            if value["resourceType"] == "Bundle" and _has_next(value):
                partial.append(key)
    return Prefetch(resources, tuple(empty), tuple(failed), tuple(partial))


def _has_next(bundle: Mapping[str, Any]) -> bool:
    links = bundle.get("link")
    return isinstance(links, list) and any(
        isinstance(one, dict) and one.get("relation") == "next" for one in links
    )


def _check_authorization(sent: Mapping[str, Any]) -> None:
    """`fhirServer` and `fhirAuthorization` by shape; the token is neither kept nor quoted (INTEROP 9)."""
    if sent.get("fhirServer") is not None:
        server = _text(sent, "fhirServer")
        if not server.startswith(("https://", "http://")):
            raise BadRequest("fhirServer must be a URL", expression="fhirServer")
    if sent.get("fhirAuthorization") is None:
        return
    if sent.get("fhirServer") is None:
        raise BadRequest(
            "fhirServer is required with fhirAuthorization", expression="fhirServer", code="required"
        )
    authorization = _object(sent, "fhirAuthorization")
    for name in ("access_token", "token_type", "scope", "subject"):
        _text(authorization, name, within="fhirAuthorization")
    kind = authorization["token_type"]
    if kind != "Bearer":
        raise BadRequest("token_type must be Bearer", expression="fhirAuthorization.token_type")
    expires = authorization.get("expires_in")
    if not isinstance(expires, int) or isinstance(expires, bool):
        raise BadRequest(
            "expires_in must be a whole number of seconds", expression="fhirAuthorization.expires_in"
        )


def _text(sent: Mapping[str, Any], name: str, *, within: str = "") -> str:
    path = f"{within}.{name}" if within else name
    value = sent.get(name)
    if value is None or value == "":
        raise BadRequest(f"{name} is required", expression=path, code="required")
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be text", expression=path)
    return value


def _short(sent: Mapping[str, Any], name: str, limit: int, where: str) -> str:
    value = _text(sent, name, within=where)
    if len(value) > limit:
        raise BadRequest(
            f"{name} has at most {limit} characters", expression=f"{where}.{name}", code="too-long"
        )
    return value


def _object(sent: Mapping[str, Any], name: str, *, within: str = "") -> dict[str, Any]:
    path = f"{within}.{name}" if within else name
    value = sent.get(name)
    if value is None:
        raise BadRequest(f"{name} is required", expression=path, code="required")
    if not isinstance(value, dict):
        raise BadRequest(f"{name} must be an object", expression=path)
    return value


def _moment(text: str, where: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest("not an ISO 8601 moment", expression=where) from None
    if at.tzinfo is None:
        raise BadRequest("a moment needs its time zone", expression=where)
    if not 1900 < at.year < 2200:
        raise BadRequest("a moment within reason", expression=where)
    return at
