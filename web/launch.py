"""SMART App Launch: an EHR opens us with a patient (INTEROP 24 to 29).

`/launch?iss=…&launch=…` sends the browser to the EHR's sign-in, `/launch/callback` takes it back, signs the
person in and lands on the panel of that patient. What is on its way is kept in the session of the browser it
began in, so a callback anywhere else is refused; a session belongs to one launch.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.http import require_safe

import cds.launch.launching as launching
from cds.audit import recording
from cds.errors import ClinicError, NotAllowed, Unavailable
from cds.launch import registering, styling

SESSION, WAITING = "launch", "launches"
MOST_WAITING = 5
WAITS_S = 600
BACKEND = "django.contrib.auth.backends.ModelBackend"
STATUS = {NotAllowed: 403, Unavailable: 503}
LANDED = (
    "You came from your EHR and are signed in as a clinician, for this patient only. An estimate "
    "here is for "
    "research use and from past patients: it helps to decide whom to look at first, and decides nothing."
)


@dataclass(frozen=True, slots=True)
class SessionLaunch:
    """The launch a session belongs to. `key` tells it from earlier ones in the same browser."""

    key: str
    patient: str
    encounter: str
    show_banner: bool
    style: dict[str, str]


def of_session(request: HttpRequest) -> SessionLaunch | None:
    """The launch this session began with; None for somebody who signed in here."""
    session = getattr(request, "session", None)
    kept = session.get(SESSION) if session is not None else None
    return SessionLaunch(**kept) if isinstance(kept, dict) else None


@require_safe
def launch(request: HttpRequest) -> HttpResponse:
    """The EHR's launch; with `iss` alone, or a choice from the list, a standalone one."""
    issuer = request.GET.get("iss", "")
    if not issuer:
        return render(request, "web/launch.html", {"servers": registering.list_servers()})
    try:
        there, server, pending = launching.begin(issuer, launch=request.GET.get("launch", ""))
    except ClinicError as error:
        return _refused(request, error, issuer=issuer)
    waiting = {state: kept for state, kept in _waiting(request).items() if time.time() - kept["at"] < WAITS_S}
    newest = list(waiting.items())[-(MOST_WAITING - 1) :]
    kept = {**asdict(pending), "issuer": server.issuer, "at": time.time()}
    request.session[WAITING] = {**dict(newest), pending.state: kept}
    return redirect(there)


@require_safe
def callback(request: HttpRequest) -> HttpResponse:
    """Back from the EHR's sign-in. A state this browser did not take along is refused with 400."""
    waiting = _waiting(request)
    kept = waiting.pop(request.GET.get("state", ""), None)
    if kept is None or time.time() - kept["at"] > WAITS_S:
        return _refused(
            request,
            launching.NotThisLaunch(
                "this browser has no launch under way with that state, or it took longer than ten minutes: "
                "launch again from your EHR"
            ),
        )
    request.session[WAITING] = waiting  # a state is good once
    code = request.GET.get("code", "")
    try:
        if "error" in request.GET or not code:
            said = request.GET.get("error", "no code")[:80]
            raise launching.NotThisLaunch(f"the EHR's sign-in ended without a code ({said}): launch again")
        launched = launching.complete(
            kept["issuer"],
            code,
            launching.Pending(kept["state"], kept["nonce"], kept["verifier"]),
            address=recording.person(request.user, request),
            now=timezone.now(),
        )
    except ClinicError as error:
        return _refused(request, error, issuer=kept["issuer"])
    return _land(request, launched)


@require_safe
def style(request: HttpRequest) -> HttpResponse:
    """The colours the EHR asked for, as a stylesheet of our own (our pages take no other)."""
    held = of_session(request)
    return HttpResponse(styling.stylesheet(held.style) if held else "", content_type="text/css")


def _land(request: HttpRequest, launched: launching.Launched) -> HttpResponse:
    """A fresh session, for this launch alone; then the panel."""
    request.session.flush()
    login(request, launched.user, backend=BACKEND)
    request.session[SESSION] = asdict(
        SessionLaunch(
            key=secrets.token_urlsafe(12),
            patient=str(launched.patient.pk),
            encounter=launched.encounter,
            show_banner=launched.show_banner,
            style=dict(launched.style),
        )
    )
    with transaction.atomic():
        recording.record(
            by=recording.person(launched.user, request),
            action="session.begin",
            object_type="Session",
            object_id=launched.user.pk,
            patient_id=launched.patient.pk,
            now=timezone.now(),
            launch=str(launched.server.pk),
        )
    if launched.is_new:
        messages.info(request, LANDED)
    if launched.problem:
        messages.warning(
            request,
            f"The record could not be read anew from your EHR: {launched.problem}. It may lack the newest.",
        )
    there = reverse("panel", kwargs={"patient_id": launched.patient.pk})
    return redirect(f"{there}?{urlencode({'outcome': launched.outcome})}" if launched.outcome else there)


def _waiting(request: HttpRequest) -> dict[str, Any]:
    kept = request.session.get(WAITING)
    return dict(kept) if isinstance(kept, dict) else {}


def _refused(request: HttpRequest, error: ClinicError, *, issuer: str = "") -> HttpResponse:
    """What went wrong, in words; one row in the audit trail. No form, and nothing is fetched."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 400)
    with transaction.atomic():
        recording.record(
            by=recording.person(request.user, request),
            action="session.launch",
            object_type="Launch",
            object_id=issuer[:64] or "unknown",
            now=timezone.now(),
            outcome="failed" if status == 503 else "refused",
            reason=str(error)[:300],
        )
    context = {
        "refusal_title": "The launch was not completed",
        "reason": str(error),
        "label": settings.REGULATORY_LABEL,
    }
    return render(request, "refused.html", context, status=status)
