"""The EHRs we answer: those that call CDS Hooks, and those that launch us (SMART). Admins register them here.

Whatever is about to be kept is shown first beside what is kept now, and kept only when that is confirmed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from cds.errors import Invalid, Unavailable
from cds.hooks import queries as clients
from cds.hooks import registering as registering_clients
from cds.hooks.models import HookClient
from cds.launch import queries as servers
from cds.launch import registering as registering_servers
from cds.launch.models import SmartServer
from cds.patients import access
from web.forms import ClientForm, EhrForm, ServerForm
from web.people import actor_of

FORM = ["GET", "HEAD", "POST"]


@require_safe
@login_required
def listing(request: HttpRequest) -> HttpResponse:
    """Every EHR that may call or launch us, and those that may no more."""
    return render(
        request,
        "web/ehrs/list.html",
        {"clients": clients.list_clients(request.user), "servers": servers.list_servers(request.user)},
    )


@require_safe
@login_required
def client(request: HttpRequest, client_id: UUID) -> HttpResponse:
    """One EHR that may call: its keys with their age, and what it may reach."""
    view = clients.get_client(request.user, client_id)
    address = f"{settings.PUBLIC_URL}/cds-services"
    return render(request, "web/ehrs/client.html", {"view": view, "address": address})


@require_safe
@login_required
def server(request: HttpRequest, server_id: UUID) -> HttpResponse:
    """One EHR that may launch us, and what to register there."""
    view = servers.get_server(request.user, server_id)
    context = {
        "view": view,
        "launch": f"{settings.PUBLIC_URL}/launch",
        "callback": f"{settings.PUBLIC_URL}{view.server.redirect_path}",
        "our_keys": f"{settings.PUBLIC_URL}/.well-known/jwks.json",
    }
    return render(request, "web/ehrs/server.html", context)


@require_http_methods(FORM)
@login_required
def edit_client(request: HttpRequest, client_id: UUID | None = None) -> HttpResponse:
    """Let an EHR call, or change how it may."""
    access.check_manage_clients(request.user)
    held = clients.get_client(request.user, client_id).client if client_id else None
    form = ClientForm(request.POST or None, held=held)

    def save() -> HttpResponse:
        said, now = form.cleaned_data, timezone.now()
        kept, is_new = registering_clients.register(
            said["name"],
            issuer=said["issuer"],
            jwks=form.key_set(),
            jwks_url=said["jwks_url"],
            source=said["source"],
            origins=said["origins"],
            fhir_servers=said["fhir_servers"],
            tenant=said["tenant"],
            by=actor_of(request),
            now=now,
        )
        messages.success(
            request,
            f"{kept.name} is {'registered' if is_new else 'changed'}: it may call." + _new_source(kept, now),
        )
        return redirect("ehr-client", client_id=kept.pk)

    return _edit(request, form, save, title=_title("an EHR that calls", held))


@require_http_methods(FORM)
@login_required
def edit_server(request: HttpRequest, server_id: UUID | None = None) -> HttpResponse:
    """Answer an EHR's launches, or change how."""
    access.check_manage_clients(request.user)
    held = servers.get_server(request.user, server_id).server if server_id else None
    form = ServerForm(request.POST or None, held=held)

    def save() -> HttpResponse:
        said, now = form.cleaned_data, timezone.now()
        kept, is_new = registering_servers.register(
            said["name"],
            issuer=said["issuer"],
            client_id=said["client_id"],
            source=said["source"],
            is_confidential=said["is_confidential"],
            has_own_redirect=said["has_own_redirect"],
            origins=said["origins"],
            embedders=said["embedders"],
            by=actor_of(request),
            now=now,
        )
        messages.success(
            request,
            f"{kept.name} is {'registered' if is_new else 'changed'}: it may launch us."
            + _new_source(kept, now),
        )
        return redirect("ehr-server", server_id=kept.pk)

    return _edit(request, form, save, title=_title("an EHR that launches us", held))


@require_http_methods(FORM)
@login_required
def withdraw_client(request: HttpRequest, client_id: UUID) -> HttpResponse:
    """Refuse an EHR's calls from now on, once that is confirmed."""
    held = clients.get_client(request.user, client_id).client
    if request.method != "POST":
        return render(request, "web/ehrs/withdraw.html", {"held": held, "does": "call"})
    registering_clients.withdraw(held.issuer, tenant=held.tenant, by=actor_of(request), now=timezone.now())
    messages.success(request, f"{held.name} is withdrawn: its calls are refused from now on.")
    return redirect("ehrs")


@require_http_methods(FORM)
@login_required
def withdraw_server(request: HttpRequest, server_id: UUID) -> HttpResponse:
    """Answer an EHR's launches no more, once that is confirmed."""
    held = servers.get_server(request.user, server_id).server
    if request.method != "POST":
        return render(
            request,
            "web/ehrs/withdraw.html",
            {"held": held, "does": "launch us", "ends": "the sessions that it launched end"},
        )
    registering_servers.withdraw(held.issuer, by=actor_of(request), now=timezone.now())
    said = f"{held.name} is withdrawn: its launches are refused from now on, and its sessions have ended."
    messages.success(request, said)
    return redirect("ehrs")


@require_POST
@login_required
def read_keys(request: HttpRequest, client_id: UUID) -> HttpResponse:
    """Read an EHR's key set at its JWKS URL now, for three seconds at most."""
    held = clients.get_client(request.user, client_id).client
    try:
        kept = registering_clients.read_keys(
            held.issuer, tenant=held.tenant, by=actor_of(request), now=timezone.now()
        )
    except Unavailable as fault:
        messages.error(request, f"{str(fault)[:1].upper()}{str(fault)[1:]}.")
    else:
        messages.success(request, f"Read: {len(kept.jwks['keys'])} usable keys.")
    return redirect("ehr-client", client_id=client_id)


def _edit(
    request: HttpRequest, form: EhrForm, save: Callable[[], HttpResponse], *, title: str
) -> HttpResponse:
    """Fill in; look at what would change; confirm. Mistakes go beside their fields."""
    context = {"form": form, "held": form.held, "title": title}
    if request.method != "POST":
        return render(request, "web/ehrs/form.html", context)
    if "change" in request.POST:  # back from the review, nothing lost
        return render(request, "web/ehrs/form.html", context)
    if form.is_valid() and "confirm" in request.POST:
        try:
            return save()
        except Invalid as fault:  # such as a key set that was there a moment ago
            form.add_error(None, f"{str(fault)[:1].upper()}{str(fault)[1:]}.")
    elif form.is_valid():
        changes = form.changes()
        if form.is_valid():
            return render(
                request, "web/ehrs/review.html", {**context, "changes": changes, "warning": form.warning()}
            )
    return render(request, "web/ehrs/form.html", context, status=400)


def _new_source(kept: HookClient | SmartServer, now: datetime) -> str:
    """That a source was made, for those who only meant to name one."""
    return f" New source made: {kept.source.slug}." if kept.source.created_at == now else ""


def _title(what: str, held: object) -> str:
    return f"Change {what}" if held is not None else f"Register {what}"
