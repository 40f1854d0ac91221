"""How a version stands for a patient: from when, whether at all, and what its last number is worth now. Rows
only, no torch, and nothing is asked for or changed; that is `risk.assessing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Max, Q, QuerySet

from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.registry.outcomes import (
    INTENSIVE_CARE,
    OUTCOMES,
    STAYS,
    Stay,
    is_past,
    reason_without_number,
    stays_of,
)
from cds.risk.models import AssessmentStatus, RiskAssessment
from cds.statements import Statement

OPEN = frozenset({"arrived", "triaged", "in-progress", "onleave"})  # Encounter.status of somebody who is here


class DataState(StrEnum):
    """What a number on a screen is worth right now (UI 3)."""

    CURRENT = "Current"
    UPDATING = "Updating"
    STALE = "Stale"
    PARTIAL = "Partial"
    ABSTAINED = "Abstained"
    FAILED = "Failed"
    NOT_ELIGIBLE = "Not eligible"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one version stands for one patient.

    assessment  the newest one that ended with a number (or abstained); None when there is none yet
    reason      why the state is not Current, in words for people; "" when it is
    """

    version: ModelVersion
    assessment: RiskAssessment | None
    state: DataState
    reason: str = ""


# -- as of when, and for what --------------------------------------------------------------------------
def moment(patient: Patient, now: datetime, *, stays: Sequence[Stay] | None = None) -> tuple[datetime, bool]:
    """As of when a patient is assessed, and whether that lies in the past.

    In hospital, or without any stay: now. After a finished stay (or after death): the latest study or
    observation of that stay, before intensive care began, so that the past is judged as it was then.

    stays  `stays_of(patient)`, where it is known already
    """
    begun = [
        (one.start, one)
        for one in (stays_of(patient) if stays is None else stays)
        if one.start is not None and one.start <= now
    ]
    stay = max(begun, key=lambda pair: pair[0])[1] if begun else None
    died_at = patient.deceased_at if patient.deceased_at is not None and patient.deceased_at <= now else None
    is_open = stay is not None and (stay.end > now if stay.end is not None else stay.status in OPEN)
    if died_at is None and (stay is None or is_open):
        return now, False
    since, until = None, died_at or now
    if stay is not None and stay.start is not None:
        parent = _whole_stay(patient, stay.start)
        since = parent[0]
        until = min(until, parent[1] or until)
        intensive = patient.encounters.filter(kind=INTENSIVE_CARE, start__gt=since, start__lte=until)
        first = intensive.order_by("start").first()
        if first is not None and first.start is not None:
            until = first.start - timedelta(seconds=1)
    studies = patient.studies.filter(started_at__lte=until)
    seen = patient.observations.filter(effective_at__lte=until, available_at__lte=until)
    if since is not None:
        studies, seen = studies.filter(started_at__gte=since), seen.filter(effective_at__gte=since)
    latest = (
        studies.aggregate(at=Max("started_at"))["at"],
        seen.aggregate(at=Max("available_at"))["at"],
    )
    return max((at for at in latest if at is not None), default=until), True


def _whole_stay(patient: Patient, start: datetime) -> tuple[datetime, datetime | None]:
    """Start and end of the stay an Encounter belongs to: intensive care lies within a longer stay."""
    around = patient.encounters.filter(kind__in=STAYS, start__lte=start).filter(
        Q(end__gte=start) | Q(end=None)
    )
    rows = [(row.start, row.end) for row in around if row.start is not None]
    begun = min((row[0] for row in rows), default=start)
    ends = [row[1] for row in rows if row[1] is not None]
    return begun, max(ends, default=None)


def not_eligible(
    patient: Patient,
    version: ModelVersion,
    as_of: datetime,
    *,
    stays: Sequence[Stay] | None = None,
) -> str:
    """Why this version has nothing to say about this patient at all, or ""."""
    if scored_outcomes(patient, version.outcomes, as_of, stays=stays):
        return ""
    return "; ".join(dict.fromkeys(reason_without_number(name) for name in version.outcomes))


def scored_outcomes(
    patient: Patient,
    outcomes: Sequence[str],
    as_of: datetime,
    *,
    stays: Sequence[Stay] | None = None,
) -> list[str]:
    """The outcomes the patient is still at risk of at `as_of`; of one that is not known here everybody is."""
    known = [OUTCOMES[name] for name in outcomes if name in OUTCOMES]
    if all(one.at_risk.is_past is None for one in known):
        return list(outcomes)
    stays = stays_of(patient) if stays is None else stays
    past = {one.name for one in known if is_past(one, stays, as_of)}
    return [name for name in outcomes if name not in past]


# -- reading rows --------------------------------------------------------------------------------------
_LATEST = 8  # rows looked at before the newest finished one is asked for by itself
_HEAVY = ("basis", "frame_weights", "milliseconds")  # of an assessment; no card needs them
_LIGHT = tuple(field.attname for field in RiskAssessment._meta.concrete_fields if field.attname not in _HEAVY)


def newest_first(patient: Any, version: Any) -> QuerySet[RiskAssessment]:
    """Every assessment of a patient by a version; of rows, their keys, or references of an outer query."""
    asked = RiskAssessment.objects.filter(patient=patient, version=version)
    return asked.order_by("-revision", "-queued_at")


_BY = ("pk", "revision", "as_of", "status", "work_state")  # what tells how an assessment stands
_latest = Statement(lambda patient, version: newest_first(patient, version).values_list(*_BY)[:_LATEST])


