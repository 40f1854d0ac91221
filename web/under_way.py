"""Sign-ins elsewhere that are under way: kept in the browser they began in, signed, and good once.

Anybody may begin one, so nothing of it is kept here: a signed cookie (of this host alone, not for scripts)
goes along for ten minutes. A callback in another browser has none, and is refused.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponse

import cds.launch.launching as launching
from cds.errors import ClinicError, NotAllowed, Unavailable

MOST = 5  # of one browser
LARGEST = 3600  # characters; browsers keep cookies of 4096 with name and attributes
LASTS_S = 600
BACKEND = "django.contrib.auth.backends.ModelBackend"
_STATUS = {NotAllowed: 403, Unavailable: 503}


def keep(
    request: HttpRequest, response: HttpResponse, name: str, pending: launching.Pending, **more: Any
) -> None:
    """Let the browser remember what was begun, and whatever else the callback needs, as JSON can hold it."""
    waiting = {**_waiting(request, name), pending.state: {**asdict(pending), **more, "at": time.time()}}
    _put(response, name, waiting)


def take(
    request: HttpRequest, name: str, *, what: str, again: str
) -> tuple[launching.Pending, dict[str, Any]]:
    """What this browser began with the state that came back; `drop` it from the answer, it is good once.

    what, again  for the words of a refusal: what is under way, and how it is begun anew
    raises       NotThisLaunch for a state this browser did not take along, or took too long ago
    """
    kept = _waiting(request, name).get(request.GET.get("state", ""))
    if kept is None:
        raise launching.NotThisLaunch(
            f"this browser has no {what} under way with that state: it took longer than ten minutes, began "
            "elsewhere, or the browser keeps no cookies of this site in a frame of another. Please "
            f"{again}, in a window of its own if this comes again"
        )
    return launching.Pending(kept["state"], kept["nonce"], kept["verifier"]), kept


def drop(request: HttpRequest, response: HttpResponse, name: str) -> HttpResponse:
    """The answer to a callback: its state goes from the browser, whatever came of it."""
    waiting = _waiting(request, name)
    if waiting.pop(request.GET.get("state", ""), None) is not None:
        _put(response, name, waiting)
    return response


def code_in(request: HttpRequest, *, whose: str, again: str) -> str:
    """The code that came back. Raises NotThisLaunch with the reason that came instead of one."""
    code = request.GET.get("code", "")
    if "error" in request.GET or not code:
        said = request.GET.get("error", "no code")[:80]
        raise launching.NotThisLaunch(f"{whose} sign-in ended without a code ({said}): {again}")
    return code


def printable(said: object) -> str:
    """Words that came from elsewhere, as they can be kept: PostgreSQL takes no NUL, UTF-8 no half pairs."""
    return "".join(one for one in str(said) if one.isprintable())


def status_of(error: ClinicError) -> int:
    """The HTTP status of a refusal."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 400)


def cookie(name: str) -> str:
    """What the browser calls it: of this host alone, where that can be (INTEROP 29)."""
    return f"__Host-{name}" if settings.SESSION_COOKIE_SECURE else name


def _waiting(request: HttpRequest, name: str) -> dict[str, Any]:
    """By state, what this browser has begun in the last ten minutes; {} for a cookie that is not of ours."""
    try:
        kept = signing.loads(request.COOKIES.get(cookie(name), ""), salt=_salt(name), max_age=LASTS_S)
    except signing.BadSignature:
        return {}
    now = time.time()
    return {state: one for state, one in kept.items() if now - one["at"] < LASTS_S}


def _put(response: HttpResponse, name: str, waiting: dict[str, Any]) -> None:
    """The newest that there is room for."""
    for most in range(min(MOST, len(waiting)), 0, -1):
        text = signing.dumps(dict(list(waiting.items())[-most:]), salt=_salt(name), compress=True)
        if len(text) <= LARGEST:
            break
    else:
        response.delete_cookie(cookie(name), samesite="Lax")
        return
    response.set_cookie(
        cookie(name),
        text,
        max_age=LASTS_S,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",  # it comes back with a redirect from another site; in frames as `Launches` says
    )


def _salt(name: str) -> str:
    return f"web.under_way.{name}"
