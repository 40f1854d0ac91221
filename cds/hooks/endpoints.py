"""What every CDS Hooks address shares: who is calling, CORS, limits, and errors in the words of FHIR.

Every failure leaves as an OperationOutcome with its status; none of them is a 200 (INTEROP 11).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson
from django.core.exceptions import DisallowedHost
from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views import defaults
from django.views.decorators.csrf import csrf_exempt

import ehr
from cds.audit import recording, refusing
from cds.errors import ClinicError, Conflict, Invalid, NotAllowed, NotFound, Unavailable
from cds.hooks import client_auth, limiting, origins
from cds.hooks.answering import NotAllKept
from cds.hooks.client_auth import Caller, Unauthorised
from cds.hooks.fields import BadRequest
from cds.hooks.replies import Issue, operation_outcome
from cds.hooks.spending import TooMany
from cds.hooks.wire import MAX_BODY_BYTES, Unobtainable

logger = logging.getLogger(__name__)
ANY = ""  # method: whichever comes
Body = Callable[..., HttpResponse]


class UnsupportedType(ClinicError):
    """The body is not declared as plain JSON (415)."""


class BodyTooLarge(ClinicError):
    """The body is larger than MAX_BODY_BYTES (413)."""


def endpoint(method: str) -> Callable[[Body], Callable[..., HttpResponse]]:
    """Make an address of CDS Hooks of `body(request, *, caller, now, …)`; OPTIONS is answered beside it."""

    def declare(body: Body) -> Callable[..., HttpResponse]:
        @csrf_exempt  # a signed token speaks for the caller; no cookie is read, so there is nothing to forge
        @functools.wraps(body)
        def view(request: HttpRequest, **kwargs: Any) -> HttpResponse:
            origin = request.headers.get("Origin", "")
            is_allowed = origins.is_allowed(origin)
            try:
                if request.method == "OPTIONS":
                    response = origins.preflight(request, allowed=is_allowed)
                elif method != ANY and request.method != method:
                    response = refusal(405, f"only {method} here", code="not-supported")
                    response["Allow"] = f"{method}, OPTIONS"
                else:
                    response = _answer(request, body, kwargs)
            except (OperationalError, InterfaceError) as error:
                response = _without_database(error)
            return origins.tell(response, origin, allowed=is_allowed)

        return view

    return declare


@endpoint(ANY)
def elsewhere(request: HttpRequest, *, caller: Caller, now: datetime) -> HttpResponse:
    """Every other address below /cds-services, such as one with a slash at its end: 404, audited."""
    raise NotFound(
        "no such address: /cds-services, /cds-services/{id} and /cds-services/{id}/feedback are answered, "
        "without a slash at the end; an id is as /cds-services tells it"
    )


def malformed(request: HttpRequest, exception: Exception) -> HttpResponse:
    """What Django refuses before any view is asked (400), such as a Host that is not ours.

    At our addresses in the words of FHIR, and readable in a browser; elsewhere the usual page.
    """
    if not request.path.startswith("/cds-services"):
        return defaults.bad_request(request, exception)
    message = "the request is not well-formed HTTP for this address"
    if isinstance(exception, DisallowedHost):
        message = (
            "the Host header names none of ALLOWED_HOSTS: call PUBLIC_URL, or add the host name you call to "
            "ALLOWED_HOSTS and start again"
        )
    origin = request.headers.get("Origin", "")
    response = refusal(400, message, code="invalid")
    return origins.tell(response, origin, allowed=origins.is_allowed(origin))


def read_body(request: HttpRequest) -> bytes:
    """The JSON body's bytes. Raises UnsupportedType, BodyTooLarge."""
    if request.content_type != "application/json":
        raise UnsupportedType("Content-Type must be application/json")
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedType("no Content-Encoding is read here: send the JSON as it is, not compressed")
    declared = request.META.get("CONTENT_LENGTH") or "0"
    if not (declared.isascii() and declared.isdigit()) or int(declared) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"a body has at most {MAX_BODY_BYTES} bytes")
    body: bytes = request.read(MAX_BODY_BYTES + 1)  # a chunked body declares no length
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"a body has at most {MAX_BODY_BYTES} bytes")
    return body


def json_response(values: Any, status: int = 200) -> HttpResponse:
    """Plain data as JSON."""
    return HttpResponse(orjson.dumps(values), status=status, content_type="application/json")


