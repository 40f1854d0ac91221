"""Trying our hooks: an admin sends one real, signed call and sees request, timing, answer and card.

Only somebody who may see patients can choose one; everybody else gets the sample. Nothing is counted.
"""

from __future__ import annotations

from typing import Any

import orjson
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from cds.hooks import offering, sandbox
from cds.patients import access
from cds.patients.models import Patient
from cds.risk.lists import full_name
from web import cards_shown
from web.people import actor_of

MOST_PATIENTS = 50


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def sandbox_page(request: HttpRequest) -> HttpResponse:
    """The form; after a POST, below it, what was sent and what came back."""
    access.check_manage_clients(request.user)
    asked, chosen = request.POST.get("service", ""), request.POST.get("patient", "")
    context: dict[str, Any] = {
        "services": offering.list_services(),
        "patients": _patients(request),
        "may_choose": access.can_view_patients(request.user),
        "asked": asked,
        "chosen": chosen,
    }
    if request.method == "POST":
        tried = sandbox.try_service(
            asked, patient=_chosen(request, chosen), by=actor_of(request), now=timezone.now()
        )
        context |= {
            "tried": tried,
            "token": _pretty({"header": tried.token_header, "claims": tried.token_claims}),
            "body": _pretty(tried.body),
            "answer": _pretty(tried.answer),
            "cards": [{**card, "html": cards_shown.detail(card)} for card in tried.cards],
        }
    return render(request, "web/sandbox.html", context)


def _patients(request: HttpRequest) -> list[tuple[str, str]]:
    rows = access.visible_patients(request.user).order_by("family", "given", "pk")[:MOST_PATIENTS]
    return [(str(one.pk), full_name(one)) for one in rows]


def _chosen(request: HttpRequest, patient_id: str) -> Patient | None:
    if not patient_id:
        return None
    access.check_view_patients(request.user)
    return access.get_patient(
        request.user, patient_id, by=actor_of(request), now=timezone.now(), action="patient.sandbox"
    )


def _pretty(said: object) -> str:
    return orjson.dumps(said, option=orjson.OPT_INDENT_2).decode()
