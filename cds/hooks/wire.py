"""CDS Hooks 2.0 on the wire, towards us: what an EHR may send. Rules of the specification only.

Requests are read strictly (INTEROP 7-10): a `BadRequest` names the field. Contexts are in `contexts`,
feedback in `feedback`, what we answer in `replies`. No database, no settings, no clock here.

A prefetch that was read before need not be parsed again to be known: `Outline` finds where it lies in the
body, so that its bytes can be compared, and the rest of the body is parsed without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

import ehr
from cds.errors import Invalid, NotAllowed
from cds.hooks import fields
from cds.hooks.contexts import Context, parse_context
from cds.hooks.fields import BadRequest

MAX_BODY_BYTES = 5 * 1024 * 1024
_PREFETCH = re.compile(rb'"prefetch"\s*:\s*(?=\{)')
_PATIENT = re.compile(rb'"patientId"\s*:\s*"([A-Za-z0-9\-.]{1,64})"')
# A NUL in JSON: \u0000 after no backslash or an even number of them, which are then letters themselves
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0000")
_LEFT_OUT = "tessera: read before"


class Unobtainable(Invalid):
    """The data the service needs were not sent and cannot be fetched (INTEROP 11): 412, never empty cards."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """What the EHR sent ahead (INTEROP 7).

    resources  key -> a FHIR resource
    empty      keys sent as null: the EHR says there is no such data
    failed     keys whose value is an OperationOutcome, or a Bundle of failures: the EHR could not read them
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
class FhirAccess:
    """Where the EHR lets us read for the length of this call. The token is in no repr, row or log line."""

    server: str
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class HookRequest:
    """A call of a service."""

    hook: str
    hook_instance: str
    context: Context
    prefetch: Prefetch = field(default_factory=Prefetch)
    access: FhirAccess | None = None


@dataclass(frozen=True, slots=True)
class Outline:
    """Where things lie in a body, by a glance at its bytes; to be believed only once `rest` has been parsed.

    start       first byte of the value of "prefetch"
    patient_id  what looks like context.patientId
    """

    body: bytes = field(repr=False)
    start: int
    patient_id: str

    def prefetch(self, length: int) -> memoryview:
        """The bytes of a prefetch of that length."""
        return memoryview(self.body)[self.start : self.start + length]

    def parse_rest(self, length: int, *, hook: str) -> HookRequest | None:
        """The request without its prefetch; None when it is not what the glance suggested.

        The prefetch must be known already: whoever calls this compared its bytes.
        """
        sentinel = orjson.dumps(_LEFT_OUT)
        sent = parse_json(self.body[: self.start] + sentinel + self.body[self.start + length :])
        if sent.get("prefetch") != _LEFT_OUT:
            return None
        request = parse_request({**sent, "prefetch": None}, hook=hook)
        return request if request.context.patient_id == self.patient_id else None


def outline(body: bytes) -> Outline | None:
    """A glance at a body; None when it does not look like a call with a prefetch."""
    prefetch, patient = _PREFETCH.search(body), _PATIENT.search(body)
    if prefetch is None or patient is None:
        return None
    return Outline(body, prefetch.end(), patient[1].decode())


def parse_json(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises BadRequest, never quoting the body: it may name a patient."""
    if b"\\u0000" in body and _NUL.search(body):  # no FHIR string may hold it, and PostgreSQL cannot keep it
        raise BadRequest("the body holds a NUL character", code="structure")
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON (position {error.pos})", code="structure") from None
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object", code="structure")
    return found


def parse_request(sent: Mapping[str, Any], *, hook: str) -> HookRequest:
    """Read a call of a service of `hook` by the rules of INTEROP 7-10.

    raises  BadRequest; NotAllowed when the token was given for another patient than context.patientId
    """
    named = fields.text(sent, "hook")
    if named != hook:
        raise BadRequest(f"this service answers {hook}, not the hook that was sent", expression="hook")
    instance = fields.text(sent, "hookInstance")
    try:
        instance = str(UUID(instance))
    except ValueError:
        raise BadRequest("hookInstance must be a UUID", expression="hookInstance") from None
    context = parse_context(fields.an_object(sent, "context"), hook=hook)
    return HookRequest(
        hook=named,
        hook_instance=instance,
        context=context,
        prefetch=_parse_prefetch(sent.get("prefetch")),
        access=_parse_access(sent, context.patient_id),
    )


def has_next(bundle: Mapping[str, Any]) -> bool:
    """Whether a Bundle says that there are further pages."""
    links = bundle.get("link")
    return isinstance(links, list) and any(
        isinstance(one, dict) and one.get("relation") == "next" for one in links
    )


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
        elif ehr.is_failure(value):
            failed.append(key)
        else:
            resources[key] = value
            if value["resourceType"] == "Bundle" and has_next(value):
                partial.append(key)
    return Prefetch(resources, tuple(empty), tuple(failed), tuple(partial))


def _parse_access(sent: Mapping[str, Any], patient_id: str) -> FhirAccess | None:
    """`fhirServer` and `fhirAuthorization` (INTEROP 9). The token is never quoted."""
    server = ""
    if sent.get("fhirServer") is not None:
        server = fields.text(sent, "fhirServer")
        if not server.startswith(("https://", "http://")):
            raise BadRequest("fhirServer must be a URL", expression="fhirServer")
    if sent.get("fhirAuthorization") is None:
        return FhirAccess(server) if server else None
    if not server:
        raise BadRequest(
            "fhirServer is required with fhirAuthorization", expression="fhirServer", code="required"
        )
    authorization = fields.an_object(sent, "fhirAuthorization")
    for name in ("access_token", "token_type", "scope", "subject"):
        fields.text(authorization, name, within="fhirAuthorization")
    if authorization["token_type"] != "Bearer":  # noqa: S105 (a scheme, no secret)
        raise BadRequest("token_type must be Bearer", expression="fhirAuthorization.token_type")
    if not authorization["access_token"].isascii() or not authorization["access_token"].isprintable():
        raise BadRequest("access_token is no bearer token", expression="fhirAuthorization.access_token")
    expires = authorization.get("expires_in")
    if not isinstance(expires, int) or isinstance(expires, bool):
        raise BadRequest(
            "expires_in must be a whole number of seconds", expression="fhirAuthorization.expires_in"
        )
    if authorization.get("patient") is not None:
        given = fields.text(authorization, "patient", within="fhirAuthorization")
        if given != patient_id:
            raise NotAllowed("fhirAuthorization.patient is another patient than context.patientId")
    return FhirAccess(server, authorization["access_token"])
