"""The event stream: GET /events."""

from __future__ import annotations

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.http import require_GET

from web import launch, streams
from web.forms import whole_number


@require_GET
async def events(request: HttpRequest) -> HttpResponseBase:
    """Ids of what changed, as server-sent events, until the screen leaves or ten minutes have passed.

    In a session that an EHR's launch began: of that patient, and of the model in use.

    204 tells a browser not to come back: nobody is signed in, or the server cannot hold streams open (WSGI).
    """
    user = await request.auser()
    request.is_stream = True  # type: ignore[attr-defined]  # read by PrivatePages: a stream is not activity
    if not user.is_authenticated or not isinstance(request, ASGIRequest):
        return HttpResponse(status=204)
    launched = await sync_to_async(launch.of_session)(request)
    response = StreamingHttpResponse(
        streams.events_for(
            user,
            _since(request),
            session_key=request.session.session_key,
            only=launched.patient if launched else None,
        ),
        content_type="text/event-stream",
    )
    response["X-Accel-Buffering"] = "no"
    return response


def _since(request: HttpRequest) -> int | None:
    """Where to go on: the browser's Last-Event-ID, else what the page noted when it was made."""
    given = request.headers.get("Last-Event-ID") or request.GET.get("since", "")
    return whole_number(given)
