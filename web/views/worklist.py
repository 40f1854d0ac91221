"""The worklist: every patient one may see, by risk. Search words travel by POST and never in an address."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe

from cds.audit import recording
from cds.patients import access
from cds.risk import lists, thresholds
from cds.risk.seen import Filters, WorklistPage
from cds.risk.standing import DataState
from web.forms import whole_number
from web.people import actor_of


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def worklist(request: HttpRequest) -> HttpResponse:
    """One page of the list. POST carries a search by name or record number, and the filters with it."""
    access.check_view_patients(request.user)
    now = timezone.now()
    asked = request.POST if request.method == "POST" else request.GET
    filters = _filters(asked, search=request.POST.get("search", "") if request.method == "POST" else "")
    page = lists.worklist(request.user, filters, _page(asked), now=now)
    _record(request, page, filters, now)
    scored = [row for row in page.rows if row.risk is not None]
    return render(
        request,
        "web/worklist.html",
        {
            "page": page,
            "scored": scored,
            "not_scored": [row for row in page.rows if row.risk is None],
            "filters": filters,
            "is_filtered": filters != Filters(outcome=filters.outcome),
            "categories": [
                (c.value, thresholds.WORDS[c], page.by_category.get(c.value, 0))
                for c in reversed(thresholds.Category)
            ],
            "states": [state.value for state in DataState],
            "query": _query(asked),
            "can_run_score": access.can_run_score(request.user),
        },
    )


@require_safe
@login_required
def row(request: HttpRequest, patient_id: object) -> HttpResponse:
    """One row, as it is now: fetched by the page when the event stream names the patient."""
    access.check_view_patients(request.user)
    now = timezone.now()
    patient = access.get_patient(
        request.user, patient_id, by=actor_of(request), now=now, action="worklist.row"
    )
    found = lists.find_row(request.user, patient, outcome=request.GET.get("outcome", ""), now=now)
    return render(
        request,
        "web/parts/worklist_row.html",
        {
            "row": found,
            "outcome": request.GET.get("outcome", ""),
            "can_run_score": access.can_run_score(request.user),
        },
    )


def _filters(asked: QueryDict, *, search: str) -> Filters:
    return Filters(
        outcome=asked.get("outcome", "")[:80],
        unit=asked.get("unit", "")[:120],
        category=asked.get("category", "")[:10],
        state=asked.get("state", "")[:20],
        search=search.strip()[:100],
        unacknowledged=asked.get("unacknowledged") == "1",
        rising=asked.get("rising") == "1",
        has_image=asked.get("has_image") == "1",
    )


def _page(asked: QueryDict) -> int:
    given = whole_number(asked.get("page", "1"))
    return given if given is not None and given < 1_000_000 else 1


def _query(asked: QueryDict) -> str:
    """The filters as a query string, without search, page and token."""
    kept = QueryDict(mutable=True)
    for name in ("outcome", "unit", "category", "state", "unacknowledged", "rising", "has_image"):
        if asked.get(name):
            kept[name] = asked.get(name, "")
    return kept.urlencode()


def _record(request: HttpRequest, page: WorklistPage, filters: Filters, now: Any) -> None:
    with transaction.atomic():
        recording.record(
            by=actor_of(request),
            action="worklist.search" if filters.search else "worklist.view",
            object_type="Worklist",
            object_id=page.outcome or "none",
            now=now,
            page=page.page,
            patients=[row.patient_id for row in page.rows],
        )
