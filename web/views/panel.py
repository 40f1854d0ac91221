"""The risk panel of one patient, whole and in parts."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from cds.patients import access
from cds.patients.models import Patient
from cds.risk import queries
from cds.risk.responding import OVERRIDE_REASONS
from web import presenters
from web.people import actor_of, user_of

PARTS = {"score": "web/panel/score.html", "imaging": "web/panel/imaging.html", "act": "web/panel/act.html"}


@require_safe
@login_required
def panel(request: HttpRequest, patient_id: object) -> HttpResponse:
    """Everything about one patient and one outcome, in reading order."""
    access.check_view_patients(request.user)
    patient = look(request, patient_id, action="patient.view")
    return render(request, "web/panel/panel.html", context(request, patient))


@require_safe
@login_required
def part(request: HttpRequest, patient_id: object, part: str) -> HttpResponse:
    """One part of the panel again, because the event stream said that something changed."""
    if part not in PARTS:
        raise Http404
    access.check_view_patients(request.user)
    patient = look(request, patient_id, action="patient.refresh")
    return render(request, PARTS[part], context(request, patient))


def look(request: HttpRequest, patient_id: object, *, action: str) -> Patient:
    """The patient, if this person may see them; audited either way."""
    return access.get_patient(
        request.user,
        patient_id,
        by=actor_of(request),
        now=timezone.now(),
        action=action,
    )


def context(request: HttpRequest, patient: Patient, **more: Any) -> dict[str, Any]:
    """What the panel's templates need. The outcome and the chosen image come from the query string."""
    now = timezone.now()
    seen = queries.panel(request.user, patient, now=now)
    view = presenters.panel(
        seen,
        outcome=request.GET.get("outcome", "") or request.POST.get("outcome", ""),
        series_id=request.GET.get("series", ""),
        viewer_name=user_of(request).get_full_name() or user_of(request).get_username(),
        now=now,
    )
    return {
        "view": view,
        "banner": seen.banner,
        "patient_id": patient.pk,
        "reasons": OVERRIDE_REASONS.values(),
        "can_respond": access.can_respond(request.user),
        "can_run_score": access.can_run_score(request.user),
        **more,
    }
