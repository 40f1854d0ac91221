"""The way of a hook call through the web server: a short one, with a watch beside it.

Under ASGI, Django gives each request a thread of its own and hops between it and the event loop for every
middleware. A hook call has no cookie, no session and no page, so it takes a shorter way: the event loop takes
the body in, one of a few lasting threads does all of the work (HOOKS_MIDDLEWARE around the same views), and
the event loop sends the answer.

The watch is what keeps INTEROP 23: the budget begins when the body has come, and when it is over the caller
gets its 503 with an OperationOutcome, whatever the thread still waits for: a slow database, a lock, an
address that does not answer. The thread ends by itself (`limiting` sees to that in the database), finds its
time over, and keeps nothing as shown; cards it had kept by then, because only the commit took too long, are
marked (`keeping`). A call whose time was over before a thread was free is not begun.

Nobody at the bedside waits for feedback: it has threads and a longer budget of its own, and ends by itself
between two short transactions, saying what it has kept. The watch leaves it the time for the last of them.

Bodies are taken in before the token is looked at, so they are limited: in length, in the time they take (408)
and all that are under way together (503).
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import structlog
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import BaseHandler
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import get_resolver, set_script_prefix
from django_prometheus.middleware import Metrics, PrometheusAfterMiddleware
from django_prometheus.utils import Time, TimeSince
from django_structlog.middlewares import RequestMiddleware
from prometheus_client import Counter, Histogram

from cds.audit import callers
from cds.hooks import budget, limiting
from cds.hooks.wire import MAX_BODY_BYTES

logger = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
PATH = "/cds-services"
THREADS = 8  # of one process; with those for feedback, each keeps a database connection (`limiting`)
BODY_S = 10.0  # for all of a body to come: 5 MB at 4 Mbit/s
MOST_READ = 128 * 1024 * 1024  # bytes of bodies that are being taken in at once, by one process
FEEDBACK_THREADS = 2  # the same for feedback, of which a batch takes seconds: no clinician waits behind it


class HookHandler(BaseHandler):
    """Django's handling of a request, synchronous from end to end, with HOOKS_MIDDLEWARE only."""

    def __init__(self) -> None:
        super().__init__()
        everything = settings.MIDDLEWARE
        settings.MIDDLEWARE = settings.HOOKS_MIDDLEWARE  # Django reads it here and nowhere else
        try:
            self.load_middleware()
        finally:
            settings.MIDDLEWARE = everything
        _ = get_resolver().url_patterns  # every view is imported now, not while the first caller waits

    def answer(
        self, scope: Scope, body: bytes, until: float, handover: budget.Handover | None = None
    ) -> HttpResponseBase:
        """Answer one call. Runs in a thread, whose database connection `limiting` keeps or gives back."""
        if time.monotonic() >= until:
            logger.warning("a CDS Hooks call waited for a thread until its time was over")
            return _late(scope)
        with limiting.limited(settings.HOOKS_BUDGET_S):
            return self._answer(scope, body, until, handover)

    def _answer(
        self, scope: Scope, body: bytes, until: float, handover: budget.Handover | None
    ) -> HttpResponseBase:
        set_script_prefix("")
        request = ASGIRequest(scope, io.BytesIO(body))
        request.META[budget.META_KEY] = until
        request.META[budget.HANDOVER_KEY] = handover
        response = self.get_response(request)
        response.close()  # sends request_finished here, in the thread that holds the connection
        return response


class CallLog(RequestMiddleware):
    """The id and the address that every line of a call carries; only what was refused gets a line itself.

    Of what went well the web server's log tells, and the audit trail.
    """

    def prepare(self, request: HttpRequest) -> None:
        """An id of our own: what a caller sends is not taken for one. The address is the audit trail's."""
        structlog.contextvars.bind_contextvars(request_id=str(uuid.uuid4()), ip=callers.address_of(request))

    def handle_response(self, request: HttpRequest, response: HttpResponse) -> None:
        """A line for a refusal or a fault."""
        if response.status_code >= 400 or hasattr(request, "_raised_exception"):
            super().handle_response(request, response)
        else:
            structlog.contextvars.clear_contextvars()


