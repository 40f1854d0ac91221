"""Which documents a destination is to get: looked for every few seconds among what was made since last time.

Nothing of this stands in the way of a score. Results are found by when they were made (with some overlap, as
a transaction may commit late), and each becomes its documents once, whoever looks and however often.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F

from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.risk.models import AssessmentStatus, HeatMap, RiskAssessment, RiskPrediction
from cds.sending.models import Destination, DestinationKind, Document, DocumentKind
from cds.studies.models import Outline

OVERLAP = timedelta(minutes=2)
BATCH = 500
LOOK_AGAIN = timedelta(minutes=10)
NAMES = uuid.UUID("6a1d8d5e-2c53-5d37-8f0e-41b9f3a7c2d1")  # of the identities derived here
STATED = (AssessmentStatus.PRELIMINARY, AssessmentStatus.FINAL)


def compose_all(*, now: datetime) -> int:
    """For every active destination; returns how many documents are new."""
    return sum(compose(pk, now=now) for pk in _active())


@transaction.atomic
def compose(destination_id: uuid.UUID, *, now: datetime) -> int:
    """The documents of one destination for what was made since it was last looked at, BATCH at a time."""
    destination = Destination.objects.select_for_update(of=("self",)).get(pk=destination_id)
    since = max(destination.since, destination.looked_until - OVERLAP)
    if destination.kind == DestinationKind.FHIR:
        made, until = _assessments(destination, since, now)
    else:
        made, until = _results(destination, since, now)
    Destination.objects.filter(pk=destination.pk).update(looked_until=until)
    return made


def _active() -> list[uuid.UUID]:
    return list(Destination.objects.filter(is_active=True).order_by("slug").values_list("pk", flat=True))


# -- FHIR -------------------------------------------------------------------------------------------------
def _assessments(destination: Destination, since: datetime, now: datetime) -> tuple[int, datetime]:
    rows = (
        RiskAssessment.objects.filter(
            patient__source=destination.source_id,
            work_state=WorkState.DONE,
            status__in=STATED,
            finished_at__gte=since,
            finished_at__lte=now,
        )
        .select_related("version", "patient")
        .prefetch_related("predictions")
        .order_by("finished_at", "pk")[:BATCH]
    )
    made, until = 0, now
    found = list(rows)
    for assessment in found:
        for prediction in assessment.predictions.all():
            made += _say(destination, assessment, prediction, now=now)
    if len(found) == BATCH and found[-1].finished_at is not None:
        until = max(found[-1].finished_at, since + OVERLAP)  # the rest comes next time
    return made, until


def _say(
    destination: Destination, assessment: RiskAssessment, prediction: RiskPrediction, *, now: datetime
) -> int:
    """One prediction: nothing when it is known, older than what was said last, or says the same again.

    It is said by a RiskAssessment, or by a DiagnosticReport where the destination takes no other.

    A score that completes a preliminary one, or amends one of the same moment, takes over its identity: there
    it is updated, not doubled.
    """
    kind = _saying(destination)
    if destination.documents.filter(kind=kind, subject=str(prediction.pk)).exists():
        return 0
    digest = _digest(assessment, prediction)
    last = _last_said(destination, assessment, prediction)
    identity = uuid.uuid5(NAMES, f"{assessment.pk} {prediction.outcome}")
    if last is not None:
        before = RiskAssessment.objects.get(predictions__pk=int(last.subject))
        is_older = (assessment.as_of, assessment.revision) < (before.as_of, before.revision)
        if is_older or last.digest == digest:
            return 0
        completes = before.status == AssessmentStatus.PRELIMINARY or before.as_of == assessment.as_of
        if completes and before.version_id == assessment.version_id:
            identity = last.identity
    version, order = assessment.version, assessment.finished_at or now
    device = _add(destination, DocumentKind.DEVICE, version.pk, version.pk, order=version.created_at, now=now)
    patient = assessment.patient
    said = _add(
        destination, kind, prediction.pk, identity,
        patient=patient, needs=device, digest=digest, order=order, now=now,
    )  # fmt: skip
    for other in (DocumentKind.DIAGNOSTIC_REPORT, DocumentKind.PROVENANCE):
        if other.value in destination.document_kinds and other != kind:
            own = uuid.uuid5(identity, other.value)
            _add(destination, other, prediction.pk, own, patient=patient, needs=said, order=order, now=now)
    _supersede(said, now=now)
    return 1


def _saying(destination: Destination) -> DocumentKind:
    """What says the number there."""
    is_told = DocumentKind.RISK_ASSESSMENT.value in destination.document_kinds
    return DocumentKind.RISK_ASSESSMENT if is_told else DocumentKind.DIAGNOSTIC_REPORT


def _last_said(
    destination: Destination, assessment: RiskAssessment, prediction: RiskPrediction
) -> Document | None:
    """The document about this patient and outcome that was composed last."""
    earlier = RiskPrediction.objects.filter(
        assessment__patient=assessment.patient_id, outcome=prediction.outcome
    )
    subjects = [str(pk) for pk in earlier.order_by("-pk").values_list("pk", flat=True)[:200]]
    rows = destination.documents.filter(
        kind=_saying(destination), patient=assessment.patient_id, subject__in=subjects
    )
    return rows.exclude(work_state=WorkState.CANCELLED).order_by("-order", "-queued_at").first()


def _digest(assessment: RiskAssessment, prediction: RiskPrediction) -> str:
    """Of what a RiskAssessment says, apart from when."""
    said = [
        assessment.status, str(assessment.version_id), prediction.risk, prediction.low, prediction.high,
        prediction.category, assessment.present, assessment.missing, assessment.basis,
        prediction.explanation.get("summary", ""),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _supersede(said: Document, *, now: datetime) -> None:
    """What waits under the same identity need not be sent any more, nor what points to it."""
    older = Document.objects.filter(
        destination=said.destination_id, kind=said.kind, identity=said.identity, order__lt=said.order
    )
    waiting = list(older.filter(work_state=WorkState.QUEUED).values_list("pk", flat=True))
    for ended in (
        Document.objects.filter(pk__in=waiting),
        Document.objects.filter(needs__in=waiting, work_state=WorkState.QUEUED),
    ):
        ended.update(
            work_state=WorkState.CANCELLED, failure="a newer one took its place", finished_at=now, due_at=None
        )


# -- DICOM ------------------------------------------------------------------------------------------------
def _results(destination: Destination, since: datetime, now: datetime) -> tuple[int, datetime]:
    made = 0
    kinds = set(destination.document_kinds)
    drawn = list(
        Outline.objects.filter(
            series__study__source=destination.source_id, made_at__gte=since, made_at__lte=now
        )
        .filter(pixels_digest=F("series__pixels_digest"))
        .select_related("series__study__patient")
        .order_by("made_at", "pk")[:BATCH]
    )
    for outline in drawn:
        patient = outline.series.study.patient
        for kind in (DocumentKind.MEASUREMENTS, DocumentKind.OUTLINES):
            if kind.value in kinds:
                made += _once(destination, kind, outline.pk, patient, outline.made_at, now)
    maps: list[HeatMap] = []
    if DocumentKind.HEAT_MAP.value in kinds:
        maps = list(
            HeatMap.objects.filter(
                series__study__source=destination.source_id, created_at__gte=since, created_at__lte=now
            )
            .select_related("series__study__patient", "prediction__assessment")
            .order_by("created_at", "pk")[:BATCH]
        )
        for map_ in maps:
            if map_.sanity.get("passed") and not _shown_before(destination, map_):
                patient = map_.series.study.patient
                made += _once(destination, DocumentKind.HEAT_MAP, map_.pk, patient, map_.created_at, now)
    cut = [rows[-1] for rows in ([one.made_at for one in drawn], [one.created_at for one in maps])
           if len(rows) == BATCH]  # fmt: skip
    return made, max(min([now, *cut]), min(now, since + OVERLAP))


def _shown_before(destination: Destination, map_: HeatMap) -> bool:
    """One heat map for a picture, an outcome and a model: not one with every fresh score."""
    alike = HeatMap.objects.filter(
        series=map_.series_id,
        frame=map_.frame,
        prediction__outcome=map_.prediction.outcome,
        prediction__assessment__version=map_.prediction.assessment.version_id,
    ).exclude(pk=map_.pk)
    subjects = [str(pk) for pk in alike.values_list("pk", flat=True)]
    return destination.documents.filter(kind=DocumentKind.HEAT_MAP, subject__in=subjects).exists()


def _once(
    destination: Destination,
    kind: DocumentKind,
    subject: int,
    patient: Patient | None,
    order: datetime,
    now: datetime,
) -> int:
    if destination.documents.filter(kind=kind, subject=str(subject)).exists():
        return 0
    _add(destination, kind, subject, uuid.uuid4(), patient=patient, order=order, now=now)
    return 1


def _add(
    destination: Destination,
    kind: DocumentKind,
    subject: object,
    identity: uuid.UUID,
    *,
    order: datetime,
    now: datetime,
    patient: Patient | None = None,
    needs: Document | None = None,
    digest: str = "",
) -> Document:
    must_wait = needs is not None and needs.work_state != WorkState.DONE
    due = now + LOOK_AGAIN if must_wait else now  # woken earlier, when what it needs was accepted
    document, created = Document.objects.get_or_create(
        destination=destination,
        kind=kind,
        subject=str(subject),
        defaults={
            "identity": identity, "order": order, "queued_at": due, "patient": patient, "needs": needs,
            "digest": digest, "due_at": due if must_wait else None,
        },
    )  # fmt: skip
    if created and not must_wait:
        leases.queue(document, now=now)
    return document
