"""What we answer as JSON, in OpenAPI 3.1: `/openapi.json`.

Hooks, notifications, model card, keys and health. Screens, pictures and CSV are for people and are not in it.
We serve no DICOMweb and no FHIR API: images come by
C-STORE or are fetched, results are sent. Sources: OpenAPI 3.1.1; CDS Hooks 2.0; FHIR R4 OperationOutcome;
RFC 7517. Tests hold every route and real answers against it.
"""

from __future__ import annotations

from typing import Any

from cds.hooks.contexts import HOOKS
from web.openapi_schemas import SCHEMAS, ref

Json = dict[str, Any]
REFUSALS = {
    "400": "Malformed: the OperationOutcome names the field",
    "401": "No valid token",
    "403": "The token is for another patient, or this account may not",
    "404": "No such service, card, version or subscription",
    "405": "Another method",
    "408": "The body did not come within ten seconds",
    "412": "No usable prefetch, and it could not be read",
    "413": "A body over 5 MB",
    "415": "Not declared as JSON, or compressed",
    "422": "Well-formed, but not one patient's record",
    "429": "Too many calls in this minute; see Retry-After",
    "503": "Not now; see Retry-After",
}
UUID: Json = {"type": "string", "format": "uuid"}


def describe(*, server: str, version: str) -> Json:
    """The whole document. `server` is PUBLIC_URL, `version` the product's."""
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Tessera",
            "version": version,
            "summary": "CDS Hooks services, and what else other systems read from Tessera.",
            "description": (
                "The guide for integrators tells how to register and shows a working call of each hook."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server}],
        "tags": [
            {"name": "hooks", "description": "CDS Hooks 2.0; every call is signed."},
            {"name": "models", "description": "What is known about a model version."},
            {"name": "notifications", "description": "FHIR Subscriptions that tell us of changes."},
            {"name": "operation", "description": "Health, metrics, keys, this document."},
        ],
        "paths": {**_hooks(), **_notifications(), **_models(), **_operation()},
        "components": {"schemas": SCHEMAS, "responses": _refusals(), "securitySchemes": _security()},
    }


def _hooks() -> Json:
    signed: list[Json] = [{"signedToken": []}]
    service = _path("service_id", "An id from discovery", {"type": "string", "maxLength": 200})
    called = {
        "operationId": "callService",
        "tags": ["hooks"],
        "summary": "Call a service at its hook; answered within HOOKS_BUDGET_MS",
        "description": "; ".join(f"{hook}: {when}" for hook, when in HOOKS.items()),
        "security": signed,
        "parameters": [service],
        "requestBody": _body("HookRequest"),
        "responses": {
            "200": _json("Cards; none where the outcome is snoozed or no imaging is ordered", "Cards"),
            **_refused("400", "401", "403", "404", "405", "408", "412", "413", "415", "422", "429", "503"),
        },
    }
    told = {
        "operationId": "sendFeedback",
        "tags": ["hooks"],
        "summary": "What clinicians did with cards; batches, and repeats are kept once",
        "description": "Each item is kept or refused by itself. A refusal names every item that is not kept "
        "(issue.expression) and says how many are; 503: send the batch again, nothing is kept twice.",
        "security": signed,
        "parameters": [service],
        "requestBody": _body("FeedbackBatch"),
        "responses": {
            "200": {"description": "Kept; no body"},
            **_refused("400", "401", "404", "405", "408", "413", "415", "429", "503"),
        },
    }
    discovered = {
        "operationId": "listServices",
        "tags": ["hooks"],
        "summary": "Discovery: one service per active outcome and hook",
        "security": signed,
        "responses": {
            "200": _json("Every service that is offered now", "Services"),
            **_refused("401", "405", "429", "503"),
        },
    }
    return {
        "/cds-services": {"get": discovered},
        "/cds-services/{service_id}": {"post": called},
        "/cds-services/{service_id}/feedback": {"post": told},
    }


