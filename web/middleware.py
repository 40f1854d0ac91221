"""Pages nobody keeps, sessions that end, and the refusals of the clinic as pages."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from http.cookies import Morsel
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.contrib.auth import logout
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django_structlog.middlewares import RequestMiddleware

from cds.audit import callers, recording, refusing
from cds.errors import ClinicError, Conflict, Invalid, NotAllowed, NotFound, Unavailable
from cds.launch import registering
from cds.patients import access
from web import launch

# Python 3.11 does not know this attribute of a cookie yet; from 3.14 on it does.
Morsel._reserved.setdefault("partitioned", "Partitioned")  # type: ignore[attr-defined]
Morsel._flags.add("partitioned")  # type: ignore[attr-defined]

STATUS: dict[type[ClinicError], int] = {
    NotAllowed: 403,
    NotFound: 404,
    Conflict: 409,
    Invalid: 400,
    Unavailable: 503,
}
LIVE_HEADER = "X-Live"  # a request made by the page itself, not by a person
# What a launched session opens besides the routes of its own patient; /events tells it of that one only.
IN_A_LAUNCH = frozenset(
    {
        "home", "help", "login", "logout", "stay", "events", "model-card", "model-card-json",
        "smart-launch", "smart-callback", "smart-style", "smart-ended",
    }
)  # fmt: skip
PROBES = frozenset({"/livez", "/readyz", "/metrics"})  # answered whatever is away; nobody is signed in there


class RequestLog(RequestMiddleware):
    """The id and the person that every line of a request carries; no error of its own without a database.

    The path only: codes, states and launch handles of sign-ins stand in query strings.
    """

    @staticmethod
    def format_request(request: HttpRequest) -> str:
        """Such as `GET /launch/callback`."""
        return f"{request.method} {request.path}"

    @classmethod
    def bind_ip(cls, request: HttpRequest) -> None:
        """As the audit trail says it: not what a caller writes into X-Forwarded-For."""
        structlog.contextvars.bind_contextvars(ip=callers.address_of(request))

    @staticmethod
    def bind_user_id(request: HttpRequest) -> None:
        """The account's number; left out where the database cannot say whose session it is."""
        if isinstance(sys.exc_info()[1], DatabaseError | InterfaceError):
            return  # it is away: asking again would only wait again
        try:
            RequestMiddleware.bind_user_id(request)
        except (DatabaseError, InterfaceError):
            return


class Launches:
    """Pages inside an EHR, and sessions that belong to one launch.

    Where some EHR may show us in a frame, `frame-ancestors` names it, and cookies are Secure, SameSite=None
    and Partitioned: from within a frame of another site no others come back (CHIPS), and the jar is that
    EHR's own. A session that an EHR's launch began shows that launch's patient and nothing else, whatever the
    person may see elsewhere: what is still open from an earlier launch is refused with 409 and leaves the
    screen, any other page with 403. Links that name no patient say whose launch they stand in (`OF`), since
    an EHR may show two patients at once, each in a frame.

    A probe (OPERATIONS 1) is answered without a question to the database, whatever cookies come with it.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path in PROBES:
            request.COOKIES.clear()  # so that no session is looked up
            return self.get_response(request)
        response = self.get_response(request)
        embedders = registering.list_embedders(ask=response.status_code < 500)
        if embedders:
            response._csp_update = {"frame-ancestors": embedders}  # type: ignore[attr-defined]
        if embedders or settings.FRAME_ANCESTORS:
            for cookie in response.cookies.values():
                cookie["samesite"], cookie["secure"], cookie["partitioned"] = "None", True, True
        return response

    def process_view(
        self, request: HttpRequest, view: object, args: object, kwargs: dict[str, object]
    ) -> HttpResponse | None:
        """Another patient than the launch's, or a page that is no patient's: refused."""
        if not getattr(view, "__module__", "").startswith("web."):
            return None
        launched = launch.of_session(request)
        if launched is None:
            return None
        asked = kwargs.get("patient_id")
        is_of_another = request.GET.get(launch.OF, launched.key) != launched.key
        if is_of_another or (asked is not None and not launched.is_of(asked)):
            reason = "Another patient has been opened in your EHR since. Open this one there again"
            title = "This panel is for another launch"
            # in the frame of one patient, and no link may lead from it to the other
            return _not_here(request, title, reason, status=409, alone=True)
        match = request.resolver_match
        if asked is None and (match.url_name if match else "") not in IN_A_LAUNCH:
            _record_refusal(request)
            reason = (
                "Your EHR has opened one patient here, and this session is for that patient only. To see "
                "anything else, sign out and sign in with an account of your own"
            )
            return _not_here(request, "Not in this session", reason, status=403)
        return None


class PrivatePages:
    """No page is kept by a browser or proxy; a session ends after SESSION_ABSOLUTE_AGE whatever happens.

    Requests that a page makes on its own (event stream, live fragments) say so with the header X-Live and do
    not count as activity: an unattended screen is signed out after SESSION_COOKIE_AGE. What htmx asks for
    once nobody is signed in any more makes it load the whole page again, which then is the sign-in.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.user.is_authenticated:
            began = request.session.setdefault("began", time.time())
            if time.time() - began > settings.SESSION_ABSOLUTE_AGE:
                logout(request)
            access.look_from(request.user, request.session.session_key)
        response = self.get_response(request)
        if getattr(request, "htmx", False) and _leads_to_sign_in(response):
            response = HttpResponse(status=401)  # a redirect would be followed, and its page put into a part
            response["HX-Refresh"] = "true"
        response.headers.setdefault("Cache-Control", "no-store")
        if request.headers.get(LIVE_HEADER) or getattr(request, "is_stream", False):
            # SessionMiddleware saves, and so prolongs, whatever session it still finds on the request.
            del request.session
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """A ClinicError raised by one of our own pages, as a page with its status; refusals are audited."""
        view = request.resolver_match.func if request.resolver_match else None
        if not isinstance(exception, ClinicError) or not getattr(view, "__module__", "").startswith("web."):
            return None
        if isinstance(exception, NotAllowed):
            _record_refusal(request)
        status = next((code for kind, code in STATUS.items() if isinstance(exception, kind)), 500)
        return render(
            request,
            f"{status if status in {403, 404} else 'refused'}.html",
            _context(exception, status),
            status=status,
        )


def _not_here(
    request: HttpRequest, title: str, reason: str, *, status: int, alone: bool = False
) -> HttpResponse:
    context = {"refusal_title": title, "reason": reason, "alone": alone}
    return render(request, "refused.html", context, status=status)


def _leads_to_sign_in(response: HttpResponseBase) -> bool:
    return response.status_code == 302 and urlsplit(response["Location"]).path == settings.LOGIN_URL


def _context(exception: ClinicError, status: int) -> dict[str, object]:
    titles = {
        400: "That was not understood",
        409: "That is no longer possible",
        503: "Not available just now",
    }
    return {"reason": str(exception), "refusal_title": titles.get(status, "Something went wrong")}


def _record_refusal(request: HttpRequest) -> None:
    match = request.resolver_match
    refusing.note(
        by=recording.person(request.user, request),
        action="page.open" if request.method == "GET" else "page.send",
        object_type="Page",
        object_id=(match.url_name if match else "") or "unknown",
        now=timezone.now(),
    )
