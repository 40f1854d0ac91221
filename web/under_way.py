"""Sign-ins elsewhere that are under way: kept in the session of the browser they began in, and good once."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from django.http import HttpRequest

import cds.launch.launching as launching
from cds.errors import ClinicError, NotAllowed, Unavailable

MOST = 5  # of one browser
LASTS_S = 600
BACKEND = "django.contrib.auth.backends.ModelBackend"
_STATUS = {NotAllowed: 403, Unavailable: 503}


def keep(request: HttpRequest, name: str, pending: launching.Pending, **more: Any) -> None:
    """Remember what was begun, and whatever else the callback needs, as JSON can hold it.

    The session of somebody who is not signed in ends with it: whoever asks leaves a row for ten minutes only.
    """
    if not request.user.is_authenticated:
        request.session.set_expiry(LASTS_S)
    now = time.time()
    waiting = {state: kept for state, kept in _waiting(request, name).items() if now - kept["at"] < LASTS_S}
    newest = dict(list(waiting.items())[-(MOST - 1) :])
    request.session[name] = {**newest, pending.state: {**asdict(pending), **more, "at": now}}


def take(
    request: HttpRequest, name: str, *, what: str, again: str
) -> tuple[launching.Pending, dict[str, Any]]:
    """What this browser began with the state that came back. A state is good once.

    what, again  for the words of a refusal: what is under way, and how it is begun anew
    raises       NotThisLaunch for a state this browser did not take along, or took too long ago
    """
    waiting = _waiting(request, name)
    kept = waiting.pop(request.GET.get("state", ""), None)
    if kept is None or time.time() - kept["at"] > LASTS_S:
        raise launching.NotThisLaunch(
            f"this browser has no {what} under way with that state, or it took longer than ten minutes: "
            f"{again}"
        )
    request.session[name] = waiting
    return launching.Pending(kept["state"], kept["nonce"], kept["verifier"]), kept


def code_in(request: HttpRequest, *, whose: str, again: str) -> str:
    """The code that came back. Raises NotThisLaunch with the reason that came instead of one."""
    code = request.GET.get("code", "")
    if "error" in request.GET or not code:
        said = request.GET.get("error", "no code")[:80]
        raise launching.NotThisLaunch(f"{whose} sign-in ended without a code ({said}): {again}")
    return code


def status_of(error: ClinicError) -> int:
    """The HTTP status of a refusal."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 400)


def _waiting(request: HttpRequest, name: str) -> dict[str, Any]:
    kept = request.session.get(name)
    return dict(kept) if isinstance(kept, dict) else {}
