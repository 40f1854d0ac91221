"""The JSON shapes of `web.openapi`, as JSON Schema 2020-12.

Requests are described as strictly as they are read; what FHIR defines is left to FHIR (`Resource`).
"""

from __future__ import annotations

from typing import Any

from cds.hooks.contexts import HOOKS
from cds.hooks.feedback import MAX_COMMENT, MAX_FEEDBACK
from cds.hooks.replies import SUMMARY_LIMIT

Json = dict[str, Any]


def ref(name: str) -> Json:
    """A reference to one of the shapes."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: tuple[str, ...] = (), *, closed: bool = False, **properties: Json) -> Json:
    shape: Json = {"type": "object", "properties": properties}
    if required:
        shape["required"] = list(required)
    if closed:
        shape["additionalProperties"] = False
    return shape


def _list(of: Json, **more: Any) -> Json:
    return {"type": "array", "items": of, **more}


TEXT: Json = {"type": "string"}
FILLED: Json = {"type": "string", "minLength": 1}
URL: Json = {"type": "string", "format": "uri"}
UUID: Json = {"type": "string", "format": "uuid"}
MOMENT: Json = {"type": "string", "format": "date-time"}
FLAG: Json = {"type": "boolean"}
WHOLE: Json = {"type": "integer", "minimum": 0}
FHIR_ID: Json = {"type": "string", "pattern": r"^[A-Za-z0-9\-.]{1,64}$"}

SCHEMAS: Json = {
    "Services": _object(("services",), closed=True, services=_list(ref("Service"))),
    "Service": _object(
        ("hook", "id", "title", "description"),
        closed=True,
        hook={"enum": list(HOOKS)},
        id=FILLED,
        title=FILLED,
        description=FILLED,
        prefetch={"type": "object", "additionalProperties": FILLED},
        usageRequirements=FILLED,
        version={"type": "string", "pattern": r"^\d+\.0\.0$", "description": "A model is its major number"},
        hookVersion={"type": "string", "description": "Of the definition of the hook"},
        extension=_object(
            (),
            closed=False,
            **{
                "tessera.model": _object(
                    ("name", "number", "digest", "card"),
                    closed=True,
                    name=FILLED,
                    number=WHOLE,
                    digest=FILLED,
                    card=URL,
                    regulatoryLabel=FILLED,
                )
            },
        ),
    ),
    "HookRequest": _object(
        ("hook", "hookInstance", "context"),
        hook={"enum": list(HOOKS)},
        hookInstance=UUID,
        context=ref("Context"),
        prefetch={
            "type": ["object", "null"],
            "description": "null: there is no such data; an OperationOutcome: it could not be read",
            "additionalProperties": {"anyOf": [ref("Resource"), {"type": "null"}]},
        },
        fhirServer=URL,
        fhirAuthorization=_object(
            ("access_token", "token_type", "expires_in", "scope", "subject"),
            access_token=FILLED,
            token_type={"const": "Bearer"},
            expires_in={"type": "integer"},
            scope=FILLED,
            subject=FILLED,
            patient=FHIR_ID,
        ),
    ),
    "Context": _object(
        ("userId", "patientId"),
        userId={"type": "string", "description": "[Type]/[id] in the EHR"},
        patientId=FHIR_ID,
        encounterId={**FHIR_ID, "description": "Required by encounter-start and encounter-discharge"},
        selections=_list(FILLED, description="Required by order-select"),
        draftOrders={**ref("Resource"), "description": "A Bundle; required by order-select, order-sign"},
        appointments={**ref("Resource"), "description": "A Bundle; required by appointment-book"},
    ),
    "Resource": {**_object(("resourceType",), resourceType=FILLED), "description": "A FHIR R4 resource"},
    "Cards": _object(("cards",), closed=True, cards=_list(ref("Card"))),
    "Card": _object(
        ("uuid", "summary", "indicator", "source"),
        closed=True,
        uuid=UUID,
        summary={"type": "string", "minLength": 1, "maxLength": SUMMARY_LIMIT - 1},
        indicator={"enum": ["info", "warning", "critical"]},
        source=_object(("label",), closed=True, label=FILLED, url=URL, icon=URL, topic=ref("Coding")),
        detail={"type": "string", "description": "GitHub-flavoured Markdown"},
        suggestions=_list(ref("Suggestion"), minItems=1),
        selectionBehavior={"enum": ["at-most-one", "any"]},
        overrideReasons=_list(ref("Coding"), minItems=1),
        links=_list(ref("Link"), minItems=1),
    ),
    "Coding": _object(("code",), closed=True, code=FILLED, system=URL, display=FILLED),
    "Link": _object(
        ("label", "url", "type"),
        closed=True,
        label=FILLED,
        url=URL,
        type={"enum": ["absolute", "smart"]},
        appContext={"type": "string", "description": "With type smart only"},
    ),
    "Suggestion": _object(
        ("label", "uuid"),
        closed=True,
        label=FILLED,
        uuid=UUID,
        isRecommended=FLAG,
        actions=_list(ref("Action")),
    ),
    "Action": _object(
        ("type", "description"),
        closed=True,
        type={"enum": ["create", "update", "delete"]},
        description=FILLED,
        resource=ref("Resource"),
        resourceId=FILLED,
    ),
    "FeedbackBatch": _object(
        ("feedback",), feedback=_list(ref("Feedback"), minItems=1, maxItems=MAX_FEEDBACK)
    ),
    "Feedback": _object(
        ("card", "outcome", "outcomeTimestamp"),
        card=UUID,
        outcome={"enum": ["accepted", "overridden"]},
        outcomeTimestamp=MOMENT,
        acceptedSuggestions=_list(
            _object(("id",), id={**FILLED, "description": "uuid of a suggestion of that card, else 400"})
        ),
        overrideReason=_object(
            reason=_object(("code", "system"), code=FILLED, system=FILLED, display=TEXT),
            userComment={
                "type": ["string", "null"],
                "description": f"Cut after {MAX_COMMENT} characters",
            },
        ),
    ),
    "OperationOutcome": _object(
        ("resourceType", "issue"),
        resourceType={"const": "OperationOutcome"},
        issue=_list(
            _object(
                ("severity", "code"),
                severity={"enum": ["fatal", "error", "warning", "information"]},
                code=FILLED,
                diagnostics=FILLED,
                expression=_list(FILLED),
            ),
            minItems=1,
        ),
    ),
    "Readiness": _object(
        ("ready", "checks"),
        closed=True,
        ready=FLAG,
        checks=_object(
            ("database", "broker", "workers", "model"),
            closed=True,
            **{
                name: _object(("ok", "detail"), closed=True, ok=FLAG, detail=TEXT)
                for name in ("database", "broker", "workers", "model")
            },
        ),
    ),
    "KeySet": _object(
        ("keys",),
        closed=True,
        keys=_list(
            {
                **_object(("kty", "kid"), kty={"enum": ["EC", "RSA"]}, kid=FILLED),
                "not": {"anyOf": [{"required": [part]} for part in ("d", "p", "q", "k")]},
            }
        ),
    ),
    "ModelCard": _object(
        ("schema", "basis", "model", "privacy", "site_policy", "attributes"),
        closed=True,
        schema=FILLED,
        basis=FILLED,
        model=_object(
            ("name", "version", "id", "digest", "stage", "created", "simulated"),
            closed=True,
            name=FILLED,
            version=WHOLE,
            id=UUID,
            digest=FILLED,
            stage=FILLED,
            created=MOMENT,
            simulated=FLAG,
        ),
        privacy={"type": ["object", "null"], "description": "what a private training promises; null: none"},
        site_policy={"type": "object", "additionalProperties": ref("SitePolicy")},  # by outcome
        attributes={
            "type": "object",
            "additionalProperties": {"type": "object", "additionalProperties": ref("ModelCardLine")},
        },
    ),
    "SitePolicy": _object(
        ("moderate", "high", "very-high", "texts", "link"),
        closed=True,
        **{
            category: {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
            for category in ("moderate", "high", "very-high")
        },
        texts=_object((), closed=True, moderate=FILLED, high=FILLED, **{"very-high": FILLED}),
        link=TEXT,
    ),
    "ModelCardLine": _object(
        ("clause", "title", "text", "origin", "revision", "written"),
        closed=True,
        clause=FILLED,
        title=FILLED,
        text={"type": ["string", "null"]},
        origin={"type": ["string", "null"]},
        revision=WHOLE,
        written={"type": ["string", "null"], "format": "date-time"},
    ),
}
