"""What nobody handled: a page for it that asks no database and no session."""

from __future__ import annotations

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

RETRY_AFTER_S = 10
AWAY = (OperationalError, InterfaceError)  # out of reach, cut off, over its time, locked


def server_error(request: HttpRequest) -> HttpResponse:
    """503 with Retry-After while the database is away, else 500. Called where the error was caught."""
    is_away = isinstance(sys.exc_info()[1], AWAY)
    status = 503 if is_away else 500
    answer = HttpResponse(render_to_string(f"{status}.html"), status=status)
    answer["Cache-Control"] = "no-store"
    if is_away:
        answer["Retry-After"] = str(RETRY_AFTER_S)
        if hasattr(request, "session"):
            del request.session  # SessionMiddleware would look it up to save it, and wait once more
    return answer