def _notifications() -> Json:
    subscription = _path("subscription_id", "Given to the FHIR server as its endpoint", UUID)
    answers = {
        "200": {"description": "Taken; a worker reads what has changed"},
        **_refused("400", "401", "405", "413", "415", "503"),
    }

    def operation(name: str, **more: Any) -> Json:
        return {
            "operationId": name,
            "tags": ["notifications"],
            "summary": "Something has changed at a FHIR server (rest-hook of R4, or a topic of the backport)",
            "security": [{"subscriptionSecret": []}],
            "responses": answers,
            **more,
        }

    body = {"content": {"application/fhir+json": {"schema": ref("Resource")}}}
    return {
        "/fhir/subscriptions/{subscription_id}": {
            "parameters": [subscription],
            "post": operation("notify", requestBody=body),
        },
        "/fhir/subscriptions/{subscription_id}/{resource_type}/{resource_id}": {
            "parameters": [
                subscription,
                _path("resource_type", "FHIR type", {"type": "string"}),
                _path("resource_id", "FHIR id", {"type": "string"}),
            ],
            "put": operation("notifyChanged", requestBody=body),
            "delete": operation("notifyDeleted"),
        },
    }


def _models() -> Json:
    card = {
        "operationId": "readModelCard",
        "tags": ["models"],
        "summary": "The 31 source attributes of a model version",
        "security": [{"session": []}],
        "parameters": [_path("version_id", "Of the model version", UUID)],
        "responses": {
            "200": _json("null where nothing is provided", "ModelCard"),
            "302": {"description": "Not signed in: to the sign-in page"},
            "403": {"description": "This account may not read it; a page"},
            "404": {"description": "No such version; a page"},
        },
    }
    return {"/models/{version_id}/card.json": {"get": card}}


def _operation() -> Json:
    def read(name: str, summary: str, **answers: Json) -> Json:
        answered = {status.removeprefix("s"): said for status, said in answers.items()}
        return {
            "get": {
                "operationId": name,
                "tags": ["operation"],
                "summary": summary,
                "security": [],
                "responses": answered,
            }
        }

    def text(said: str) -> Json:
        return {"description": said, "content": {"text/plain": {"schema": {"type": "string"}}}}

    return {
        "/livez": read("isAlive", "The process answers", s200=text("ok")),
        "/readyz": read(
            "isReady",
            "Whether it can do its work, and which part cannot",
            s200=_json("Every check is well", "Readiness"),
            s503=_json("A check is not", "Readiness"),
        ),
        "/metrics": read(
            "readMetrics", "Prometheus; keep it inside your network", s200=text("Text exposition")
        ),
        "/.well-known/jwks.json": read(
            "readKeys",
            "Our public keys, for the authorisation servers we sign in to",
            s200=_json("Newest first", "KeySet"),
        ),
        "/openapi.json": read(
            "readDescription",
            "This document",
            s200={
                "description": "OpenAPI 3.1",
                "content": {"application/json": {"schema": {"type": "object", "required": ["openapi"]}}},
            },
        ),
    }


def _security() -> Json:
    return {
        "signedToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": (
                "Signed by the calling EHR with ES384 or RS384 for the very address called, with a new jti "
                "each time, by a key registered with `manage.py hook_client add`."
            ),
        },
        "subscriptionSecret": {
            "type": "apiKey",
            "in": "header",
            "name": "Authorization",
            "description": "The secret that we gave the FHIR server with the Subscription.",
        },
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": "sessionid",
            "description": "Somebody signed in; the cookie is named __Host-session in production.",
        },
    }


def _refusals() -> Json:
    return {
        f"Refused{status}": {
            "description": why,
            "content": {"application/fhir+json": {"schema": ref("OperationOutcome")}},
        }
        for status, why in REFUSALS.items()
    }


def _refused(*statuses: str) -> Json:
    return {status: {"$ref": f"#/components/responses/Refused{status}"} for status in statuses}


def _json(said: str, schema: str) -> Json:
    return {"description": said, "content": {"application/json": {"schema": ref(schema)}}}


def _body(schema: str) -> Json:
    return {"required": True, "content": {"application/json": {"schema": ref(schema)}}}


def _path(name: str, said: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "description": said, "schema": schema}