def _latest_light(patient: Patient, version: ModelVersion) -> list[RiskAssessment]:
    """The newest assessments, each without what is heavy; one that has ended is read once."""
    found = []
    for row in _latest.rows(patient=patient.pk, version=version.pk):
        about = dict(zip(_BY, row, strict=True))
        match about["work_state"]:
            case WorkState.DONE:
                found.append(_ended(about["pk"]))
            case WorkState.FAILED:
                found.append(RiskAssessment.objects.only(*_LIGHT).get(pk=about["pk"]))
            case _:
                found.append(RiskAssessment(**about))
    return found


class _NotEnded(Exception):
    """The assessment is still being computed, or has failed and may be tried again."""


@lru_cache(maxsize=1024)
def _ended(pk: UUID) -> RiskAssessment:
    """An assessment that has ended with an answer: from then on it is never changed. Raises _NotEnded."""
    found = RiskAssessment.objects.only(*_LIGHT).filter(pk=pk, work_state=WorkState.DONE).first()
    if found is None:
        raise _NotEnded
    return found


def recall(patient: Patient, version: ModelVersion, newest: UUID, *, now: datetime) -> Standing | None:
    """How a version stands where it says nothing about the patient, or where the newest assessment has ended;
    None where that is still to be computed.

    newest  its key, as `newest_first` has just told
    """
    if (standing := _not_eligible(patient, version, now=now)) is not None:
        return standing
    try:
        done = _ended(newest)
    except _NotEnded:
        return None
    return standing_of(version, done, done, revision=patient.revision, now=now)


@lru_cache(maxsize=1024)
def _stays_at(patient_id: UUID, revision: int) -> tuple[Stay, ...]:
    """`stays_of` a patient: whatever changes a stay raises the revision, so they are read once for each."""
    return tuple(stays_of(Patient(pk=patient_id, revision=revision)))


def stays_now(patient: Patient) -> tuple[Stay, ...]:
    """`stays_of` a patient whose row has just been read; within a transaction they are read anew, for its
    revision may be one that is never committed."""
    return tuple(stays_of(patient)) if connection.in_atomic_block else _stays_at(patient.pk, patient.revision)


def stand(patient: Patient, version: ModelVersion, *, now: datetime, is_light: bool = False) -> Standing:
    """How a version stands, from the rows alone; asks for nothing.

    is_light  without reading what only the panel shows of an assessment: its basis and its frame weights
    """
    if (standing := _not_eligible(patient, version, now=now)) is not None:
        return standing
    latest = _latest_light(patient, version) if is_light else list(newest_first(patient, version)[:_LATEST])
    ended = [row for row in latest if row.work_state == WorkState.DONE]
    done = max(ended, key=lambda row: (row.revision, row.as_of), default=None)
    if done is None and len(latest) == _LATEST:
        ended_before = newest_first(patient, version).filter(work_state=WorkState.DONE)
        done = ended_before.order_by("-revision", "-as_of").first()
    newest = latest[0] if latest else None
    return standing_of(version, done, newest, revision=patient.revision, now=now)


def _not_eligible(patient: Patient, version: ModelVersion, *, now: datetime) -> Standing | None:
    """The standing of a version that says nothing about this patient now; None where it does."""
    stays = stays_now(patient)
    as_of, _ = moment(patient, now, stays=stays)
    reason = not_eligible(patient, version, as_of, stays=stays)
    return Standing(version, None, DataState.NOT_ELIGIBLE, reason) if reason else None


def standing_of(
    version: ModelVersion,
    done: RiskAssessment | None,
    newest: RiskAssessment | None,
    *,
    revision: int,
    now: datetime,
) -> Standing:
    """The rule of freshness (UI 3), in one place.

    done      the newest assessment that ended with an answer
    newest    the newest of all
    revision  of the patient's record now
    """
    asked = newest is not None and newest.work_state in (WorkState.QUEUED, WorkState.RUNNING)
    failed = newest is not None and newest.work_state == WorkState.FAILED
    if done is None:
        if failed and newest is not None:
            return Standing(version, None, DataState.FAILED, newest.failure)
        return Standing(
            version,
            None,
            DataState.UPDATING,
            "not yet known: the first score of this model is being computed",
        )
    interval = timedelta(seconds=settings.SCORE_INTERVAL_S)
    age = timedelta(0) if done.retrospective else now - done.as_of
    if done.revision < revision:
        after = (
            "a fresh score failed"
            if failed
            else "a fresh score is being computed"
            if asked
            else "not yet rescored"
        )
        return Standing(version, done, DataState.STALE, f"newer data have arrived; {after}")
    if age > 2 * interval:
        return Standing(version, done, DataState.STALE, f"older than {_in_words(2 * interval)}")
    if done.status == AssessmentStatus.CANCELLED:
        return Standing(version, done, DataState.ABSTAINED, done.abstained)
    if done.status == AssessmentStatus.PRELIMINARY:
        return Standing(version, done, DataState.PARTIAL, f"still being read: {', '.join(done.pending)}")
    if age > interval:
        return Standing(version, done, DataState.UPDATING, f"older than {_in_words(interval)}")
    if done.left_out:
        return Standing(version, done, DataState.PARTIAL, left_out_in_words(done))
    return Standing(version, done, DataState.CURRENT)


def left_out_in_words(assessment: RiskAssessment) -> str:
    """Which pictures a score does without, and why; "" when it does without none."""
    reasons = sorted(set(assessment.left_out.values()))
    if not reasons:
        return ""
    some = "a picture was" if len(assessment.left_out) == 1 else f"{len(assessment.left_out)} pictures were"
    return f"{some} left out as out of scope: {'; '.join(reasons)}"


def _in_words(span: timedelta) -> str:
    minutes = int(span.total_seconds() // 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
