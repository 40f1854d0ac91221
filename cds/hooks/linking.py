"""Where a card leads: to the panel in a browser and, where the EHR may launch us, to it inside the EHR.

A `smart` link is of use only to an EHR that launches us (INTEROP 16, 24): it stands on a card when the FHIR
server of the call, or where the call names none one of those registered for the client, is registered for
SMART launches too (`manage.py smart_server add`) with the same source, so that the launch finds this very
patient. Otherwise a card has the absolute link alone, and no appContext.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import orjson
from django.conf import settings
from django.urls import NoReverseMatch, reverse

from cds.hooks.client_auth import Caller
from cds.hooks.replies import Link
from cds.hooks.wire import FhirAccess
from cds.patients.models import Patient
from cds.risk.standing import Standing

KEPT_S = 2.0  # how long a process believes what it read of a source's SMART servers
_kept: dict[int, tuple[float, frozenset[str]]] = {}


def may_launch(caller: Caller, access: FhirAccess | None) -> bool:
    """Whether the EHR that calls is registered for SMART launches for patients of its source."""
    servers: Iterable[str] = caller.client.fhir_servers if caller.client is not None else ()
    if access is not None:
        servers = (access.server.rstrip("/"),)
    return not _launching(caller).isdisjoint(servers)


def links(
    standing: Standing, patient: Patient, *, outcome: str, may_launch: bool = False
) -> tuple[Link, ...]:
    """The panel in the EHR, at this outcome and score, where it may launch us; and in a browser."""
    panel = f"{settings.PUBLIC_URL}/patients/{patient.pk}/risk?outcome={outcome}"
    absolute = Link("Open the risk panel", panel)
    launch = _launch_path() if may_launch else ""
    if not launch:
        return (absolute,)
    said = {"outcome": outcome}
    if standing.assessment is not None:
        said = {"assessment": str(standing.assessment.pk), **said}
    label = "Open this score" if standing.assessment is not None else "Open the risk panel here"
    return (Link(label, settings.PUBLIC_URL + launch, "smart", orjson.dumps(said).decode()), absolute)


def forget() -> None:
    """Read anew which servers may launch us, from the next call on."""
    _kept.clear()


def _launching(caller: Caller) -> frozenset[str]:
    """Issuers of the caller's source that may launch us, by way of the source: `cds.launch` is above us."""
    clock = time.monotonic()
    until, held = _kept.get(caller.source.pk, (0.0, frozenset()))
    if clock >= until:
        active = caller.source.smartserver_set.filter(is_active=True)
        held = frozenset(active.values_list("issuer", flat=True))
        _kept[caller.source.pk] = (clock + KEPT_S, held)
    return held


def _launch_path() -> str:
    try:
        return reverse("smart-launch")
    except NoReverseMatch:
        return ""
