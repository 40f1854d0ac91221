"""Asking twice is harmless, an old number is never called Current, and silence is never a low risk."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.utils import timezone

from cds.audit.models import AuditEvent
from cds.errors import Conflict, NotAllowed
from cds.jobs import Job, leases
from cds.jobs.models import LiveEvent, OutboxMessage, WorkState
from cds.patients import importing
from cds.patients.models import Patient
from cds.registry.models import ActiveModel
from cds.risk import assessing, refreshing
from cds.risk.models import AssessmentStatus, RiskAssessment
from cds.risk.standing import DataState, Standing, moment, not_eligible, scored_outcomes, stand
from tests.cds.registry.rows import make_series, make_stay, make_version
from tests.cds.risk.scores import result, score_by_hand
from tests.factories import NOW, TESTS, make_patient, make_user, observation

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.mark.django_db
class TestMoment:
    """As of when: now in hospital or without any stay; looking back after a finished stay."""

    def test_without_a_stay_it_is_now(self) -> None:
        assert moment(make_patient(), NOW) == (NOW, False)

    def test_in_hospital_it_is_now(self) -> None:
        patient = make_patient()
        make_stay(patient, "inpatient", NOW - 3 * DAY, None)
        assert moment(patient, NOW) == (NOW, False)

    def test_a_stay_of_unknown_end_that_nobody_called_open_lies_in_the_past(self) -> None:
        patient = make_patient()
        make_stay(patient, "inpatient", NOW - 900 * DAY, None, status="unknown")
        make_series(patient, NOW - 899 * DAY)
        assert moment(patient, NOW) == (NOW - 899 * DAY, True)

    def test_after_a_finished_stay_it_is_its_latest_study_or_observation(self) -> None:
        patient = make_patient(observations=[observation("8867-4", 80, "/min", at=NOW - 7 * DAY)])
        make_stay(patient, "inpatient", NOW - 9 * DAY, NOW - 5 * DAY)
        assert moment(patient, NOW) == (NOW - 7 * DAY, True)
        make_series(patient, NOW - 6 * DAY)
        make_series(patient, NOW - 2 * DAY)  # after the stay
        assert moment(patient, NOW) == (NOW - 6 * DAY, True)

    def test_looking_back_stops_before_intensive_care_and_before_death(self) -> None:
        patient = make_patient()
        make_stay(patient, "inpatient", NOW - 9 * DAY, NOW - 5 * DAY)
        make_stay(patient, "intensive-care", NOW - 7 * DAY, NOW - 6 * DAY)
        make_series(patient, NOW - 8 * DAY)
        make_series(patient, NOW - 6.5 * DAY)
        assert moment(patient, NOW) == (NOW - 8 * DAY, True)
        dead = make_patient(observations=[observation("8867-4", 80, "/min", at=NOW - 4 * DAY)])
        dead.deceased, dead.deceased_at = True, NOW - 3 * DAY
        assert moment(dead, NOW) == (NOW - 4 * DAY, True)


def test_who_is_in_intensive_care_is_not_told_the_risk_of_going_there(db: None) -> None:
    patient, version = make_patient(), make_version("icu-admission")
    make_stay(patient, "intensive-care", NOW - HOUR, None)
    both = make_version("death", "icu-admission", active=False)
    assert not_eligible(patient, version, NOW) == "already in intensive care in this stay"
    assert scored_outcomes(patient, both.outcomes, NOW) == ["death"]
    assert assessing.request_all(patient, by=TESTS, now=NOW) == []
    assert stand(patient, version, now=NOW).state == DataState.NOT_ELIGIBLE


@pytest.mark.django_db
class TestAsking:
    def test_twice_is_once(self) -> None:
        patient, version = make_patient(), make_version()
        first = assessing.request(patient, version, by=TESTS, now=NOW)
        again = assessing.request(patient, version, by=TESTS, now=NOW + timedelta(seconds=30))
        assert first == again
        assert OutboxMessage.objects.filter(job=Job.SCORE.value).count() == 1
        assert AuditEvent.objects.filter(action="assessment.request").count() == 1

    def test_a_changed_record_is_a_new_question(self) -> None:
        patient, version = make_patient(), make_version()
        first = assessing.request(patient, version, by=TESTS, now=NOW)
        importing.touch(patient, NOW)
        assert assessing.request(patient, version, by=TESTS, now=NOW) != first

    def test_another_hour_is_a_new_question_unless_it_looks_back(self) -> None:
        patient, version = make_patient(), make_version()
        first = assessing.request(patient, version, by=TESTS, now=NOW)
        assert assessing.request(patient, version, by=TESTS, now=NOW + 2 * HOUR) != first
        past = make_patient()
        make_stay(past, "inpatient", NOW - 3 * DAY, NOW - 2 * DAY)
        asked = assessing.request(past, version, by=TESTS, now=NOW)
        assert asked.retrospective
        assert assessing.request(past, version, by=TESTS, now=NOW + 50 * HOUR) == asked

    def test_only_a_failed_score_is_tried_again_and_by_whoever_may(self) -> None:
        patient, version = make_patient(), make_version()
        asked = leases.claim(RiskAssessment, assessing.request(patient, version, by=TESTS, now=NOW).pk)
        assert asked is not None
        assessing.fail(asked, reason="the model's files are gone", by=TESTS, now=NOW)
        assert stand(patient, version, now=NOW).reason == "the model's files are gone"
        with pytest.raises(NotAllowed):
            assessing.retry(asked, by=TESTS, user=make_user("admin"), now=NOW)
        again = assessing.retry(asked, by=TESTS, user=make_user("clinician"), now=NOW)
        assert (again.work_state, again.status) == (WorkState.QUEUED, AssessmentStatus.REGISTERED)
        with pytest.raises(Conflict):
            assessing.retry(again, by=TESTS, user=None, now=NOW)


@pytest.mark.django_db
class TestFreshness:
    """What a number is worth: one test a row of the table in UI 3."""

    def stand(self, patient: Patient, now: datetime = NOW) -> Standing:
        patient.refresh_from_db()
        return stand(patient, ActiveModel.objects.get().version, now=now)

    def test_nothing_yet_is_updating_without_a_number(self) -> None:
        patient = make_patient()
        assessing.request(patient, make_version(), by=TESTS, now=NOW)
        standing = self.stand(patient)
        assert (standing.state, standing.assessment) == (DataState.UPDATING, None)
        assert "not yet known" in standing.reason

    def test_fresh_is_current(self) -> None:
        patient = make_patient()
        score_by_hand(patient, make_version())
        assert self.stand(patient).state == DataState.CURRENT
        assert self.stand(patient, NOW + 59 * timedelta(minutes=1)).state == DataState.CURRENT

    def test_an_hour_later_it_is_due_and_two_hours_later_stale(self) -> None:
        patient = make_patient()
        score_by_hand(patient, make_version())
        assert self.stand(patient, NOW + 1.5 * HOUR).state == DataState.UPDATING
        assert self.stand(patient, NOW + 2.1 * HOUR).state == DataState.STALE

    def test_newer_data_make_it_stale_at_once(self) -> None:
        patient = make_patient()
        score_by_hand(patient, make_version())
        importing.touch(patient, NOW)
        standing = self.stand(patient)
        assert standing.state == DataState.STALE
        assert standing.assessment is not None
        assert "newer data" in standing.reason

    def test_looking_back_never_ages(self) -> None:
        patient = make_patient()
        make_stay(patient, "inpatient", NOW - 3 * DAY, NOW - 2 * DAY)
        score_by_hand(patient, make_version())
        assert self.stand(patient, NOW + 300 * DAY).state == DataState.CURRENT

    def test_an_image_still_being_read_is_partial(self) -> None:
        patient = make_patient()
        scored = score_by_hand(patient, make_version(), pending=["image"], present=["tabular"])
        assert scored.status == AssessmentStatus.PRELIMINARY
        assert self.stand(patient).state == DataState.PARTIAL

    def test_abstaining_gives_no_number_and_says_why(self) -> None:
        patient = make_patient()
        scored = score_by_hand(patient, make_version(), abstained="outside age range 18-95")
        assert not scored.predictions.exists()
        standing = self.stand(patient)
        assert (standing.state, standing.reason) == (DataState.ABSTAINED, "outside age range 18-95")

    def test_a_failed_fresh_score_leaves_the_old_one_stale(self) -> None:
        patient, version = make_patient(), make_version()
        score_by_hand(patient, version)
        importing.touch(patient, NOW)
        asked = leases.claim(RiskAssessment, assessing.request(patient, version, by=TESTS, now=NOW).pk)
        assert asked is not None
        assessing.fail(asked, reason="x", by=TESTS, now=NOW)
        standing = self.stand(patient)
        assert standing.state == DataState.STALE
        assert "failed" in standing.reason


@pytest.mark.django_db
class TestEnding:
    def test_stored_once_with_its_audit_event(self) -> None:
        patient, version = make_patient(), make_version()
        scored = score_by_hand(patient, version)
        prediction = scored.predictions.get()
        assert (scored.status, prediction.risk, prediction.category) == (AssessmentStatus.FINAL, 0.3, "high")
        assert AuditEvent.objects.filter(action="assessment.finalise", patient_id=patient.pk).count() == 1
        assert LiveEvent.objects.filter(kind="assessment", patient_id=patient.pk).count() == 2
        assert OutboxMessage.objects.filter(job=Job.EXPLAIN.value).count() == 1

    def test_a_slow_worker_stores_nothing_once_another_holds_the_work(self) -> None:
        patient, version = make_patient(), make_version()
        slow = leases.claim(RiskAssessment, assessing.request(patient, version, by=TESTS, now=NOW).pk)
        assert slow is not None
        RiskAssessment.objects.filter(pk=slow.pk).update(lease_until=timezone.now() - HOUR)
        quick = leases.claim(RiskAssessment, slow.pk)
        assert quick is not None
        with pytest.raises(leases.LeaseLost):
            assessing.finalise(slow, result(), by=TESTS, now=NOW)
        assert not slow.predictions.exists()
        assessing.finalise(quick, result(), by=TESTS, now=NOW)
        assert slow.predictions.count() == 1

    def test_given_up_by_the_sweeper_it_is_cancelled_and_told(self) -> None:
        asked = assessing.request(make_patient(), make_version(), by=TESTS, now=NOW)
        RiskAssessment.objects.filter(pk=asked.pk).update(
            work_state=WorkState.RUNNING, starts=3, lease_owner="dead", lease_until=NOW - HOUR
        )
        leases.sweep(timezone.now())
        asked.refresh_from_db()
        assert (asked.work_state, asked.status) == (WorkState.FAILED, AssessmentStatus.CANCELLED)
        assert "stopped" in asked.failure
        assert LiveEvent.objects.filter(kind="assessment", subject=str(asked.pk)).exists()


@pytest.mark.django_db(transaction=True)
def test_current_waits_for_the_fresh_score_within_its_budget() -> None:
    patient, version = make_patient(), make_version()

    def answer() -> None:
        try:
            for _ in range(200):
                claimed = leases.claim(RiskAssessment, getattr(RiskAssessment.objects.first(), "pk", None))
                if claimed is not None:
                    assessing.finalise(claimed, result(), by=TESTS, now=now)
                    return
                time.sleep(0.01)
        finally:
            connection.close()

    now = timezone.now()
    worker = threading.Thread(target=answer)
    worker.start()
    [standing] = assessing.current(patient, by=TESTS, now=now, wait_s=5.0)
    worker.join()
    assert standing.state == DataState.CURRENT
    assert standing.version == version


@pytest.mark.django_db(transaction=True)
def test_current_gives_up_in_time_and_says_not_yet_known() -> None:
    patient = make_patient()
    make_version()
    started = time.monotonic()
    [standing] = assessing.current(patient, by=TESTS, now=timezone.now(), wait_s=0.2)
    assert 0.2 <= time.monotonic() - started < 1.0
    assert (standing.state, standing.assessment) == (DataState.UPDATING, None)
    assert OutboxMessage.objects.filter(job=Job.SCORE.value).count() == 1


@pytest.mark.django_db
def test_refreshing_asks_for_what_is_missing_changed_or_old() -> None:
    version = make_version()
    fresh, changed, old, new = make_patient(), make_patient(), make_patient(), make_patient()
    score_by_hand(fresh, version, now=NOW)
    score_by_hand(changed, version, now=NOW)
    importing.touch(changed, NOW)
    score_by_hand(old, version, now=NOW - 3 * HOUR)
    counts = refreshing.refresh_stale(now=NOW + timedelta(minutes=5))
    assert counts["asked"] == 3
    asked = RiskAssessment.objects.filter(work_state=WorkState.QUEUED).values_list("patient", flat=True)
    assert set(asked) == {changed.pk, old.pk, new.pk}
    assert refreshing.refresh_stale(now=NOW + timedelta(minutes=10))["asked"] >= 0
    assert RiskAssessment.objects.filter(work_state=WorkState.QUEUED).count() == 3


@pytest.mark.django_db
def test_lost_heat_maps_are_asked_for_again() -> None:
    score_by_hand(make_patient(), make_version(), now=NOW)
    before = OutboxMessage.objects.filter(job=Job.EXPLAIN.value).count()
    assert refreshing.refresh_stale(now=NOW + timedelta(minutes=10))["explained"] == 1
    assert OutboxMessage.objects.filter(job=Job.EXPLAIN.value).count() == before + 1
