"""Where results go: how each stands, what it refused; pause, resume, send again, ask whether it answers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from cds.audit import recording
from cds.sending import destinations, queries
from web.people import actor_of

Act = Callable[[str, recording.Actor, datetime], str]


def _pause(slug: str, by: recording.Actor, now: datetime) -> str:
    destinations.set_active(slug, False, by=by, now=now)
    return "Paused: nothing is sent there until it is resumed; what is made meanwhile waits."


def _resume(slug: str, by: recording.Actor, now: datetime) -> str:
    destinations.set_active(slug, True, by=by, now=now)
    return "Resumed: what waited is sent now."


def _retry(slug: str, by: recording.Actor, now: datetime) -> str:
    count = destinations.retry(slug, by=by, now=now)
    return f"Sent again: {count} that had been refused, and whatever waits."


def _check(slug: str, by: recording.Actor, now: datetime) -> str:
    destinations.ask_check(slug, by=by, now=now)
    return "Asked: the answer appears here in a moment."


ACTS: dict[str, Act] = {"pause": _pause, "resume": _resume, "retry": _retry, "check": _check}


@require_safe
@login_required
def destination(request: HttpRequest, slug: str) -> HttpResponse:
    """One destination: its state, and what it refused by reason; only the state when htmx asks."""
    view = queries.show_destination(request.user, slug, now=timezone.now())
    if getattr(request, "htmx", False):
        return render(request, "web/sources/destination_state.html", {"view": view})
    reasons = queries.count_reasons(request.user, slug)
    return render(request, "web/sources/destination.html", {"view": view, "reasons": reasons})


@require_POST
@login_required
def act(request: HttpRequest, slug: str, kind: str) -> HttpResponse:
    """Pause, resume, send again, or have a worker ask it. This request calls nobody."""
    if kind not in ACTS:
        raise Http404
    now = timezone.now()
    queries.show_destination(request.user, slug, now=now)
    messages.success(request, ACTS[kind](slug, actor_of(request), now))
    return redirect("destination", slug=slug)
