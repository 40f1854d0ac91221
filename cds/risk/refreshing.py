"""Keeping scores fresh without anybody asking: after changes, after a promotion, and every few minutes."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Count, F, OuterRef, Q, Subquery

from cds.audit import recording
from cds.jobs import Job, outbox
from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.registry import queries as registry_queries
from cds.risk import assessing
from cds.risk.models import AssessmentStatus, RiskAssessment
from cds.risk.standing import moment, not_eligible

SYSTEM = recording.system("refresh")
BATCH = 500  # patients a tick and version
EXPLAIN_AFTER, EXPLAIN_UNTIL = timedelta(minutes=2), timedelta(hours=1)


def assess(patient_id: UUID | str, *, now: datetime) -> int:
    """Fresh scores for one patient whose record has changed. Returns how many were asked for."""
    patient = Patient.objects.filter(pk=patient_id).first()
    return len(assessing.request_all(patient, by=SYSTEM, now=now)) if patient is not None else 0


def assess_all(*, now: datetime) -> int:
    """Fresh scores for everybody: another model answers from now on."""
    return sum(
        len(assessing.request_all(patient, by=SYSTEM, now=now))
        for patient in Patient.objects.filter(merged_into=None).order_by("-changed_at").iterator(500)
    )


def refresh_stale(*, now: datetime) -> dict[str, int]:
    """Ask for scores that are missing, of an older record, or too old; and for heat maps that were lost."""
    counts = {"asked": 0, "explained": 0}
    for version in registry_queries.active_versions():
        newest = RiskAssessment.objects.filter(patient=OuterRef("pk"), version=version).order_by(
            "-revision", "-as_of"
        )
        due = (
            Patient.objects.filter(merged_into=None)
            .annotate(
                held=Subquery(newest.values("revision")[:1]),
                held_as_of=Subquery(newest.values("as_of")[:1]),
                held_retrospective=Subquery(newest.values("retrospective")[:1]),
            )
            .filter(
                Q(held=None)
                | Q(held__lt=F("revision"))
                | Q(
                    held_retrospective=False,
                    held_as_of__lt=now - timedelta(seconds=settings.SCORE_INTERVAL_S),
                )
            )
        )
        for patient in due.order_by("-changed_at")[:BATCH]:
            if not not_eligible(patient, version, moment(patient, now)[0]):
                assessing.request(patient, version, by=SYSTEM, now=now)
                counts["asked"] += 1
    counts["explained"] = _explain_lost(now)
    return counts


def _explain_lost(now: datetime) -> int:
    """A worker killed while drawing heat maps leaves none; the score stands, so ask for them again."""
    lost = (
        RiskAssessment.objects.filter(
            work_state=WorkState.DONE,
            status__in=[AssessmentStatus.FINAL, AssessmentStatus.PRELIMINARY],
            finished_at__range=(now - EXPLAIN_UNTIL, now - EXPLAIN_AFTER),
        )
        .annotate(maps=Count("predictions__heat_maps"))
        .filter(maps=0)
        .order_by("-finished_at")
    )
    asked = 0
    for assessment in lost[:BATCH]:
        if "image" in assessment.present:
            with transaction.atomic():
                outbox.enqueue(Job.EXPLAIN, now=now, assessment_id=str(assessment.pk))
            asked += 1
    return asked
