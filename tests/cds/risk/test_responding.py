"""Answers of people: coded, permitted, audited, and taken back only while that is honest."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import Conflict, Invalid, NotAllowed
from cds.risk import responding
from cds.risk.models import RiskPrediction
from tests.cds.registry.rows import make_version
from tests.cds.risk.scores import score_by_hand
from tests.factories import NOW, TESTS, make_patient, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def prediction() -> RiskPrediction:
    return score_by_hand(make_patient(), make_version()).predictions.get()


def test_acknowledging_twice_is_once(prediction: RiskPrediction) -> None:
    user = make_user("clinician")
    by = recording.person(user)
    first = responding.acknowledge(prediction, by=by, user=user, now=NOW)
    assert responding.acknowledge(prediction, by=by, user=user, now=NOW + timedelta(minutes=1)) == first
    assert AuditEvent.objects.filter(action="score.acknowledged").count() == 1


def test_overriding_needs_a_coded_reason(prediction: RiskPrediction) -> None:
    user = make_user("clinician")
    by = recording.person(user)
    with pytest.raises(Invalid, match="choose a reason"):
        responding.override(prediction, reason_code="because", by=by, user=user, now=NOW)
    held = responding.override(
        prediction, reason_code="cds-not-applicable", comment=" palliative ", by=by, user=user, now=NOW
    )
    assert (held.kind, held.comment, responding.last_response(prediction)) == (
        "overridden",
        "palliative",
        held,
    )


def test_the_reasons_are_those_of_the_value_set() -> None:
    assert set(responding.OVERRIDE_REASONS) == {
        "cds-not-applicable", "cds-suboptimal-context", "recipient-disagrees-evidence",
        "recipient-concerns-outcomes", "does-not-align-preferences", "not-convenient-feasible",
        "action-completed", "patient-contraindication", "patient-refuses", "too-costly-uncovered",
        "service-not-available", "recipient-does-not-understand",
    }  # fmt: skip


def test_snoozing_quiets_the_cards_of_this_outcome_for_four_hours(prediction: RiskPrediction) -> None:
    responding.snooze(prediction, by=TESTS, user=make_user("clinician"), now=NOW)
    answer = responding.latest_of([prediction.assessment.patient_id], prediction.outcome)
    before, after = NOW + timedelta(hours=3.9), NOW + timedelta(hours=4.1)
    assert answer is not None
    assert responding.is_snoozed(answer, category=answer.category, now=before)
    assert not responding.is_snoozed(answer, category=answer.category, now=after)


def test_undo_within_seconds_by_the_same_person(prediction: RiskPrediction) -> None:
    user, other = make_user("clinician"), make_user("clinician")
    by = recording.person(user)
    held = responding.acknowledge(prediction, by=by, user=user, now=NOW)
    with pytest.raises(Conflict, match="only the person"):
        responding.undo(held, by=by, user=other, now=NOW)
    with pytest.raises(Conflict, match="too late"):
        responding.undo(held, by=by, user=user, now=NOW + timedelta(minutes=1))
    responding.undo(held, by=by, user=user, now=NOW + timedelta(seconds=8))
    assert responding.last_response(prediction) is None
    assert prediction.responses.count() == 2


@pytest.mark.parametrize("role", ["admin", "approver"])
def test_only_clinicians_answer(prediction: RiskPrediction, role: str) -> None:
    with pytest.raises(NotAllowed):
        responding.acknowledge(prediction, by=TESTS, user=make_user(role), now=NOW)
