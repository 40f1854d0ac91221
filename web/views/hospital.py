"""Signing in with the hospital's own account: to the provider, and back to the page that was asked for.

What is on its way is kept in the browser it began in (`web.under_way`): a callback anywhere else, or the same
one twice, is refused. The session that follows is a fresh one.
"""

from __future__ import annotations

import time

from django.conf import settings
from django.contrib.auth import login
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_safe

from cds.audit import recording, refusing
from cds.errors import ClinicError
from cds.launch import accounts
from web import under_way

SESSION, WAITING = "hospital", "hospital_waiting"
LONGEST = 1000  # of the page to land on: it goes along in a cookie


@require_safe
def begin(request: HttpRequest) -> HttpResponse:
    """To the provider. `next`: a page of ours to land on; `again=1`: the person shows anew who they are."""
    again = request.GET.get("again") == "1"
    try:
        there, pending = accounts.begin(again=again)
    except ClinicError as error:
        return _refused(request, error)
    answer = redirect(there)
    under_way.keep(request, answer, WAITING, pending, next=_page(request), again=again)
    return answer


@require_safe
def callback(request: HttpRequest) -> HttpResponse:
    """Back from the provider. A state this browser did not take along is refused with 400."""
    return under_way.drop(request, _complete(request), WAITING)


def _complete(request: HttpRequest) -> HttpResponse:
    try:
        pending, kept = under_way.take(request, WAITING, what="sign-in", again="sign in again")
        code = under_way.code_in(request, whose="the hospital's", again="try again")
        arrived = accounts.complete(
            code,
            pending,
            answered_by=request.GET.get("iss", ""),
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
    return isinstance(kept, dict) and time.time() - float(kept.get("auth_time", 0)) < accounts.FRESH_S


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
    login(request, arrived.user, backend=under_way.BACKEND)
    request.session[SESSION] = {"id_token": arrived.id_token, "auth_time": arrived.auth_time}
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
    return asked if is_ours and len(asked) <= LONGEST else settings.LOGIN_REDIRECT_URL


def _refused(request: HttpRequest, error: ClinicError) -> HttpResponse:
    """What went wrong, in words; noted in the audit trail."""
    status = under_way.status_of(error)
    refusing.note(
        by=recording.person(request.user, request),
        action="session.begin",
        object_type="Session",
        object_id="unknown",
        now=timezone.now(),
        outcome="failed" if status == 503 else "refused",
        account="hospital",
        reason=under_way.printable(error)[:300],
    )
    context = {"refusal_title": "You were not signed in", "reason": str(error)}
    return render(request, "refused.html", context, status=status)