def refusal(status: int, message: str, *, code: str, expression: str = "") -> HttpResponse:
    """An OperationOutcome with a status."""
    return _outcome(status, Issue(code, message, (expression,) if expression else ()))


def _outcome(status: int, *issues: Issue) -> HttpResponse:
    said = orjson.dumps(operation_outcome(*issues))
    return HttpResponse(said, status=status, content_type="application/fhir+json")


def _answer(request: HttpRequest, body: Body, kwargs: dict[str, Any]) -> HttpResponse:
    now = timezone.now()
    try:
        caller = client_auth.verify(request, now=now)
    except Unauthorised as error:
        claimed = {"claimed_issuer": error.issuer, "is_verified": False} if error.issuer else {}
        actor = refusing.unknown_client(request)
        if error.client is not None:
            claimed, actor = {}, recording.client(error.client, request)
        _record_refusal(actor, request, 401, now, rule=str(error), **claimed)
        response = refusal(401, str(error), code="login")
        response["WWW-Authenticate"] = 'Bearer error="invalid_token"'
        return response
    except TooMany as error:  # told in the log only: writing each down would make a flood worse
        logger.warning("a client calls more often than it may")
        return _refused(error)
    except Unavailable as error:
        response = _refused(error)
        _record_refusal(refusing.unknown_client(request), request, response.status_code, now)
        return response
    try:
        return body(request, caller=caller, now=now, **kwargs)
    except (ClinicError, ehr.EhrError) as error:
        response = _refused(error)
    except (OperationalError, InterfaceError) as error:
        response = _without_database(error)
        if not limiting.is_overdue(error):
            return response  # nobody is there to note it
    except Exception:  # the EHR must get an OperationOutcome and never a page; the trace goes to the log
        logger.exception("a CDS Hooks call failed")
        response = refusal(500, "an unexpected error; it was logged", code="exception")
    _record_refusal(caller.actor, request, response.status_code, now)
    return response


def _without_database(error: Exception) -> HttpResponse:
    if limiting.is_overdue(error):
        logger.warning("the database took longer than a CDS Hooks call may")
        return away("the database did not answer within the call's budget: try again")
    logger.warning("database out of reach during a CDS Hooks call", exc_info=error)
    return away("the database is out of reach")


def _refused(error: Exception) -> HttpResponse:
    match error:
        case BadRequest():
            return refusal(400, str(error), code=error.code, expression=error.expression)
        case Unobtainable():
            return refusal(412, str(error), code="not-found", expression="prefetch")
        case UnsupportedType():
            return refusal(415, str(error), code="not-supported")
        case BodyTooLarge():
            return refusal(413, str(error), code="too-long")
        case NotFound():
            return refusal(404, str(error), code="not-found")
        case NotAllowed():
            return refusal(403, str(error), code="forbidden")
        case Conflict():
            return refusal(409, str(error), code="conflict")
        case TooMany():
            response = refusal(429, str(error), code="throttled")
            response["Retry-After"] = str(error.retry_after_s)
            return response
        case Invalid():
            return refusal(422, str(error), code="business-rule")
        case ehr.Permanent():  # JSON and FHIR by shape, yet not one patient's record
            return refusal(422, str(error), code="business-rule", expression="prefetch")
        case NotAllKept():
            response = _outcome(error.status, *error.issues)
            return _come_again(response) if error.status == 503 else response
        case Unavailable() | ehr.Retriable():
            return away(str(error))
        case _:
            logger.error("an error without a status of its own", exc_info=error)
            return refusal(500, "an unexpected error; it was logged", code="exception")


def away(message: str) -> HttpResponse:
    """Not now: 503, and when to try again."""
    return _come_again(refusal(503, message, code="transient"))


def _come_again(response: HttpResponse) -> HttpResponse:
    response["Retry-After"] = "5"
    return response


def _record_refusal(
    actor: recording.Actor, request: HttpRequest, status: int, now: datetime, **detail: Any
) -> None:
    """Note a call that was refused. Where the trail cannot be written, the refusal stands all the same."""
    try:
        refusing.note(
            by=actor,
            action="hook.call",
            object_type="HookService",
            object_id=request.path[:64],
            now=now,
            outcome="failed" if status >= 500 else "refused",
            status=status,
            **detail,
        )
    except DatabaseError:
        logger.exception("a refused CDS Hooks call could not be audited")
