"""The audit trail, for those who may read it. Opening it is itself audited."""

from __future__ import annotations

from datetime import date

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from cds.audit import queries, recording
from cds.patients import access

PAGE_ROWS = 50


@require_safe
@login_required
def events(request: HttpRequest) -> HttpResponse:
    """List with filters; `?verify=1` recomputes every hash chain, which takes a while on a long trail."""
    access.check_view_audit(request.user)
    filters = queries.AuditFilters(
        action=request.GET.get("action", "")[:60],
        outcome=request.GET.get("outcome", "")[:10],
        actor=request.GET.get("actor", "").strip()[:150],
        patient_id=request.GET.get("patient", "").strip()[:36],
        since=_day(request.GET.get("since", "")),
        until=_day(request.GET.get("until", "")),
    )
    asked_to_verify = request.GET.get("verify") == "1"
    checks = recording.verify() if asked_to_verify else []
    with transaction.atomic():
        recording.record(
            by=recording.person(request.user, request),
            action="audit.verify" if asked_to_verify else "audit.view",
            object_type="AuditTrail",
            object_id="all",
            now=timezone.now(),
            of_patient=filters.patient_id,
        )
    page = Paginator(queries.list_events(filters), PAGE_ROWS).get_page(request.GET.get("page"))
    return render(
        request,
        "web/audit.html",
        {
            "page": page,
            "filters": filters,
            "actions": queries.list_actions(),
            "outcomes": sorted(recording.OUTCOMES),
            "asked_to_verify": asked_to_verify,
            "verified_events": sum(check.length for check in checks),
            "chains": len(checks),
            "problems": [(check.number, problem) for check in checks for problem in check.problems],
            "query": _query_without_page(request),
        },
    )


def _day(given: str) -> date | None:
    try:
        return date.fromisoformat(given)
    except ValueError:
        return None


def _query_without_page(request: HttpRequest) -> str:
    kept = request.GET.copy()
    for name in ("page", "verify"):
        kept.pop(name, None)
    return kept.urlencode()
