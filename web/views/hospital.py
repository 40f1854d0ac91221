"""Signing in with the hospital's own account: to the provider, and back to the page that was asked for.

What is on its way is kept in the session of the browser it began in: a callback anywhere else, or the same
one twice, is refused. The session that follows is a fresh one.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.contrib.auth import login
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_safe

import cds.launch.launching as launching
from cds.audit import recording
from cds.errors import ClinicError, NotAllowed, Unavailable
from cds.launch import accounts

SESSION, WAITING = "hospital", "hospital_waiting"
MOST_WAITING = 5
WAITS_S = 600
BACKEND = "django.contrib.auth.backends.ModelBackend"
STATUS = {NotAllowed: 403, Unavailable: 503}


@require_safe
def begin(request: HttpRequest) -> HttpResponse:
    """To the provider. `next`: a page of ours to land on; `again=1`: the person shows anew who they are."""
    again = request.GET.get("again") == "1"
    try:
        there, pending = accounts.begin(again=again)
    except ClinicError as error:
        return _refused(request, error)
    waiting = {state: kept for state, kept in _waiting(request).items() if time.time() - kept["at"] < WAITS_S}
    newest = list(waiting.items())[-(MOST_WAITING - 1) :]
    kept = {**asdict(pending), "next": _page(request), "again": again, "at": time.time()}
    request.session[WAITING] = {**dict(newest), pending.state: kept}
    return redirect(there)


@require_safe
def callback(request: HttpRequest) -> HttpResponse:
    """Back from the provider. A state this browser did not take along is refused with 400."""
    waiting = _waiting(request)
    kept = waiting.pop(request.GET.get("state", ""), None)
    if kept is None or time.time() - kept["at"] > WAITS_S:
        return _refused(
            request,
            launching.NotThisLaunch(
                "this browser has no sign-in under way with that state, or it took longer than ten minutes: "
                "sign in again"
            ),
        )
    request.session[WAITING] = waiting  # a state is good once
    code = request.GET.get("code", "")
    try:
        if "error" in request.GET or not code:
            said = request.GET.get("error", "no code")[:80]
            raise launching.NotThisLaunch(f"the hospital's sign-in ended without a code ({said}): try again")
        arrived = accounts.complete(
            code,
            launching.Pending(kept["state"], kept["nonce"], kept["verifier"]),
            again=kept["again"],
            address=recording.person(request.user, request),
            now=timezone.now(),
        )
    except ClinicError as error:
        return _refused(request, error)
    return _land(request, arrived, kept["next"])


def is_fresh(request: HttpRequest) -> bool:
    """Whether somebody with a hospital account has shown who they are within the last minutes."""
    kept = request.session.get(SESSION)
    return isinstance(kept, dict) and time.time() - float(kept["shown_at"]) < accounts.FRESH_S


def sign_out_url(request: HttpRequest) -> str:
    """Where the session at the provider ends, for somebody who came from there; "" for anybody else."""
    kept = request.session.get(SESSION)
    if not isinstance(kept, dict) or not accounts.is_offered():
        return ""
    try:
        return accounts.sign_out_url(str(kept["id_token"]))
    except ClinicError:
        return ""


def _land(request: HttpRequest, arrived: accounts.Arrived, there: str) -> HttpResponse:
    request.session.flush()  # nothing of before is carried into it
    login(request, arrived.user, backend=BACKEND)
    request.session[SESSION] = {"id_token": arrived.id_token, "shown_at": arrived.shown_at}
    with transaction.atomic():
        recording.record(
            by=recording.person(arrived.user, request),
            action="session.begin",
            object_type="Session",
            object_id=arrived.user.pk,
            now=timezone.now(),
            account="hospital",
            is_new=arrived.is_new,
        )
    return redirect(there)


def _page(request: HttpRequest) -> str:
    """The page asked for, when it is one of ours."""
    asked = request.GET.get("next", "")
    is_ours = url_has_allowed_host_and_scheme(
        asked, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    return asked if is_ours else settings.LOGIN_REDIRECT_URL


def _waiting(request: HttpRequest) -> dict[str, Any]:
    kept = request.session.get(WAITING)
    return dict(kept) if isinstance(kept, dict) else {}


def _refused(request: HttpRequest, error: ClinicError) -> HttpResponse:
    """What went wrong, in words; one row in the audit trail."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 400)
    with transaction.atomic():
        recording.record(
            by=recording.person(request.user, request),
            action="session.begin",
            object_type="Session",
            object_id="unknown",
            now=timezone.now(),
            outcome="failed" if status == 503 else "refused",
            account="hospital",
            reason=str(error)[:300],
        )
    context = {"refusal_title": "You were not signed in", "reason": str(error)}
    return render(request, "refused.html", context, status=status)
