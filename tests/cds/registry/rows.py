"""Rows the tests of registry and risk start from: stays, image studies, model versions."""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ehr
from cds.patients.models import Encounter, Patient
from cds.registry.models import ActiveModel, ModelVersion, Stage
from cds.studies import clips
from cds.studies.models import Series, Study, StudyState
from tests.factories import NOW, make_patient

__all__ = ["make_patient", "make_series", "make_stay", "make_version"]


def make_stay(
    patient: Patient, kind: str, start: datetime | None, end: datetime | None, *, status: str = ""
) -> Encounter:
    return Encounter.objects.create(
        patient=patient,
        resource_type="Encounter",
        resource_id=uuid.uuid4().hex,
        available_at=start,
        digest="x",
        status=status or ("in-progress" if end is None else "finished"),
        kind=kind,
        start=start,
        end=end,
    )


def make_series(
    patient: Patient,
    at: datetime | None,
    *,
    modality: str = "CR",
    frames: int = 1,
    frame_ms: float | None = None,
    body_part: str = "CHEST",
    clip_path: str = "clips/none.npz",
    pixels: NDArray[np.float32] | None = None,
    view: str = "PA",
    **columns: Any,
) -> Series:
    """A stored Series; with `pixels` [T, H, W] in [0, 1] its Clip lies in the store as well."""
    study = Study.objects.create(
        source=patient.source,
        patient=patient,
        study_uid=f"2.25.{uuid.uuid4().int}"[:64],
        started_at=at,
        received_at=at or NOW,
        state=StudyState.STORED,
    )
    if pixels is not None:
        frames = len(pixels)
        times = np.arange(frames, dtype=np.float32) * np.float32(frame_ms or 0.0)
        clip_path = clips.keep_clip(ehr.Clip(frames=pixels, times_ms=times), str(study.pk), "clip")
    return Series.objects.create(
        study=study,
        series_uid=f"2.25.{uuid.uuid4().int}"[:64],
        imaging_modality=modality,
        body_part=body_part,
        view=view,
        pixels_digest=hashlib.sha256(study.study_uid.encode()).hexdigest(),
        clip_path=clip_path,
        frames=frames,
        rows=32,
        columns=32,
        frame_ms=frame_ms,
        **columns,
    )


def make_version(
    *outcomes: str, active: bool = True, number: int = 1, now: datetime = NOW, **columns: Any
) -> ModelVersion:
    names = list(outcomes) or ["icu-admission"]
    version = ModelVersion.objects.create(
        name="+".join(names),
        number=number,
        outcomes=names,
        stage=Stage.ACTIVE if active else Stage.CANDIDATE,
        path=f"{'+'.join(names)}/{uuid.uuid4()}",
        digest="d" * 64,
        created_at=now,
        **{"encoders": {}, "metadata": {}, **columns},
    )
    for outcome in names if active else []:
        ActiveModel.objects.update_or_create(
            outcome=outcome, defaults={"version": version, "since": now - timedelta(days=30)}
        )
    return version
