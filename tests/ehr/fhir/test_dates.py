# ruff: noqa: E501 - tables are read by row
"""Vague dates: known from the end, begun at the start; absurd ones are refused."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from ehr import BadResource
from ehr.fhir.dates import get_choice, get_period, latest, read_birth_date, read_date_time

TABLE = [
    ("2012", "2012-01-01T00:00:00", "2012-12-31T23:59:59.999999"),
    ("2012-02", "2012-02-01T00:00:00", "2012-02-29T23:59:59.999999"),
    ("2013-02", "2013-02-01T00:00:00", "2013-02-28T23:59:59.999999"),
    ("2020-05-03", "2020-05-03T00:00:00", "2020-05-03T23:59:59.999999"),
    ("2020-05-03T10:15:00Z", "2020-05-03T10:15:00", "2020-05-03T10:15:00"),
    ("2020-05-03T10:15:00.5+02:00", "2020-05-03T08:15:00.500000", "2020-05-03T08:15:00.500000"),
    ("2020-05-03T10:15:00.123456789-05:00", "2020-05-03T15:15:00.123456", "2020-05-03T15:15:00.123456"),
    ("2020-05-03T10:15Z", "2020-05-03T10:15:00", "2020-05-03T10:15:00"),  # seconds left out by some systems
    ("2020-05-03T10:15:00", "2020-05-03T10:15:00", "2020-05-03T10:15:00"),  # zone left out: UTC
    ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999", "2016-12-31T23:59:59.999999"),  # leap second
]


@pytest.mark.parametrize(("text", "start", "end"), TABLE)
def test_a_date_spans_all_it_may_mean(text: str, start: str, end: str) -> None:
    span = read_date_time(text, "x")
    assert span.start == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert span.end == datetime.fromisoformat(end).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["0000-01-01", "0000", "1200-01-01", "9999-12-31", "2020-13-01", "2020-02-30", "2020-00", "today", "20200503",
     "2020-5-3", "2020-05-03T25:00:00Z", "2020-05-03T10:00:00+99:00", "2020-05-03 10:00", "٢٠٢٠", ""],
)  # fmt: skip
def test_absurd_dates_are_refused(text: str) -> None:
    with pytest.raises(BadResource, match=r"Observation\.effectiveDateTime"):
        read_date_time(text, "Observation.effectiveDateTime")


def test_known_from_the_later_of_two() -> None:
    day, moment = read_date_time("2020-05-03", "x"), read_date_time("2020-05-03T10:00:00Z", "x")
    assert latest(day, moment, None) == day.end
    assert latest(None, None) is None


def test_a_period_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(BadResource, match="per-1"):
        get_period({"period": {"start": "2020-05-03", "end": "2020-05-01"}}, "period", "Encounter")


def test_a_day_that_begins_and_ends_a_period_is_one_day() -> None:
    start, end = get_period({"period": {"start": "2020-05-03T12:00:00Z", "end": "2020-05-03"}}, "period", "E")
    assert start
    assert end
    assert start.start < end.end


def test_a_choice_may_be_a_timing() -> None:
    start, end = get_choice({"xTiming": {"event": ["2020-01-01", "2020-01-03"]}}, "x", "O")
    assert start
    assert end
    assert (start.start.day, end.end.day) == (1, 3)


def test_ages_say_no_date() -> None:
    assert get_choice({"onsetAge": {"value": 40, "code": "a"}}, "onset", "Condition") == (None, None)


def test_a_birth_year_is_taken_in_the_middle() -> None:
    assert read_birth_date("1950", "x") == date(1950, 7, 2)
    assert read_birth_date("1950-06", "x") == date(1950, 6, 16)
    assert read_birth_date("1950-06-08", "x") == date(1950, 6, 8)
