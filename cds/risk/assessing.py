"""Asking for risks and ending them: states and rows only, no torch. The arithmetic is `risk.scoring`; what an
answer is worth now is `risk.standing`.

    registered → preliminary | final      computed; preliminary while a modality is still being encoded
               → cancelled                abstained, failed with its reason, or overtaken by newer data

Asking twice is harmless: one row per patient, version, revision of the record and window of time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction

from cds.audit import recording
from cds.errors import Conflict
from cds.jobs import Job, leases, outbox
from cds.jobs.models import WorkState
from cds.patients import access
from cds.patients.models import Patient
from cds.registry import queries as registry_queries
from cds.registry.models import ModelVersion
from cds.risk import thresholds
from cds.risk.models import AssessmentStatus, RiskAssessment, RiskPrediction
from cds.risk.standing import (
    DataState,
    Standing,
    moment,
    newest_first,
    not_eligible,
    recall,
    stand,
    stays_now,
)
from cds.statements import Insertion, Statement

FIRST_POLL_S, POLL_S = 0.02, 0.01  # no worker answers within the first
SLOWER = 0.15  # of what was waited already: who has waited long is told a little later, and asks less often
_assessments, _predictions = Insertion(RiskAssessment), Insertion(RiskPrediction)


@dataclass(frozen=True, slots=True)
class Result:
    """What scoring found, as plain data.

    predictions  fusion.OutcomePrediction as JSON, one per outcome
    """

    predictions: Sequence[Mapping[str, Any]]
    inputs_digest: str
    data_until: datetime | None
    present: Sequence[str]
    missing: Sequence[str]
    pending: Sequence[str]
    missing_fields: Sequence[str]
    basis: Sequence[Mapping[str, str]]
    abstained: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)  # pixels digest → why it was not used
    frame_weights: Mapping[str, Any] = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)


# -- asking ------------------------------------------------------------------------------------------
def key_of(patient: Patient, version: ModelVersion, *, now: datetime) -> tuple[str, datetime, bool]:
    """The idempotency key, with the moment it stands for."""
    as_of, retrospective = moment(patient, now, stays=stays_now(patient))
    window = (
        as_of.astimezone(UTC).isoformat()
        if retrospective
        else str(int(now.timestamp() // settings.SCORE_INTERVAL_S))
    )
    said = f"{patient.pk}|{version.pk}|{patient.revision}|{window}"
    return hashlib.sha256(said.encode()).hexdigest(), as_of, retrospective


def request(patient: Patient, version: ModelVersion, *, by: recording.Actor, now: datetime) -> RiskAssessment:
    """Ask for a score of the record as it is now; the same question again returns the same row."""
    key, as_of, retrospective = key_of(patient, version, now=now)
    assessment = RiskAssessment(
        key=key,
        patient=patient,
        version=version,
        as_of=as_of,
        retrospective=retrospective,
        revision=patient.revision,
        queued_at=now,
        requested_by=by.name[:150],
    )
    with transaction.atomic():
        if not _assessments.insert(assessment, unless_there=True):
            return RiskAssessment.objects.get(key=key)
        leases.queue(assessment, now=now)
        outbox.tell("assessment", assessment.pk, now=now, patient_id=patient.pk)
        _record("assessment.request", assessment, by=by, now=now)
    return assessment


def request_all(patient: Patient, *, by: recording.Actor, now: datetime) -> list[RiskAssessment]:
    """Ask every active version for a fresh score, because something about the patient has changed."""
    patient.refresh_from_db(fields=["revision", "deceased_at", "deceased"])
    return [
        request(patient, version, by=by, now=now)
        for version in registry_queries.active_versions()
        if not not_eligible(patient, version, moment(patient, now)[0])
    ]


def retry(
    assessment: RiskAssessment, *, by: recording.Actor, user: User | None, now: datetime
) -> RiskAssessment:
    """Queue a failed score again, from "Try again"."""
    if user is not None:
        access.check_run_score(user)
    with transaction.atomic():
        failed = RiskAssessment.objects.filter(pk=assessment.pk, work_state=WorkState.FAILED)
        if not failed.update(
            work_state=WorkState.QUEUED,
            status=AssessmentStatus.REGISTERED,
            starts=0,
            failure="",
            finished_at=None,
            queued_at=now,
        ):
            raise Conflict("only a failed score can be tried again")
        assessment.refresh_from_db()
        leases.queue(assessment, now=now)
        outbox.tell("assessment", assessment.pk, now=now, patient_id=assessment.patient_id)
        _record("assessment.retry", assessment, by=by, now=now)
    return assessment


# -- looking -----------------------------------------------------------------------------------------
def current(patient: Patient, *, by: recording.Actor, now: datetime, wait_s: float = 0.0) -> list[Standing]:
    """The freshest standing per active version, asking for a new score where there is none for this record.

    Waits up to `wait_s` for scores asked for (call it outside a transaction then); what is not ready in time
    comes back as the last number marked Stale, or as Updating without a number. Never an old one as Current.
    """
    patient.refresh_from_db(fields=["revision", "deceased_at", "deceased"])
    return current_of(patient, registry_queries.active_versions(), by=by, now=now, wait_s=wait_s)


def current_of(
    patient: Patient,
    versions: Sequence[ModelVersion],
    *,
    by: recording.Actor,
    now: datetime,
    wait_s: float = 0.0,
    place: AbstractContextManager[bool] | None = None,
) -> list[Standing]:
    """The same for these versions, of a patient whose row has just been read.

    place  entered where there is something to wait for; where it says False, nothing is waited for
    """
    deadline = time.monotonic() + wait_s
    found = {version.pk: stand(patient, version, now=now, is_light=True) for version in versions}
    unsettled = [version for version in versions if found[version.pk].state not in _SETTLED]
    if not unsettled:
        return [found[version.pk] for version in versions]
    asked = [request(patient, version, by=by, now=now).pk for version in unsettled]
    if wait_s > 0:
        with nullcontext(True) if place is None else place as may_wait:
            if may_wait:
                _wait_for(asked, deadline, wait_s)
    found |= {version.pk: stand(patient, version, now=now, is_light=True) for version in unsettled}
    return [found[version.pk] for version in versions]


def _wait_for(asked: Sequence[UUID], deadline: float, wait_s: float) -> None:
    """Until none of these is open, or the time is over."""
    pause = FIRST_POLL_S
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        if not any(_open.row(pk=pk) for pk in asked):
            break
        pause = max(POLL_S, SLOWER * (wait_s - left))


def current_one(
    patient: Patient,
    version: ModelVersion,
    *,
    newest: UUID | None,
    by: recording.Actor,
    now: datetime,
    wait_s: float = 0.0,
    place: AbstractContextManager[bool] | None = None,
) -> Standing:
    """The same for one version. `newest`: the key of the newest assessment (`newest_first`), just read; where
    that one has ended and answers, nothing more is asked of the database."""
    if newest is not None:
        recalled = recall(patient, version, newest, now=now)
        if recalled is not None and recalled.state in _SETTLED:
            return recalled
    (standing,) = current_of(patient, [version], by=by, now=now, wait_s=wait_s, place=place)
    return standing


_SETTLED = frozenset({DataState.CURRENT, DataState.PARTIAL, DataState.ABSTAINED, DataState.NOT_ELIGIBLE})
_open = Statement(
    lambda pk: RiskAssessment.objects.filter(
        pk=pk, work_state__in=[WorkState.QUEUED, WorkState.RUNNING]
    ).values_list("pk")
)


_newer = Statement(
    lambda patient, version, revision: (
        newest_first(patient, version)
        .filter(revision__gt=revision, work_state__in=[WorkState.QUEUED, WorkState.RUNNING, WorkState.DONE])
        .values_list("pk")[:1]
    )
)


# -- ending ------------------------------------------------------------------------------------------
def finalise(assessment: RiskAssessment, result: Result, *, by: recording.Actor, now: datetime) -> None:
    """Store the answer and end the work, together with its audit event. Raises LeaseLost, storing nothing."""
    with transaction.atomic():
        if result.abstained:
            status = AssessmentStatus.CANCELLED
        else:
            status = AssessmentStatus.PRELIMINARY if result.pending else AssessmentStatus.FINAL
        leases.finish(  # first: it locks the row, and where it is no longer ours nothing is stored
            assessment,
            now=now,
            status=status,
            inputs_digest=result.inputs_digest,
            data_until=result.data_until,
            present=list(result.present),
            missing=list(result.missing),
            pending=list(result.pending),
            missing_fields=list(result.missing_fields),
            basis=list(result.basis),
            abstained=result.abstained[:300],
            left_out=dict(result.left_out),
            frame_weights=dict(result.frame_weights),
            milliseconds=dict(result.milliseconds),
        )
        if not result.abstained:
            for one in result.predictions:
                _predictions.insert(_prediction(assessment, one))
        outbox.tell("assessment", assessment.pk, now=now, patient_id=assessment.patient_id)
        if "image" in result.present and not result.abstained:
            outbox.enqueue(Job.EXPLAIN, now=now, assessment_id=str(assessment.pk))
        _record("assessment.finalise", assessment, by=by, now=now, status=assessment.status)


def fail(assessment: RiskAssessment, *, reason: str, by: recording.Actor, now: datetime) -> None:
    """End for good: trying again would fail again. The reason is shown beside the patient."""
    with transaction.atomic():
        leases.finish(
            assessment,
            now=now,
            state=WorkState.FAILED,
            failure=reason,
            status=AssessmentStatus.CANCELLED,
        )
        outbox.tell("assessment", assessment.pk, now=now, patient_id=assessment.patient_id)
        _record("assessment.fail", assessment, by=by, now=now, outcome="failed")


def overtaking(assessment: RiskAssessment) -> RiskAssessment | None:
    """The newest request of the same version for a newer state of the patient's record; None without any."""
    found = _newer.row(
        patient=assessment.patient_id, version=assessment.version_id, revision=assessment.revision
    )
    return None if found is None else RiskAssessment.objects.get(pk=found[0])


