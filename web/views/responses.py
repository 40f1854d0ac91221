"""What a person does with a score, and asking for a fresh one. With htmx only the card is replaced."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.http import require_POST

from cds.errors import Conflict, Invalid, NotFound
from cds.patients import access
from cds.patients.models import Patient
from cds.risk import assessing, queries, responding
from cds.risk.standing import DataState
from web import presenters
from web.people import actor_of, user_of
from web.views import panel

KINDS = {"acknowledge": "acknowledged", "override": "overridden", "snooze": "snoozed"}


@require_POST
@login_required
def respond(request: HttpRequest, patient_id: object, prediction_id: int, kind: str) -> HttpResponse:
    """Acknowledge, override with a coded reason, or snooze one stored prediction of this patient."""
    if kind not in KINDS:
        raise Http404
    access.check_respond(request.user)
    patient = panel.look(request, patient_id, action="patient.respond")
    prediction = queries.find_prediction(request.user, prediction_id)
    if prediction.assessment.patient_id != patient.pk:
        raise NotFound("no such score of this patient")
    by, now, user = actor_of(request), timezone.now(), user_of(request)
    try:
        if kind == "acknowledge":
            responding.acknowledge(prediction, by=by, user=user, now=now)
        elif kind == "snooze":
            responding.snooze(prediction, by=by, user=user, now=now)
        else:
            responding.override(
                prediction,
                reason_code=request.POST.get("reason", ""),
                comment=request.POST.get("comment", ""),
                by=by,
                user=user,
                now=now,
            )
    except Invalid:
        return _answer(request, patient, error="Choose a reason.")
    return _answer(request, patient, said=presenters.TOLD[KINDS[kind]])


@require_POST
@login_required
def undo(request: HttpRequest, patient_id: object, response_id: object) -> HttpResponse:
    """Take back one's own answer within ten seconds."""
    access.check_respond(request.user)
    patient = panel.look(request, patient_id, action="patient.respond")
    response = queries.find_response(request.user, response_id)
    if response.prediction.assessment.patient_id != patient.pk:
        raise NotFound("no such answer about this patient")
    try:
        responding.undo(response, by=actor_of(request), user=user_of(request), now=timezone.now())
    except Conflict as fault:
        return _answer(request, patient, error=f"{fault}."[:1].upper() + f"{fault}."[1:])
    return _answer(request, patient, said=presenters.TOLD["undone"])


@require_POST
@login_required
def rescore(request: HttpRequest, patient_id: object) -> HttpResponse:
    """Ask for a fresh score; one that failed is tried again."""
    access.check_run_score(request.user)
    patient = panel.look(request, patient_id, action="patient.rescore")
    by, now = actor_of(request), timezone.now()
    failed = request.POST.get("failed", "")
    if failed:
        assessment = queries.find_assessment(request.user, failed)
        if assessment.patient_id != patient.pk:
            raise NotFound("no such score of this patient")
        assessing.retry(assessment, by=by, user=user_of(request), now=now)
        messages.info(request, "The score is being tried again.")
    else:
        before = {s.version.pk: s.state for s in assessing.current(patient, by=by, now=now)}
        fresh = all(state == DataState.CURRENT for state in before.values())
        messages.info(
            request,
            "Nothing has changed since the last score: it is current."
            if fresh
            else "A fresh score has been asked for.",
        )
    return redirect(_address(request, patient))


def _answer(request: HttpRequest, patient: Patient, *, said: str = "", error: str = "") -> HttpResponse:
    status = 400 if error else 200
    if getattr(request, "htmx", False):
        # htmx does not swap a 4xx; the error stands in the card itself
        return render(
            request, "web/panel/act.html", panel.context(request, patient, said=said, act_error=error)
        )
    if error:
        return render(
            request, "web/panel/panel.html", panel.context(request, patient, act_error=error), status=status
        )
    messages.success(request, said)
    return redirect(_address(request, patient) + "#act")


def _address(request: HttpRequest, patient: Patient) -> str:
    outcome = request.POST.get("outcome", "")
    address = reverse("panel", kwargs={"patient_id": patient.pk})
    return f"{address}?{urlencode({'outcome': outcome})}" if outcome else address
