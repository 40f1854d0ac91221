"""The third path, end to end: a run in a real worker, a candidate, two people, new scores for everybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.utils import timezone

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import NotAllowed
from cds.jobs import Queue
from cds.jobs.models import LiveEvent, WorkState
from cds.patients.models import Patient
from cds.registry import promoting, queries, runs
from cds.registry.models import ModelVersion, Stage
from cds.risk.models import AssessmentStatus, RiskAssessment
from tests.cds.registry import ward
from tests.factories import make_user
from tests.flows import workers

ENDED = (WorkState.DONE, WorkState.FAILED, WorkState.CANCELLED)


@pytest.mark.django_db(transaction=True)
def test_from_request_to_scores_by_the_new_model(tmp_path: Path) -> None:
    ward.fill()
    admin, approver = make_user("admin"), make_user("admin", "approver")
    by_admin, by_approver = recording.person(admin), recording.person(approver)
    with workers.running(tmp_path, Queue.TRAIN, Queue.INTERACTIVE, Queue.BATCH):
        run = runs.start(
            outcomes=["icu-admission"], config=ward.TINY, by=by_admin, user=admin, now=timezone.now()
        )
        workers.wait_until(lambda: queries.get_run(run.pk).work_state in ENDED, seconds=150)
        run = queries.get_run(run.pk)
        assert (run.work_state, run.failure) == (WorkState.DONE, "")
        assert LiveEvent.objects.filter(kind="run", subject=str(run.pk)).count() > 5
        version = run.version
        assert version.stage == Stage.CANDIDATE
        assert queries.active_versions() == []  # only people promote

        promotion = promoting.request(
            version, reason="first model", by=by_approver, user=approver, now=timezone.now()
        )
        with pytest.raises(NotAllowed):
            promoting.approve(promotion, by=by_approver, user=approver, now=timezone.now())
        promoting.reject(promotion, by=by_approver, user=approver, now=timezone.now())
        promotion = promoting.request(
            version, reason="first model", by=by_admin, user=admin, now=timezone.now()
        )
        promoting.approve(promotion, by=by_approver, user=approver, now=timezone.now())

        def everybody_is_scored() -> bool:
            done = RiskAssessment.objects.filter(version=version, work_state=WorkState.DONE)
            return done.values("patient").distinct().count() == Patient.objects.count()

        workers.wait_until(everybody_is_scored, seconds=60)

    assert ModelVersion.objects.count() == 1
    finals = RiskAssessment.objects.filter(status=AssessmentStatus.FINAL)
    assert finals.exists()
    for assessment in finals:
        assert assessment.predictions.count() == 1
        assert assessment.inputs_digest
    refused = AuditEvent.objects.get(action="promotion.approve", outcome="refused")
    assert refused.actor == f"user:{approver.pk}"
    assert all(not chain.problems for chain in recording.verify())
