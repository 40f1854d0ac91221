"""The risk panel of one patient, whole and in parts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from cds.hooks.queries import list_said
from cds.patients import access
from cds.patients.models import Patient
from cds.patients.queries import find_stay
from cds.risk import queries
from cds.risk.responding import OVERRIDE_REASONS
from cds.risk.seen import OutcomePanel
from web import launch, presenters
from web.people import actor_of, user_of

PARTS = {
    "score": "web/panel/score_live.html",
    "imaging": "web/panel/imaging.html",
    "act": "web/panel/act.html",
}


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
    shown = context(request, patient)
    outcome = shown["view"].outcome
    return render(request, PARTS[part], {**shown, "said": outcome.told if outcome else ""})


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
        **_of_launch(request, patient, view.outcome.seen if view.outcome else None, now=now),
        "patient_id": patient.pk,
        "said_in_ehr": list_said(request.user, patient, view.outcome.seen.outcome) if view.outcome else [],
        "reasons": OVERRIDE_REASONS.values(),
        "can_respond": access.can_respond(request.user),
        "can_run_score": access.can_run_score(request.user),
        **more,
    }


def _of_launch(
    request: HttpRequest, patient: Patient, shown: OutcomePanel | None, *, now: datetime
) -> dict[str, Any]:
    """What the EHR said when it launched us: the stay, and the score of the card where another is shown."""
    launched = launch.of_session(request)
    if launched is None:
        return {}
    stay = find_stay(request.user, patient, launched.encounter, as_of=now)
    if shown is None or launched.assessment in ("", shown.assessment_id):
        return {"stay": stay}
    said = queries.find_card_score(request.user, patient, launched.assessment, shown.outcome)
    is_newer = said is not None and shown.as_of is not None and shown.as_of >= said.as_of
    return {"stay": stay, "card_score": said, "is_newer_than_card": is_newer}
