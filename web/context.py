"""What every template knows. Everything that costs a query is read only when a template asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode

from cds.patients import access
from cds.registry import queries as registry
from web import launch, streams

EHR_PAGES = (
    "ehrs", "ehr-client", "new-ehr-client", "edit-ehr-client", "withdraw-ehr-client",
    "ehr-server", "new-ehr-server", "edit-ehr-server", "withdraw-ehr-server", "sandbox",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NavigationItem:
    """One entry of the main menu; only what this person may open is shown."""

    title: str
    url: str
    current: bool


def page(request: HttpRequest) -> dict[str, Any]:
    """The regulatory label, the CSP nonce under the name django-htmx reads, the menu, the models in use."""
    launched = launch.of_session(request)
    of_launch = f"?{urlencode({launch.OF: launched.key})}" if launched is not None else ""
    return {
        "of_launch": of_launch,
        "home_address": reverse("home") + of_launch,
        "regulatory_label": settings.REGULATORY_LABEL,
        "csp_nonce": getattr(request, "csp_nonce", ""),
        "navigation": lambda: navigation(request),
        "roles": lambda: [role.value for role in access.Role if role in access.roles_of(request.user)],
        "active_models": lambda: [version.label for version in registry.active_versions()],
        "live_since": streams.newest,
        "session_seconds": settings.SESSION_COOKIE_AGE,
        "embedded": launched is not None or request.GET.get("embedded") == "1",
        "launched": launched,
    }


def navigation(request: HttpRequest) -> list[NavigationItem]:
    """The pages of the menu, as far as permissions reach; nothing in an EHR's launch."""
    if launch.of_session(request) is not None:
        return []
    entries = (
        ("Worklist", "worklist", ("worklist", "panel"), access.can_view_patients),
        ("Models", "models", ("models", "model", "run", "new-run"), access.can_view_models),
        ("Monitoring", "monitoring", ("monitoring",), access.can_view_models),
        ("Sources", "sources", ("sources", "source", "destination"), access.can_manage_sources),
        ("EHRs", "ehrs", EHR_PAGES, access.can_manage_clients),
        ("Audit", "audit", ("audit",), access.can_view_audit),
    )
    here = request.resolver_match.url_name if request.resolver_match else ""
    return [
        NavigationItem(title, reverse(name), here in names)
        for title, name, names, may in entries
        if may(request.user)
    ]