class CallMetrics(PrometheusAfterMiddleware):
    """How many calls of each service's view ended with which status, and how long they took.

    Under the names that django_prometheus gives all requests. What it counts besides (sizes, character sets,
    templates) is the same for every call, and would cost more of it than its cards do.
    """

    def process_request(self, request: HttpRequest) -> None:
        """When it began."""
        request.prometheus_after_middleware_event = Time()  # type: ignore[attr-defined]

    def process_view(self, *_: Any, **__: Any) -> None:
        """Counted by its answer."""

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Counted and timed."""
        answered, seconds = _meters(self._get_view_name(request), self._method(request), response.status_code)
        answered.inc()
        seconds.observe(TimeSince(request.prometheus_after_middleware_event))  # type: ignore[attr-defined]
        return response


@lru_cache(maxsize=256)  # some views, times methods, times statuses
def _meters(view: str, method: str, status: int) -> tuple[Counter, Histogram]:
    metrics = Metrics.get_instance()
    answered = metrics.responses_by_status_view_method.labels(status=str(status), view=view, method=method)
    return answered, metrics.requests_latency_by_view_method.labels(view=view, method=method)


class HookServer:
    """The ASGI application for PATH and what lies below it."""

    def __init__(self, threads: int = THREADS) -> None:
        self._handler = HookHandler()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="hook")
        self._feedback = ThreadPoolExecutor(FEEDBACK_THREADS, thread_name_prefix="hook-feedback")
        self._read = 0  # bytes of bodies that have not come whole yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take the body, have it answered within the budget, send the answer."""
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._body(scope, receive)
        except TimeoutError:
            return await _send(_too_slow(scope), send)
        except _TooMuch:
            return await _send(_away(scope, "too many large bodies are being sent at once: try again"), send)
        if body is None:  # the caller has gone
            return
        is_feedback = str(scope.get("path", "")).endswith("/feedback")
        budget_s = settings.HOOKS_FEEDBACK_S if is_feedback else settings.HOOKS_BUDGET_S
        watched_s = budget_s + settings.HOOKS_BUDGET_S if is_feedback else budget_s
        until = time.monotonic() + budget_s
        handover = budget.Handover()
        context = contextvars.copy_context()
        work = asyncio.get_running_loop().run_in_executor(
            self._feedback if is_feedback else self._threads,
            context.run,
            self._handler.answer,
            scope,
            body,
            until,
            handover,
        )
        done, _ = await asyncio.wait({work}, timeout=watched_s)
        is_over = not done and handover.take()
        response = _late(scope) if is_over else await work  # whose cards count as shown, or which is there
        await _send(response, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; of one over the limit, as much as shows that it is: none of it where its length says so.

        raises  _TooMuch where all that are being taken in would be more than MOST_READ
        """
        if _declared(scope) > MAX_BODY_BYTES:
            return b""
        pieces, size = [], 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                piece = message.get("body", b"")
                size += len(piece)
                self._read += len(piece)
                pieces.append(piece)
                if not message.get("more_body", False) or size > MAX_BODY_BYTES:
                    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
                if self._read > MOST_READ:
                    raise _TooMuch
        finally:
            self._read -= size


def is_hook_call(scope: Scope) -> bool:
    """Whether a request goes this way."""
    path = str(scope.get("path", ""))
    return bool(scope["type"] == "http") and (path == PATH or path.startswith(f"{PATH}/"))


def _declared(scope: Scope) -> int:
    """How long the body is said to be; 0 where nothing is said, or nothing that is a number."""
    said = dict(scope["headers"]).get(b"content-length", b"")
    return int(said) if said.isdigit() and len(said) < 20 else 0


class _TooMuch(Exception):
    """All bodies that are being taken in are more than MOST_READ."""


def _late(scope: Scope) -> HttpResponse:
    return _away(scope, "the call took longer than its budget: try again")


def _away(scope: Scope, message: str) -> HttpResponse:
    from cds.hooks.endpoints import away

    return _told(scope, away(message))


def _too_slow(scope: Scope) -> HttpResponse:
    from cds.hooks.endpoints import refusal

    logger.warning("the body of a CDS Hooks call did not come within %g s", BODY_S)
    message = f"the body did not come whole within {BODY_S:g} s: send it without a pause"
    response = refusal(408, message, code="timeout")
    response["Connection"] = "close"  # nobody knows where in this one the next request would begin
    return _told(scope, response)


def _told(scope: Scope, response: HttpResponse) -> HttpResponse:
    """So that a browser of an allowed origin may read it."""
    from cds.hooks import origins

    origin = dict(scope["headers"]).get(b"origin", b"").decode("latin1")
    return origins.tell(response, origin, allowed=origins.was_allowed(origin))


async def _send(response: HttpResponseBase, send: Send) -> None:
    body = getattr(response, "content", b"")
    response.headers.setdefault("Content-Length", str(len(body)))
    headers = [(name.encode("ascii"), value.encode("latin1")) for name, value in response.items()]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
