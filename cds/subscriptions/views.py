"""The address FHIR servers call when something has changed: answered at once, worked on by a worker."""

from __future__ import annotations

import logging
from uuid import UUID

import orjson
from django.contrib.auth.models import AnonymousUser
from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

import ehr
from cds.audit import recording, refusing
from cds.errors import NotAllowed
from cds.subscriptions import hearing

logger = logging.getLogger(__name__)
MAX_BODY_BYTES = 5 * 2**20
JSON = frozenset({"application/fhir+json", "application/json", "application/json+fhir"})


@csrf_exempt  # the secret in the header speaks for the caller; no cookie is read
def notified(
    request: HttpRequest, subscription_id: UUID, resource_type: str = "", resource_id: str = ""
) -> HttpResponse:
    """Take a notification: 200, or an OperationOutcome with 400, 401, 405, 413, 415 or 503.

    Some servers put the resource, or delete it, at [endpoint]/[type]/[id]; that is read as well.
    """
    if request.method not in ("POST", "PUT", "DELETE"):
        response = _refusal(405, "a notification is posted", "not-supported")
        response["Allow"] = "POST, PUT, DELETE"
        return response
    now = timezone.now()
    try:
        subscription = hearing.check_caller(subscription_id, request.headers.get("Authorization", ""))
        told = _read(request, resource_type, resource_id)
        if isinstance(told, HttpResponse):
            return told
        hearing.take(subscription, told, now=now)
    except NotAllowed as error:
        _note_refusal(request, subscription_id)
        response = _refusal(401, str(error), "login")
        response["WWW-Authenticate"] = "Bearer"
        return response
    except ehr.BadResource as error:
        return _refusal(400, str(error), "invalid")
    except (OperationalError, InterfaceError):
        logger.warning("database out of reach during a notification", exc_info=True)
        response = _refusal(503, "the database is out of reach; send it again", "transient")
        response["Retry-After"] = "5"
        return response
    return HttpResponse(status=200)


def _read(request: HttpRequest, resource_type: str, resource_id: str) -> ehr.Notification | HttpResponse:
    body = request.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        return _refusal(
            413, f"a notification has at most {MAX_BODY_BYTES} bytes; ask for id-only", "too-long"
        )
    if resource_id and (request.method == "DELETE" or not body.strip()):
        event = ehr.ChangeEvent(resource_type, resource_id, deleted=request.method == "DELETE")
        return ehr.Notification(kind=ehr.NotificationKind.RESOURCE, events=(event,))
    if body.strip() and request.content_type not in JSON:
        return _refusal(415, "Content-Type must be application/fhir+json", "not-supported")
    return ehr.read_notification(body)


def _refusal(status: int, message: str, code: str) -> HttpResponse:
    issue = {"severity": "error", "code": code, "diagnostics": message}
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    return HttpResponse(orjson.dumps(outcome), status=status, content_type="application/fhir+json")


def _note_refusal(request: HttpRequest, subscription_id: UUID) -> None:
    """Note who knocked without the secret. The refusal stands even where the trail cannot be written."""
    try:
        refusing.note(
            by=recording.person(AnonymousUser(), request),
            action="subscription.notify",
            object_type="Subscription",
            object_id=subscription_id,
            now=timezone.now(),
        )
    except DatabaseError:
        logger.exception("a refused notification could not be audited")
