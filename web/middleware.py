"""What every page of a patient needs, and the absolute end of a session."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.conf import settings
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponseBase


class PrivatePages:
    """No page is kept by a browser or proxy; a session ends after SESSION_ABSOLUTE_AGE whatever happens."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.user.is_authenticated:
            began = request.session.setdefault("began", time.time())
            if time.time() - began > settings.SESSION_ABSOLUTE_AGE:
                logout(request)
        response = self.get_response(request)
        response.headers.setdefault("Cache-Control", "no-store")
        return response
