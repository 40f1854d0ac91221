"""A FHIR server that is busy, or refuses: Retry-After, bounded backoff, its words, what to change there."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
import orjson
import tenacity

from ehr.errors import Retriable
from ehr.fhir.prefetch import outcome_text

ATTEMPTS = 5
MAX_WAIT_S = 60.0


def is_busy(status: int) -> bool:
    """Whether the same call may succeed later. 501 (not implemented) will say the same again."""
    return status in (408, 425, 429) or (status >= 500 and status != 501)


def backoff(state: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: what the server asked for, else 0.5, 1, 2, 4; a minute at most."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, Retriable) else None
    return min(MAX_WAIT_S, asked if asked is not None else 0.5 * 2.0 ** (state.attempt_number - 1))


def retry_after(response: httpx.Response) -> float | None:
    """Retry-After in seconds or as an HTTP date (RFC 9110 §10.2.3); None when absent or unreadable."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        sent = response.headers.get("Date")
        start = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
        return max(0.0, (moment - start).total_seconds())
    except (ValueError, TypeError):
        return None


def outcome_said(body: bytes) -> str:
    """ ": " and the text of the OperationOutcome in a body; "" when it holds none."""
    try:
        resource = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    is_outcome = isinstance(resource, dict) and resource.get("resourceType") == "OperationOutcome"
    return f": {outcome_text(resource)}" if is_outcome else ""


def refusal_said(answer: httpx.Response, body: bytes, kind: str = "") -> str:
    """What an answer that refuses said, its status first, and what to change on whose side.

    kind  the resource type that was searched for, or "" for anything else
    """
    status = answer.status_code
    advice = {
        401: "the server does not take our token: give a fresh one",
        403: f"the server does not let this client: have it allow system/{kind or '*'}.rs there",
        405: "the server does not offer this",
        406: "the server does not answer in application/fhir+json: have it do so, or give its R4 address",
        501: "the server does not offer this",
    }.get(status, "")
    if status == 404 and kind:
        advice = f"the server has no {kind} here: is the base URL that of its FHIR R4 API, path included?"
    if answer.is_redirect:
        to = urlsplit(answer.headers.get("Location", ""))
        where = f"; it points to {to.scheme}://{to.netloc.rpartition('@')[2]}"[:120] if to.netloc else ""
        advice = f"redirects are not followed{where}: give the address it is to be called by"
    return f"{status}{outcome_said(body)}" + (f" ({advice})" if advice else "")
