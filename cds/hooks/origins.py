"""Which browsers may call, and what they are told (INTEROP 22).

The origins of active clients are read anew every two seconds. What was read last stands when the database is
away, so that a browser can read the 503 it gets then.
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse

from cds.hooks.models import HookClient

KEPT_S = 2.0
SANDBOX = "https://sandbox.cds-hooks.org"  # the official one: it may call the open demo of its own machine
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Expose-Headers": "Retry-After, WWW-Authenticate",
    "Access-Control-Max-Age": "600",
}
_kept: tuple[float, frozenset[str]] = (0.0, frozenset())


def is_allowed(origin: str) -> bool:
    """Whether a browser there may call: an active client's origin; in the open demo loopback and SANDBOX."""
    global _kept
    if not origin:
        return False
    if time.monotonic() >= _kept[0]:
        lists = HookClient.objects.filter(is_active=True).values_list("origins", flat=True)
        try:
            _kept = (time.monotonic() + KEPT_S, frozenset(one for origins in lists for one in origins))
        except (OperationalError, InterfaceError):
            pass  # by what was read last
    return was_allowed(origin)


def was_allowed(origin: str) -> bool:
    """The same by what this process read last; the database is not asked."""
    return origin in _kept[1] or (settings.HOOKS_OPEN and (origin == SANDBOX or _is_loopback(origin)))


def _is_loopback(origin: str) -> bool:
    try:
        return urlsplit(origin).hostname in LOOPBACK
    except ValueError:  # what a caller sends need not be an address
        return False


def forget() -> None:
    """Read the origins anew with the next call."""
    global _kept
    _kept = (0.0, frozenset())


def preflight(request: HttpRequest, *, allowed: bool) -> HttpResponse:
    """The answer to OPTIONS.

    On the way from a public page to this machine Chromium asks whether that is wanted
    (Private Network Access).
    """
    response = HttpResponse(status=204 if allowed else 403)
    if allowed and request.headers.get("Access-Control-Request-Private-Network") == "true":
        response["Access-Control-Allow-Private-Network"] = "true"
    return response


def tell(response: HttpResponse, origin: str, *, allowed: bool) -> HttpResponse:
    """The response with what a browser, and whatever caches, must know of it."""
    if allowed:
        response["Access-Control-Allow-Origin"] = origin
        for name, value in HEADERS.items():
            response[name] = value
    response["Vary"] = "Origin"
    response["Cache-Control"] = "no-store"
    return response
