"""Sources: how each stands, what it set aside and why; pause, resume, ask whether it answers."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from cds.audit import recording
from cds.patients import source_queries, sources
from cds.sending import queries as sending_queries
from cds.studies import checking
from web.people import actor_of

PAGE_ROWS = 25
RUNS_SHOWN = 10
ACTS = {
    "pause": (sources.pause, "Paused: nothing of this source is taken in until it is resumed."),
    "resume": (sources.resume, "Resumed."),
    "check": (sources.ask_check, "Asked: the answer appears here in a moment."),
}


@require_safe
@login_required
def listing(request: HttpRequest) -> HttpResponse:
    """Every source and destination, those in trouble first; only the table of sources when htmx asks."""
    now = timezone.now()
    views = source_queries.list_sources(request.user, now=now)
    if getattr(request, "htmx", False):
        return render(request, "web/sources/table.html", {"sources": views})
    going = sending_queries.show_destinations(request.user, now=now)
    return render(request, "web/sources/list.html", {"sources": views, "destinations": going})


@require_safe
@login_required
def destinations(request: HttpRequest) -> HttpResponse:
    """The table of where results go, for htmx; whoever types the address finds it on the page of sources."""
    going = sending_queries.show_destinations(request.user, now=timezone.now())
    if not getattr(request, "htmx", False):
        return redirect(reverse("sources") + "#destinations")
    return render(request, "web/sources/destinations.html", {"destinations": going})


@require_safe
@login_required
def source(request: HttpRequest, source_id: int) -> HttpResponse:
    """One source: its state, its runs, what was set aside by reason; only the state when htmx asks."""
    view = source_queries.get_source(request.user, source_id, now=timezone.now())
    addresses = [one.where for one in checking.addresses_of(view.source)]
    if getattr(request, "htmx", False):
        return render(request, "web/sources/state.html", {"view": view, "addresses": addresses})
    page = Paginator(source_queries.list_reasons(request.user, view.source), PAGE_ROWS)
    runs = source_queries.list_runs(request.user, view.source)[:RUNS_SHOWN]
    return render(
        request,
        "web/sources/source.html",
        {
            "view": view,
            "addresses": addresses,
            "page": page.get_page(request.GET.get("page")),
            "runs": runs,
            "query": "",
        },
    )


@require_POST
@login_required
def act(request: HttpRequest, source_id: int, kind: str) -> HttpResponse:
    """Pause, resume, or have a worker call the source. This request calls nobody."""
    if kind not in ACTS:
        raise Http404
    now = timezone.now()
    view = source_queries.get_source(request.user, source_id, now=now)
    do, said = ACTS[kind]
    do(view.source, by=actor_of(request), now=now)
    messages.success(request, said)
    return redirect("source", source_id=source_id)


@require_safe
@login_required
def set_aside(request: HttpRequest, source_id: int) -> HttpResponse | StreamingHttpResponse:
    """Everything set aside, as CSV that no spreadsheet takes for formulas. Taking it away is audited."""
    now = timezone.now()
    view = source_queries.get_source(request.user, source_id, now=now)
    rows = source_queries.list_set_aside(request.user, view.source)
    with transaction.atomic():
        recording.record(
            by=actor_of(request), action="source.export", object_type="Source", object_id=source_id, now=now
        )

    def lines() -> Iterator[str]:
        yield writer.writerow(("where", "kind", "identity", "reason", "times", "first", "last"))
        for one in rows.iterator(1000):
            cells = (one.where, one.kind, one.identity, one.reason)
            when = (one.first_at.isoformat(), one.last_at.isoformat())
            yield writer.writerow((*map(_harmless, cells), one.times, *when))

    writer = csv.writer(_Echo())
    answer = StreamingHttpResponse(lines(), content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = f'attachment; filename="set-aside-{view.source.slug}.csv"'
    return answer


class _Echo:
    """A file that hands back what is written."""

    def write(self, text: str) -> str:
        return text


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
