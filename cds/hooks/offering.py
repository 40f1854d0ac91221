"""The services we offer: one per active outcome and hook. A site chooses the hooks (HOOKS_OFFERED)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from cds.errors import NotFound
from cds.hooks import replies, templates
from cds.hooks.contexts import HOOKS, WITH_ORDERS
from cds.registry import queries as registry_queries
from cds.registry.models import ModelVersion
from cds.registry.outcomes import OUTCOMES

PREFIX = "tessera-"
HOOK_VERSION = "1.0"  # as the definition of each hook that we answer says of itself
MODEL = "tessera.model"  # our extension at discovery
KEPT_S = 2.0  # how long a process believes what it read about active models
_kept: dict[str, tuple[float, ModelVersion]] = {}


@dataclass(frozen=True, slots=True)
class Service:
    """A service with the version that answers now; its id stays when models are promoted."""

    id: str
    hook: str
    outcome: str
    version: ModelVersion


def service_id_of(outcome: str, hook: str) -> str:
    """The id of the service that answers for an outcome at a hook."""
    return f"{PREFIX}{outcome}-{hook}"


def offered_hooks() -> tuple[str, ...]:
    """The hooks this site offers, in our order."""
    return tuple(hook for hook in HOOKS if hook in settings.HOOKS_OFFERED)


def list_services() -> list[Service]:
    """One per active outcome and offered hook; outcomes in their own order."""
    return [
        Service(service_id_of(active.outcome, hook), hook, active.outcome, active.version)
        for active in registry_queries.list_active()
        for hook in offered_hooks()
    ]


def get_service(service_id: str) -> Service:
    """The service of that id. Raises NotFound.

    Which version answers is read anew every two seconds: a promotion takes that long to reach all processes.
    """
    for hook in offered_hooks():
        if service_id.startswith(PREFIX) and service_id.endswith(f"-{hook}"):
            outcome = service_id[len(PREFIX) : -len(hook) - 1]
            version = _answering(outcome)
            if version is not None:
                return Service(service_id, hook, outcome, version)
    raise NotFound("no such service: see /cds-services")


def forget() -> None:
    """Read anew which versions answer, from the next call on."""
    _kept.clear()


def describe(service: Service) -> dict[str, Any]:
    """The entry of a service at discovery (INTEROP 1-6).

    `version` and `hookVersion` are of the 3.0 ballot: of the service, where a model is its major number, and
    of the hook's definition whose context is read. Which model answers, for which 2.0 has no word, is an
    extension. A client need read none of them.
    """
    version = service.version
    label = OUTCOMES[service.outcome].label if service.outcome in OUTCOMES else service.outcome
    about = (
        "what a risk already knows and what an imaging study would add to it"
        if (service.hook in WITH_ORDERS)
        else "calibrated risk with its interval, from the record and the images Tessera holds"
    )
    return replies.without_empty(
        {
            "hook": service.hook,
            "hookVersion": HOOK_VERSION,
            "id": service.id,
            "version": f"{version.number}.0.0",
            "title": f"Risk: {label}",
            "description": (
                f"{label}: {about}; {HOOKS[service.hook]}. Model {version.label}. "
                f"{settings.REGULATORY_LABEL}."
            ),
            "prefetch": templates.templates(version),
            "usageRequirements": (
                "Sign every call (JWT, ES384 or RS384). Send the prefetch data. What is missing is read "
                "from fhirServer with the token of the call, which must be for context.patientId, when that "
                "server is registered for you."
            ),
            "extension": {MODEL: _model(version)},
        }
    )


def _model(version: ModelVersion) -> dict[str, Any]:
    """Which model answers: the same words as in its model card and in the Device we send."""
    said = {
        "name": version.name,
        "number": version.number,
        "digest": version.digest,
        "card": f"{settings.PUBLIC_URL}/models/{version.pk}/card",
        "regulatoryLabel": settings.REGULATORY_LABEL,
    }
    return replies.without_empty(said)


def _answering(outcome: str) -> ModelVersion | None:
    clock = time.monotonic()
    until, version = _kept.get(outcome, (0.0, None))
    if version is None or clock >= until:
        version = registry_queries.answering(outcome)
        if version is None:
            return None
        _kept[outcome] = (clock + KEPT_S, version)
    return version
