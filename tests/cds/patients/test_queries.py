"""The record as of a moment: nothing later, nothing undated, nobody else's."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from cds.errors import NotFound
from cds.patients import queries
from tests.factories import NOW, condition, make_patient, make_user, note, observation

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


def test_nothing_later_and_nothing_undated() -> None:
    patient = make_patient(
        unit="Ward 3",
        observations=[
            observation("8480-6", 100.0, "mm[Hg]", at=NOW - 3 * HOUR),
            observation("8480-6", 110.0, "mm[Hg]", at=NOW - 2 * HOUR, high=105.0),
            observation("8480-6", 200.0, "mm[Hg]", at=NOW + HOUR),
            observation("2708-6", 90.0, "%", at=None),
        ],
        conditions=[
            condition("233604007", at=NOW - HOUR),
            condition("840539006", at=NOW + timedelta(days=400)),
        ],
        notes=[note("Now.", at=NOW), note("Later.", at=NOW + HOUR)],
    )
    record = queries.get_record(make_user("clinician", units=("Ward 3",)), patient, as_of=NOW)
    (pressure,) = record.observations
    assert (pressure.value, pressure.unit, pressure.is_abnormal) == (110.0, "mm[Hg]", True)
    assert [point.value for point in pressure.history] == [100.0, 110.0]
    assert [one.code for one in record.conditions] == ["http://snomed.info/sct|233604007"]
    assert [one.text for one in record.notes] == ["Now."]
    assert record.undated == 1
    assert [stay.location for stay in record.stays] == ["Ward 3"]


def test_a_record_that_was_issued_late_was_not_known_before() -> None:
    late = observation("8480-6", 1.0, at=NOW, effective_at=NOW - 5 * HOUR)
    patient = make_patient(observations=[late])
    assert queries.list_observations(patient, as_of=NOW - HOUR) == ()
    assert len(queries.list_observations(patient, as_of=NOW)) == 1


def test_only_for_those_who_may_see_the_patient() -> None:
    patient = make_patient(unit="Ward 3")
    for user in (make_user("admin", units=("Ward 3",)), make_user("clinician", units=("Ward 4",))):
        with pytest.raises(NotFound):
            queries.get_record(user, patient, as_of=NOW)


@pytest.mark.parametrize(("birth", "age"), [(date(1966, 3, 1), 60.0), (None, None), (date(2027, 1, 1), None)])
def test_age(birth: date | None, age: float | None) -> None:
    found = queries.age_years(birth, NOW)
    assert found == (pytest.approx(age, abs=0.01) if age is not None else None)
