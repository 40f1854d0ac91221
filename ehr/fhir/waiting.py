"""Waiting for a FHIR server that is busy: Retry-After, bounded backoff, what its OperationOutcome said."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import orjson
import tenacity

from ehr.errors import Retriable
from ehr.fhir.prefetch import outcome_text

ATTEMPTS = 5
MAX_WAIT_S = 60.0


def is_busy(status: int) -> bool:
    """Whether the same call may succeed later."""
    return status in (408, 425, 429) or status >= 500


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