def give_up(assessment: RiskAssessment, *, by: recording.Actor, now: datetime) -> None:
    """End what newer data have overtaken: the newer request is answered instead. Raises LeaseLost."""
    with transaction.atomic():
        leases.finish(
            assessment,
            now=now,
            state=WorkState.CANCELLED,
            failure="newer data arrived before it was computed",
            status=AssessmentStatus.CANCELLED,
        )
        _record("assessment.overtaken", assessment, by=by, now=now)


def _prediction(assessment: RiskAssessment, said: Mapping[str, Any]) -> RiskPrediction:
    return RiskPrediction(
        assessment=assessment,
        outcome=said["outcome"],
        label=said["label"],
        horizon_hours=said["horizon_hours"],
        risk=said["risk"],
        low=said["low"],
        high=said["high"],
        level=said["level"],
        base_rate=said["base_rate"],
        category=thresholds.category_of(said["outcome"], said["risk"]).value,
        explanation=dict(said),
    )


def _record(
    action: str,
    assessment: RiskAssessment,
    *,
    by: recording.Actor,
    now: datetime,
    outcome: str = "success",
    **detail: str,
) -> None:
    recording.record(
        by=by,
        action=action,
        object_type="RiskAssessment",
        object_id=assessment.pk,
        patient_id=assessment.patient_id,
        now=now,
        outcome=outcome,
        version=str(assessment.version_id),
        **detail,
    )
