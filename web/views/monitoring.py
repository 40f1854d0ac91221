"""Monitoring: what a version did lately, how it was received, whether its inputs are what they were.

Counts only: no patient is shown, and none can be opened from here.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from cds.hooks import figures as hook_figures
from cds.jobs import queues
from cds.patients import access
from cds.registry import queries
from cds.registry.models import ModelVersion
from cds.risk import figures, shifts
from web import charts_of_days, words
from web.charts import Chart
from web.forms import whole_number

DAYS = (1, 7, 30)


@require_safe
@login_required
def monitoring(request: HttpRequest) -> HttpResponse:
    """One version over the last day, week or month; the active one first."""
    access.check_view_models(request.user)
    version = _asked_version(request)
    asked = whole_number(request.GET.get("days", ""))
    days = asked if asked in DAYS else 7
    context: dict[str, Any] = {
        "version": version,
        "versions": queries.list_versions(),
        "choices": DAYS,
        "days": days,
        "queues": queues.list_states(),
        "unsent": queues.unsent(),
        "can_manage_sources": access.can_manage_sources(request.user),
    }
    if version is not None:
        since = timezone.now() - timedelta(days=days)
        feedback = hook_figures.feedback(version, since=since)
        responses = figures.responses(version, since=since)
        context |= {
            "scores": figures.scores(version, since=since),
            "inputs": figures.inputs(version, since=since),
            "hooks": hook_figures.by_hook(version, since=since),
            "kinds": hook_figures.kinds(version, since=since),
            "feedback": feedback,
            "feedback_chart": _chart(feedback),
            "responses": responses,
            "waited": words.span(responses.waited) if responses.waited is not None else "",
            "reasons": [(hook_figures.reason_words(code), n) for code, n in responses.reasons],
            "shift": shifts.newest_shift(version),
            "shifts": figures.list_shifts(version),
        }
    return render(request, "web/monitoring.html", context)


def _asked_version(request: HttpRequest) -> ModelVersion | None:
    asked = request.GET.get("version", "")
    if asked:
        return queries.get_version(asked)
    active = queries.list_active()
    return active[0].version if active else next(iter(queries.list_versions()), None)


def _chart(feedback: hook_figures.FeedbackFigures) -> Chart | None:
    days = [
        charts_of_days.DayShare(
            one.day,
            one.overridden.count,
            one.overridden.of,
            one.overridden.value,
            one.overridden.low,
            one.overridden.high,
        )
        for one in feedback.days
        if one.overridden.value is not None
        and one.overridden.low is not None
        and one.overridden.high is not None
    ]
    if not days:
        return None
    title = f"Share of answered cards that were overridden, by day the card was shown; {len(days)} days"
    return charts_of_days.shares(days, title=title, counted="Overridden", of="Answers")
