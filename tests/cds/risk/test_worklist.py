"""The worklist: by severity, the unscored apart, only one's own patients, in few queries."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from cds.audit import recording
from cds.jobs import leases
from cds.patients import importing
from cds.patients.models import Patient
from cds.risk import assessing, queries, responding
from cds.risk.models import RiskAssessment
from cds.risk.seen import Filters, WorklistPage
from cds.risk.standing import DataState
from tests.cds.registry.rows import make_series, make_version
from tests.cds.risk.scores import say, score_by_hand
from tests.factories import NOW, TESTS, identity, make_patient, make_source, make_user, observation

pytestmark = pytest.mark.django_db
SOON = NOW + timedelta(minutes=5)


@pytest.fixture
def nurse() -> User:
    return make_user("clinician", units=("Ward 3",))


def here(**facts: object) -> Patient:
    return make_patient(unit="Ward 3", **facts)  # type: ignore[arg-type]


def shown(nurse: User, page: int = 1, **filters: object) -> WorklistPage:
    return queries.worklist(nurse, Filters(**filters), page, now=SOON)  # type: ignore[arg-type]


def test_by_category_then_change_then_age_and_unscored_last(nurse: User) -> None:
    version = make_version()
    low, high, rising, unscored, silent = here(), here(), here(), here(), here()
    score_by_hand(low, version, say(risk=0.05))
    score_by_hand(high, version, say(risk=0.40))
    score_by_hand(rising, version, say(risk=0.10), now=NOW - timedelta(hours=5))
    score_by_hand(rising, version, say(risk=0.30))
    score_by_hand(unscored, version, abstained="outside age range 18-95")
    page = shown(nurse)
    order = [row.patient_id for row in page.rows]
    assert order[:3] == [str(rising.pk), str(high.pk), str(low.pk)]
    assert set(order[3:]) == {str(unscored.pk), str(silent.pk)}
    assert (page.total, page.not_scored) == (5, 2)
    by_id = {row.patient_id: row for row in page.rows}
    assert by_id[str(rising.pk)].change_points == pytest.approx(20.0)
    assert by_id[str(high.pk)].change_points is None
    abstained = by_id[str(unscored.pk)]
    assert (abstained.state, abstained.reason, abstained.category) == (
        DataState.ABSTAINED, "outside age range 18-95", ""
    )  # fmt: skip
    assert by_id[str(silent.pk)].risk is None


def test_only_ones_own_patients(nurse: User) -> None:
    version = make_version()
    mine, theirs = here(), make_patient(unit="Ward 4")
    for patient in (mine, theirs):
        score_by_hand(patient, version)
    assert [row.patient_id for row in shown(nurse).rows] == [str(mine.pk)]
    assert shown(make_user("admin", units=("Ward 3",))).total == 0


def test_states_follow_the_record(nurse: User) -> None:
    version = make_version()
    stale, failed, in_care = here(), here(), here()
    score_by_hand(stale, version)
    importing.touch(stale, NOW)
    asked = leases.claim(RiskAssessment, assessing.request(failed, version, by=TESTS, now=NOW).pk)
    assert asked is not None
    assessing.fail(asked, reason="broken", by=TESTS, now=NOW)
    score_by_hand(in_care, version, say(outcome="death"))
    rows = {row.patient_id: row for row in shown(nurse).rows}
    assert rows[str(stale.pk)].state == DataState.STALE
    assert (rows[str(failed.pk)].state, rows[str(failed.pk)].failed_assessment_id) == (
        DataState.FAILED, str(asked.pk)
    )  # fmt: skip
    assert rows[str(in_care.pk)].state == DataState.NOT_ELIGIBLE


def test_filters(nurse: User) -> None:
    version = make_version()
    seen, with_image = here(patient=identity("zz", family="Needle")), here()
    scored = score_by_hand(seen, version, say(risk=0.6))
    score_by_hand(with_image, version, say(risk=0.05))
    make_series(with_image, NOW)
    responding.acknowledge(scored.predictions.get(), by=recording.person(nurse), user=nurse, now=NOW)

    def found(**filters: object) -> list[str]:
        return [row.patient_id for row in shown(nurse, **filters).rows]

    assert found(category="very-high") == [str(seen.pk)]
    assert found(unacknowledged=True) == [str(with_image.pk)]
    assert found(has_image=True) == [str(with_image.pk)]
    assert found(search="needl") == [str(seen.pk)]
    assert found(search="MRN-zz") == [str(seen.pk)]
    assert found(unit="Ward 4") == []
    assert found(state="Current", category="low") == [str(with_image.pk)]
    assert found(rising=True) == []
    row = next(row for row in shown(nurse).rows if row.patient_id == str(seen.pk))
    assert (row.acknowledged_by, row.response) == (nurse.username, "acknowledged")


def test_pages_of_25_in_at_most_a_dozen_queries(nurse: User) -> None:
    version = make_version()
    for number in range(30):
        patient = here(observations=[observation("8867-4", 80, "/min")])
        drivers = [{"modality": "tabular", "name": "heart_rate", "label": "Heart rate", "points": 0.04,
                    "value": 80.0, "unit": "/min"}]  # fmt: skip
        score_by_hand(patient, version, say(risk=number / 40, drivers=drivers))
    with CaptureQueriesContext(
        connection,
    ) as queries_made:
        first = shown(nurse)
    assert len(queries_made) <= 12
    second = shown(nurse, page=2)
    assert (len(first.rows), len(second.rows), first.pages) == (25, 5, 2)
    assert first.rows[0].top_driver == "Heart rate 80 /min (+4 points)"
    assert first.rows[0].risk == pytest.approx(29 / 40)
    assert shown(nurse, page=99).page == 2


def test_the_line_names_a_value_and_not_some_sentence(nurse: User) -> None:
    patient, version = here(observations=[observation("8867-4", 80, "/min")]), make_version()
    sentence = {"modality": "text", "name": "note", "label": "Note", "points": -0.29, "text": "Slept well."}
    rate = {"modality": "tabular", "name": "heart_rate", "label": "Heart rate", "points": -0.04,
            "value": 80.0, "unit": "/min"}  # fmt: skip
    score_by_hand(patient, version, say(risk=0.4, drivers=[sentence, rate]))
    assert shown(nurse).rows[0].top_driver == "Heart rate 80 /min (−4 points)"
    only = here(observations=[observation("8867-4", 81, "/min")])
    score_by_hand(only, version, say(risk=0.3, drivers=[sentence]))
    row = next(row for row in shown(nurse).rows if row.patient_id == str(only.pk))
    assert row.top_driver == "A sentence in the notes (−29 points)"


def test_the_same_moment_scored_again_or_another_model_is_no_change(nurse: User) -> None:
    first, patient = make_version(), here()
    score_by_hand(patient, first, say(risk=0.1), now=NOW - timedelta(hours=5))
    second = make_version(number=2)
    score_by_hand(patient, second, say(risk=0.2))
    importing.touch(patient, NOW)
    patient.refresh_from_db()
    score_by_hand(patient, second, say(risk=0.5))
    [row] = shown(nurse).rows
    assert (row.risk, row.change_points) == (0.5, None)
    [outcome] = queries.panel(nurse, patient, now=SOON).outcomes
    assert [point.risk for point in outcome.trend] == [0.1, 0.5]


def test_without_an_active_model_it_says_so(nurse: User) -> None:
    here()
    page = shown(nurse)
    assert page.outcomes == ()
    assert page.rows[0].reason == "no model is active yet"


def test_simulated_patients_are_labelled(nurse: User) -> None:
    make_patient(unit="Ward 3", source=make_source("demo", simulated=True))
    assert shown(nurse).rows[0].simulated
