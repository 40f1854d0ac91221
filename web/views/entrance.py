"""Coming in, going out, and where each role starts."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView, LogoutView
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from cds.audit import recording, refusing
from cds.launch import accounts
from cds.patients import access
from web import launch
from web.views import hospital

START: dict[access.Role, str] = {
    access.Role.CLINICIAN: "worklist",
    access.Role.ADMIN: "models",
    access.Role.APPROVER: "models",
}


NO_MATCH = "Name and password do not match. After five tries signing in is blocked for 15 minutes."


class SignInForm(AuthenticationForm):
    """One text for every failure: it does not tell whether the person exists."""

    error_messages = {"invalid_login": NO_MATCH, "inactive": NO_MATCH}


class SignIn(LoginView):
    """Local accounts. Success and failure are audited; a failure without the name that was typed."""

    template_name = "web/login.html"
    form_class = SignInForm
    redirect_authenticated_user = True

    def get_context_data(self, **more: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context_data(**more)
        return {
            **context,
            "hospital_offered": accounts.is_offered(),
            "opens_patient": self.get_redirect_url().startswith("/patients/"),
        }

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        response = super().form_valid(form)
        _record(self.request, "session.begin")
        return response

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        refusing.note(
            by=recording.person(self.request.user, self.request),
            action="session.begin",
            object_type="Session",
            object_id="unknown",
            now=timezone.now(),
        )
        response = super().form_invalid(form)
        response.status_code = 200
        return response


class SignOut(LogoutView):
    """By POST only; the end of a session is audited. Who came from the hospital is signed out there, too.

    Who came from an EHR is not led to a form: they are still signed in there.
    """

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest, *args: object, **kwargs: object) -> HttpResponse:
        if launch.leave(request):
            return redirect("smart-ended")
        if request.user.is_authenticated:
            _record(request, "session.end")
        there = hospital.sign_out_url(request)
        ended: HttpResponse = super().post(request, *args, **kwargs)
        return redirect(there) if there else ended


@require_safe
@login_required
def home(request: HttpRequest) -> HttpResponse:
    """Each role starts on its own page; somebody without a role is told so."""
    launched = launch.of_session(request)
    if launched is not None:
        return redirect("panel", patient_id=launched.patient)
    role = access.role_of(request.user)
    if role is None:
        return render(request, "web/no_role.html")
    return redirect(START[role])


@require_POST
@login_required
def stay(request: HttpRequest) -> HttpResponse:
    """ "Stay signed in": that the session is used is enough to prolong it."""
    return HttpResponse(status=204)


@require_safe
def help_page(request: HttpRequest) -> HttpResponse:
    """What the words and colours mean, keys, and whom to ask."""
    return render(request, "web/help.html")


def _record(request: HttpRequest, action: str) -> None:
    with transaction.atomic():
        recording.record(
            by=recording.person(request.user, request),
            action=action,
            object_type="Session",
            object_id=request.user.pk,
            now=timezone.now(),
        )
