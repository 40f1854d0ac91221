"""Reading studies and embeddings. `patients.access` has checked beforehand who may see the patient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import numpy as np
from django.core.exceptions import ValidationError
from numpy.typing import NDArray

from cds.patients.models import Patient
from cds.studies.models import Embedding, Series, Study, StudyState

AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """A Series as a list shows it. `failure` says why it cannot be shown; then `frames` is 0."""

    id: UUID
    series_uid: str
    imaging_modality: str
    body_part: str
    view: str
    laterality: str
    description: str
    frames: int
    rows: int
    columns: int
    frame_ms: float | None
    spacing_row_mm: float | None
    spacing_column_mm: float | None
    pixels_digest: str
    remarks: tuple[str, ...]
    failure: str
    is_cine: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """A Study as a list shows it. `started_at` None: undated, so no model uses it."""

    id: UUID
    study_uid: str
    description: str
    started_at: datetime | None
    received_at: datetime
    state: StudyState
    failure: str
    series: tuple[SeriesView, ...]

    @property
    def is_ready(self) -> bool:
        """Nothing is still to be received, decoded or encoded."""
        return self.state in (StudyState.ENCODED, StudyState.FAILED)


def list_studies(patient: Patient, *, as_of: datetime | None = None) -> list[StudyView]:
    """A patient's studies, newest first; with `as_of`, only those begun by then (undated ones left out)."""
    rows = (
        Study.objects.filter(patient=patient).prefetch_related("series").order_by("-started_at", "study_uid")
    )
    if as_of is not None:
        rows = rows.filter(started_at__lte=as_of)
    return [_study_view(row) for row in rows]


def latest_studies(patient: Patient, *, as_of: datetime) -> dict[str, StudyView]:
    """By imaging modality, the newest Study begun by `as_of` that has a decoded Series of it."""
    latest: dict[str, StudyView] = {}
    for study in list_studies(patient, as_of=as_of):
        for series in study.series:
            if series.frames:
                latest.setdefault(series.imaging_modality, study)
    return latest


def find_series(patient_id: UUID | str, series_id: UUID | str) -> Series | None:
    """A Series of this patient; None for another patient's, or none at all."""
    try:
        found = Series.objects.select_related("study").filter(study__patient_id=patient_id, pk=series_id)
        return found.first()
    except (ValidationError, ValueError):
        return None  # not ids at all


def embeddings(subjects: Iterable[str], encoder: str) -> dict[str, NDArray[np.float32]]:
    """What `encoder` (a version) made of these subjects: float32 [rows, width]; absent where not computed.

    subjects  `Series.pixels_digest` or `Note.text_digest`
    """
    wanted = sorted({subject for subject in subjects if subject})
    found: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(wanted), AT_ONCE):
        kept = Embedding.objects.filter(encoder=encoder, subject__in=wanted[start : start + AT_ONCE])
        for subject, rows, width, vector in kept.values_list("subject", "rows", "width", "vector"):
            found[subject] = np.frombuffer(bytes(vector), dtype="<f4").reshape(rows, width)
    return found


def put_embedding(subject: str, encoder: str, values: NDArray[np.float32], *, now: datetime) -> bool:
    """Keep what an encoder made of a subject; False when it is there already (the first one stays).

    values  float32 [rows, width], finite
    raises  ValueError for another shape, or a value that is not finite
    """
    kept = np.ascontiguousarray(values, dtype="<f4")
    if kept.ndim != 2 or not subject or not encoder:
        raise ValueError("an embedding is [rows, width] of a named subject by a named encoder")
    if not np.isfinite(kept).all():
        raise ValueError("an embedding holds a value that is not finite")
    _, created = Embedding.objects.get_or_create(
        subject=subject,
        encoder=encoder,
        defaults={
            "rows": kept.shape[0],
            "width": kept.shape[1],
            "vector": kept.tobytes(),
            "created_at": now,
        },
    )
    return created


def _study_view(row: Study) -> StudyView:
    series = sorted(row.series.all(), key=lambda one: one.series_uid)
    return StudyView(
        id=row.pk,
        study_uid=row.study_uid,
        description=row.description,
        started_at=row.started_at,
        received_at=row.received_at,
        state=StudyState(row.state),
        failure=row.failure,
        series=tuple(_series_view(one) for one in series),
    )


def _series_view(row: Series) -> SeriesView:
    return SeriesView(
        id=row.pk,
        series_uid=row.series_uid,
        imaging_modality=row.imaging_modality,
        body_part=row.body_part,
        view=row.view,
        laterality=row.laterality,
        description=row.description,
        frames=row.frames,
        rows=row.rows,
        columns=row.columns,
        frame_ms=row.frame_ms,
        spacing_row_mm=row.spacing_row_mm,
        spacing_column_mm=row.spacing_column_mm,
        pixels_digest=row.pixels_digest,
        remarks=tuple(row.remarks),
        failure=row.failure,
        is_cine=row.is_cine,
    )
