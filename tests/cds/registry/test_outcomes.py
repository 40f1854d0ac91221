"""What happened, as a clinician would read it off the stays: a table of hospital courses and their labels."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from cds.errors import Invalid
from cds.patients.models import Patient
from cds.registry import outcomes
from tests.cds.registry.rows import make_patient, make_series, make_stay
from tests.factories import NOW

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)
LATE = NOW + 400 * DAY


def label(patient: Patient, outcome: str, *, cutoff: datetime = LATE) -> outcomes.Label:
    """Value and reason alone; `follow_up` tells the rest."""
    history = outcomes.read_history(patient, cutoff=cutoff)
    return replace(outcomes.label(outcomes.get_outcome(outcome), history, as_of=NOW), after=timedelta(0))


def follow_up(patient: Patient, outcome: str, *, cutoff: datetime = LATE) -> tuple[float, bool] | None:
    asked = outcomes.get_outcome(outcome)
    found = outcomes.label(asked, outcomes.read_history(patient, cutoff=cutoff), as_of=NOW)
    return found.follow_up(asked.horizon)


ICU, WARD = "intensive-care", "inpatient"
COURSES: list[tuple[str, list[tuple[str, float | None, float | None]], int | None, str]] = [
    # what the record holds (kind, first and last day), and what that means for intensive care within 14 days
    ("intensive care on day 3", [(WARD, -1, 10), (ICU, 3, 6)], 1, ""),
    ("intensive care on day 14", [(WARD, -1, 20), (ICU, 14, 16)], 1, ""),
    ("intensive care on day 15 is too late", [(WARD, -1, 20), (ICU, 15, 16)], 0, ""),
    ("home without it", [(WARD, -1, 5)], 0, ""),
    ("still on the ward, nothing later known", [(WARD, -1, None)], None, "follow-up too short"),
    ("seen again later", [(WARD, -1, None), ("emergency", 30, 31)], 0, ""),
    ("already there", [(WARD, -2, 9), (ICU, -1, 4)], None, "already in intensive care in this stay"),
    ("already there, and still", [(ICU, -1, None)], None, "already in intensive care in this stay"),
    (
        "left it before, in this stay",
        [(WARD, -9, 9), (ICU, -5, -2)],
        None,
        "already in intensive care in this stay",
    ),
    ("left it in an earlier stay", [(WARD, -90, -60), (ICU, -80, -70), (WARD, -1, 9), (ICU, 2, 3)], 1, ""),
    ("nobody wrote when", [(WARD, -1, 9), (ICU, None, None)], None, "start of intensive care not known"),
    ("no stay at all", [], None, "follow-up too short"),
]


@pytest.mark.parametrize(("course", "stays", "value", "reason"), COURSES, ids=[c[0] for c in COURSES])
def test_intensive_care_within_14_days(
    course: str, stays: list[tuple[str, float | None, float | None]], value: int | None, reason: str
) -> None:
    patient = make_patient()
    for kind, first, last in stays:
        make_stay(
            patient,
            kind,
            NOW + first * DAY if first is not None else None,
            NOW + last * DAY if last is not None else None,
        )
    assert label(patient, "icu-admission") == outcomes.Label(value, reason)


@pytest.mark.parametrize(
    ("died_on", "deceased", "left_on", "value", "reason"),
    [
        (5, True, 5, 1, ""),
        (30, True, 10, 1, ""),
        (31, True, 10, 0, ""),
        (-1, True, None, None, "died before the prediction"),
        (None, True, 5, None, "date of death not known"),
        (None, False, 5, 0, ""),
        (None, False, None, None, "follow-up too short"),
    ],
)
def test_death_within_30_days(
    died_on: int | None, deceased: bool, left_on: int | None, value: int | None, reason: str
) -> None:
    patient = make_patient()
    patient.deceased = deceased
    patient.deceased_at = NOW + died_on * DAY if died_on is not None else None
    patient.save()
    make_stay(patient, WARD, NOW - DAY, NOW + left_on * DAY if left_on is not None else None)
    assert label(patient, "death") == outcomes.Label(value, reason)


def test_dying_on_the_ward_is_no_intensive_care() -> None:
    patient = make_patient()
    patient.deceased, patient.deceased_at = True, NOW + 2 * DAY
    patient.save()
    make_stay(patient, WARD, NOW - DAY, None)
    assert label(patient, "icu-admission") == outcomes.Label(0)


@pytest.mark.parametrize(("icu_day", "value"), [(3, 1), (None, 0)])
def test_dying_at_an_unknown_time_does_not_hide_what_the_stays_tell(icu_day: int | None, value: int) -> None:
    patient = make_patient()
    patient.deceased, patient.deceased_at = True, None
    patient.save()
    make_stay(patient, WARD, NOW - DAY, NOW + 9 * DAY)
    if icu_day is not None:
        make_stay(patient, ICU, NOW + icu_day * DAY, NOW + 8 * DAY)
    assert label(patient, "icu-admission") == outcomes.Label(value)
    assert label(patient, "death").reason == "date of death not known"


def test_a_stay_of_unknown_course_is_no_negative_whatever_was_seen_later() -> None:
    patient = make_patient()
    make_stay(patient, WARD, NOW - DAY, None, status="unknown")
    make_series(patient, NOW + 60 * DAY)
    assert label(patient, "icu-admission") == outcomes.Label(None, "the course of the stay is not known")


def test_nothing_after_the_cutoff_counts_as_follow_up() -> None:
    patient = make_patient()
    make_stay(patient, WARD, NOW - DAY, None)
    make_stay(patient, "ambulatory", NOW + 60 * DAY, NOW + 60 * DAY)
    assert label(patient, "icu-admission").value == 0
    assert label(patient, "icu-admission", cutoff=NOW + 10 * DAY).reason == "follow-up too short"


def test_learned_from_the_moments_of_image_studies_with_pixels() -> None:
    patient = make_patient()
    make_series(patient, NOW + DAY)
    make_series(patient, NOW)
    make_series(patient, None)
    make_series(patient, NOW + 3 * DAY, clip_path="")
    assert outcomes.index_moments(patient) == [NOW, NOW + DAY]


def test_an_unknown_outcome_is_named() -> None:
    with pytest.raises(Invalid, match="icu-admission"):
        outcomes.get_outcome("rain")


@pytest.mark.parametrize(
    ("stays", "died_on", "icu", "death"),
    [
        # hours followed, and whether the event ends them
        ([(WARD, -1, 10), (ICU, 3, 6)], None, (72.0, True), (720.0, False)),
        ([(WARD, -1, 10), (ICU, 6, 7), (ICU, 3, 4)], 9, (72.0, True), (216.0, True)),
        ([(WARD, -1, 10)], 31, (336.0, False), (720.0, False)),
        ([(WARD, -1, None)], 5, (336.0, False), (120.0, True)),  # died without it: never admitted to it
        ([(WARD, -1, None), ("ambulatory", 4, 5)], None, (120.0, False), (120.0, False)),  # then lost
        ([(WARD, -1, None), ("ambulatory", 20, 20)], None, (336.0, False), (480.0, False)),
        ([(WARD, -1, None)], None, None, None),  # never seen again
        ([(WARD, -2, 9), (ICU, -1, 4)], None, None, (720.0, False)),  # not at risk of it
    ],
)
def test_how_long_each_was_followed(
    stays: list[tuple[str, float, float | None]],
    died_on: int | None,
    icu: tuple[float, bool] | None,
    death: tuple[float, bool] | None,
) -> None:
    patient = make_patient()
    if died_on is not None:
        patient.deceased, patient.deceased_at = True, NOW + died_on * DAY
        patient.save()
    for kind, first, last in stays:
        make_stay(patient, kind, NOW + first * DAY, NOW + last * DAY if last is not None else None)
    assert (follow_up(patient, "icu-admission"), follow_up(patient, "death")) == (icu, death)
