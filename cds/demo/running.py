"""What the demo does after its processes stand: the doors of a hospital, in a hospital's order.

Every step looks at what is there first, so that running it again makes no second copy of anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from django.db.models import QuerySet
from django.utils import timezone

from cds import ingesting
from cds.audit import recording
from cds.demo.accounts import get_account
from cds.jobs.models import WorkState
from cds.patients import access, importing
from cds.patients.models import Note, Patient, Source
from cds.registry import cohorts, outcomes, promoting, queries, runs
from cds.registry.models import ActiveModel, ModelVersion, Promotion, Stage, TrainingRun
from cds.risk import assessing
from cds.risk.models import RiskAssessment
from cds.risk.standing import DataState, stand
from cds.studies.models import Embedding, Encoding
from cds.taking import Tally

Report = Callable[[float, float, str], None]  # done, of how much, what

BY = recording.system("demo")
SOURCE = "demo"
NOTE = "Automatic demonstration on simulated data"
REASON = (
    "Automatic demonstration on simulated data: both accounts belong to `manage.py demo`; "
    "no person has reviewed this model."
)
STUCK_AFTER_S = 180.0
OPEN = (WorkState.QUEUED, WorkState.RUNNING)


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


def get_source(now: datetime) -> Source:
    """The simulated hospital."""
    return importing.get_source(SOURCE, title="Simulated hospital", simulated=True, now=now)


def ingest(folder: Path, kind: str, *, source: Source, report: Report) -> Tally:
    """Send folder/fhir or folder/dicom through the door of `manage.py ingest`."""

    def progress(what: str, done: int, total: int | None) -> None:
        report(done, total or 0, what.lower())

    take = ingesting.ingest_fhir if kind == "fhir" else ingesting.ingest_dicom
    tally = take(folder / kind, source=source, by=BY, now=timezone.now(), progress=progress)
    if tally.refused:
        first = tally.refused[0]
        raise DemoError(
            f"{tally.all_refused} simulated items were refused, first {first.where}: {first.reason}"
        )
    ingesting.request_scores(tally, by=BY, now=timezone.now())
    return tally


def wait_for_encoding(source: Source, *, report: Report) -> None:
    """Wait until every picture and note has its embeddings."""
    work = Encoding.objects.filter(study__patient__source=source)
    notes = set(Note.objects.filter(patient__source=source).values_list("text_digest", flat=True))
    total = work.count() + len(notes)
    patience = _Patience("encoding pictures and notes")
    while True:
        held = Embedding.objects.filter(subject__in=notes).values("subject").distinct().count()
        waiting = work.filter(work_state__in=OPEN).count() + len(notes) - held
        report(total - waiting, total, "pictures and notes")
        if not waiting:
            break
        patience.wait(waiting)
    failed = work.filter(work_state=WorkState.FAILED).first()
    if failed is not None:
        raise DemoError(
            f"{work.filter(work_state=WorkState.FAILED).count()} studies failed: {failed.failure}"
        )


def train(source: Source, *, report: Report) -> ModelVersion | None:
    """Train a model for every outcome the cohort can teach; None when one is active already."""
    now = timezone.now()
    if ActiveModel.objects.exists():
        return None
    held = TrainingRun.objects.filter(note=NOTE)
    trained = ModelVersion.objects.filter(run__in=held, stage=Stage.CANDIDATE).order_by("-created_at").first()
    if trained is not None:
        return trained
    run = held.filter(work_state__in=OPEN).first() or _start_run(source, now)
    patience = _Patience("training")
    while run.work_state in OPEN:
        report(run.fraction, 1.0, run.step)
        patience.wait((run.step, run.fraction))
        run.refresh_from_db()
    if run.work_state != WorkState.DONE:
        raise DemoError(f"training {run.work_state}: {run.failure or run.step}")
    return ModelVersion.objects.get(run=run)


def promote(version: ModelVersion) -> None:
    """Let the demo's two accounts promote the model, saying so."""
    now = timezone.now()
    admin, approver = get_account(access.Role.ADMIN), get_account(access.Role.APPROVER)
    promotion = Promotion.objects.filter(version=version, approved=None).first()
    if promotion is None:
        by = recording.person(admin)
        promotion = promoting.request(version, reason=REASON, by=by, user=admin, now=now)
    promoting.approve(promotion, by=recording.person(approver), user=approver, now=now)


def score_everyone(source: Source, *, report: Report) -> QuerySet[RiskAssessment]:
    """Ask for a score of every patient who has no fresh one, and wait until all are stored."""
    mine = RiskAssessment.objects.filter(patient__source=source)
    stale = (DataState.UPDATING, DataState.STALE)
    patients = list(Patient.objects.filter(source=source).order_by("-changed_at"))
    for done, patient in enumerate(patients, 1):
        now = timezone.now()
        for version in queries.active_versions():
            is_asked = mine.filter(patient=patient, version=version, work_state__in=OPEN).exists()
            if not is_asked and stand(patient, version, now=now).state in stale:
                assessing.request(patient, version, by=BY, now=now)
        report(done / 4, len(patients), "scores asked for")
    patience = _Patience("scoring")
    while waiting := mine.filter(work_state__in=OPEN).count():
        report(max(len(patients) - waiting, len(patients) / 4), len(patients), "scores stored")
        patience.wait(waiting)
    failed = mine.filter(work_state=WorkState.FAILED).first()
    if failed is not None:
        raise DemoError(f"{mine.filter(work_state=WorkState.FAILED).count()} scores failed: {failed.failure}")
    return mine


def _start_run(source: Source, now: datetime) -> TrainingRun:
    names = sorted(outcomes.OUTCOMES)
    preview = cohorts.preview(outcomes=names, sources=[source.slug], now=now)
    learnable = [counts.outcome for counts in preview.outcomes if not counts.problem]
    if not learnable:
        raise DemoError(
            f"{preview.patients} patients are too few to learn from ({'; '.join(preview.problems)}). "
            "Start again with more: manage.py demo --patients 60"
        )
    return runs.start(outcomes=learnable, sources=[source.slug], note=NOTE, by=BY, user=None, now=now)


class _Patience:
    """Waits a little each time; DemoError when what is waited for has not moved for three minutes."""

    def __init__(self, what: str) -> None:
        self._what, self._last, self._since = what, object(), time.monotonic()

    def wait(self, state: object) -> None:
        """`state` is anything that changes while there is progress."""
        if state != self._last:
            self._last, self._since = state, time.monotonic()
        elif time.monotonic() - self._since > STUCK_AFTER_S:
            minutes = f"{STUCK_AFTER_S / 60:.0f} minutes"
            raise DemoError(f"{self._what} has not moved for {minutes}; see logs/ in the data directory")
        time.sleep(0.25)
