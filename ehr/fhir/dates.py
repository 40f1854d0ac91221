"""FHIR dates and times, which may be as vague as a year, as spans of time in UTC.

A fact dated "2012" could have happened on any day of 2012: it is not known before the END of that year
(`Span.end` feeds `available_at`), while a stay that began in "2012" counts from its START. A date without
a zone is read in UTC, and so is a time without one, which FHIR forbids and some systems send
(docs/oddities.md).
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

from ehr.errors import BadResource
from ehr.fhir.elements import Json, get_object, get_text

FIRST_YEAR, LAST_YEAR = 1850, 2199  # nothing in a living record is dated outside
_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?", re.ASCII)
_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2}T\d{2}:\d{2})(?::(\d{2})(\.\d{1,6})?\d*)?(Z|[+-]\d{2}:\d{2})?", re.ASCII
)
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Span:
    """From the first to the last moment that a date may mean, both aware, in UTC."""

    start: datetime
    end: datetime

    @property
    def is_exact(self) -> bool:
        """Known to the day or better."""
        return self.end - self.start < timedelta(days=1)


@lru_cache(maxsize=20_000)
def read_date_time(text: str, element: str) -> Span:
    """Read a FHIR date, dateTime or instant. Raises BadResource naming `element`."""
    match = _TIME.fullmatch(text)
    try:
        if match:
            moment = _read_time(match)
            span = Span(moment, moment)
        else:
            match = _DATE.fullmatch(text)
            if not match:
                raise ValueError
            span = _read_date(*(int(group) if group else None for group in match.groups()))
    except (ValueError, OverflowError) as error:
        raise BadResource(f"{element} is not a FHIR date or dateTime") from error
    if not FIRST_YEAR <= span.start.year <= span.end.year <= LAST_YEAR:
        raise BadResource(f"{element} is outside the years {FIRST_YEAR} to {LAST_YEAR}")
    return span


def _read_time(match: re.Match[str]) -> datetime:
    minute, second, fraction, zone = match.groups()
    if second == "60":  # a leap second, which FHIR allows and Python does not
        second, fraction = "59", ".999999"
    text = f"{minute}:{second or '00'}{fraction or ''}{zone or '+00:00'}"
    return datetime.fromisoformat(text).astimezone(UTC)


def _read_date(year: int | None, month: int | None, day: int | None) -> Span:
    if not year or month == 0 or day == 0:
        raise ValueError
    start = datetime(year, month or 1, day or 1, tzinfo=UTC)
    last_month = month or 12
    last_day = day or calendar.monthrange(year, last_month)[1]
    return Span(start, datetime(year, last_month, last_day, tzinfo=UTC) + timedelta(days=1) - _TICK)


def get_span(parent: Json, name: str, element: str) -> Span | None:
    """The date or dateTime `parent[name]`; None when absent."""
    text = get_text(parent, name, element)
    return read_date_time(text.strip(), f"{element}.{name}") if text else None


def get_period(parent: Json, name: str, element: str) -> tuple[Span | None, Span | None]:
    """(start, end) of the Period `parent[name]`, each None when absent."""
    period = get_object(parent, name, element)
    if period is None:
        return None, None
    start, end = (get_span(period, side, f"{element}.{name}") for side in ("start", "end"))
    if start and end and end.end < start.start:
        raise BadResource(f"{element}.{name}.end is before its start (per-1)")
    return start, end


def get_choice(parent: Json, stem: str, element: str) -> tuple[Span | None, Span | None]:
    """(start, end) of a choice such as onset[x] or performed[x]; both the same unless it is a Period.

    An age, a range or a text says nothing in absolute time: (None, None).
    """
    for name in (f"{stem}DateTime", f"{stem}Instant"):
        span = get_span(parent, name, element)
        if span:
            return span, span
    start, end = get_period(parent, f"{stem}Period", element)
    if start or end:
        return start, end
    timing = get_object(parent, f"{stem}Timing", element)
    if timing:
        events = timing.get("event")
        if isinstance(events, list) and events and all(isinstance(event, str) for event in events):
            spans = [read_date_time(event, f"{element}.{stem}Timing.event") for event in events]
            return spans[0], spans[-1]
    return None, None


def get_last_updated(resource: Json, kind: str) -> Span | None:
    """meta.lastUpdated: when the server last wrote the resource; None when absent."""
    meta = get_object(resource, "meta", kind)
    return get_span(meta, "lastUpdated", f"{kind}.meta") if meta else None


def latest(*spans: Span | None) -> datetime | None:
    """The last moment of the latest of `spans`: from then on all of it was known. None when all are None."""
    ends = [span.end for span in spans if span]
    return max(ends) if ends else None


def start_of(span: Span | None) -> datetime | None:
    return span.start if span else None


def end_of(span: Span | None) -> datetime | None:
    return span.end if span else None


def read_birth_date(text: str, element: str) -> date:
    """A birth date; the middle of the month or year when only that is known (at most half a year off)."""
    span = read_date_time(text.strip(), element)
    return (span.start + (span.end - span.start) / 2).date()
