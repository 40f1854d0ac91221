"""From a radiograph's file to its final score, split by stage; beside one raw forward of the same models."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import measuring, scratch

if TYPE_CHECKING:  # models can be imported once Django is set up, which the scratch clinic does
    from cds.studies.models import Study

STUDIES = 12
PATIENCE_S = 60


def run() -> measuring.Table:
    """Measure."""
    table = measuring.Table("Study to score", ("stage", "p50 ms", "p95 ms", "worst ms"))
    with scratch.clinic(web=False) as clinic:
        files = sorted((clinic.folder / "demo" / "dicom").glob("*-radiograph.dcm"))[:STUDIES]
        stages: dict[str, list[float]] = {}
        for number, file in enumerate(files):
            again = _another(file, clinic.folder / f"new{number}.dcm", seed=number)
            for stage, seconds in _one(again).items():
                stages.setdefault(stage, []).append(seconds)
        for stage, found in _forward(files).items():
            table.add(f"limit: {stage}", *measuring.spread(found))
        for stage, found in stages.items():
            table.add(stage, *measuring.spread(found))
    table.notes.append(
        f"{len(files)} radiographs, one after another; batch and interactive worker idle before each."
    )
    table.notes.append('"until …" includes waking the worker, its lease, and storing with audit.')
    return table


def _another(file: Path, target: Path, *, seed: int) -> Path:
    """The same patient photographed anew: other UIDs, a little noise, taken now."""
    import pydicom
    from pydicom.uid import generate_uid

    dataset = pydicom.dcmread(file)
    now = datetime.now(UTC)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = now.strftime("%Y%m%d")
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = now.strftime("%H%M%S")
    pixels = dataset.pixel_array.astype(np.int32)
    noise = np.random.default_rng(seed).integers(0, 3, pixels.shape)
    largest = 2 ** int(dataset.BitsStored) - 1
    dataset.PixelData = np.clip(pixels + noise, 0, largest).astype(dataset.pixel_array.dtype).tobytes()
    dataset.save_as(target)
    return target


def _one(file: Path) -> dict[str, float]:
    """Seconds of each stage of one study."""
    from django.utils import timezone

    from cds.audit import recording
    from cds.jobs.models import WorkState
    from cds.patients.models import Source
    from cds.risk.models import RiskAssessment
    from cds.studies import receiving
    from cds.studies.models import StudyState

    by, source = recording.system("benchmark"), Source.objects.get(slug="demo")
    began = time.perf_counter()
    received = receiving.receive_file(file, source=source, by=by, now=timezone.now())
    if received.study is None:
        raise RuntimeError(f"refused: {received.reason}")
    durable = time.perf_counter()
    study = received.study
    receiving.complete(study, by=by, now=timezone.now())
    decoded = time.perf_counter()
    _wait(lambda: _fresh(study).state == StudyState.ENCODED)
    encoded = time.perf_counter()
    patient = study.patient
    if patient is None:
        raise RuntimeError("the study found no patient")
    patient.refresh_from_db()
    asked = RiskAssessment.objects.filter(patient=patient, revision=patient.revision)
    _wait(lambda: asked.exists() and not asked.exclude(work_state=WorkState.DONE).exists())
    scored = time.perf_counter()
    inside = asked.latest("finished_at").milliseconds
    return {
        "file received, durable": durable - began,
        "decoded to a Clip": decoded - durable,
        "until encoded": encoded - decoded,
        "until scored, final": scored - encoded,
        "of which build_inputs": inside["build_inputs"] / 1000,
        "of which model": inside["model"] / 1000,
        "file to score": scored - began,
    }


def _forward(files: list[Path]) -> dict[str, list[float]]:
    """The models alone, in this process, on inputs already in memory."""
    import fusion
    from cds.features import building, encoding
    from cds.registry import queries
    from cds.risk.models import RiskAssessment

    version = queries.active_versions()[0]
    bundle = fusion.Bundle.load(queries.bundle_folder(version), digest=version.digest)
    key = version.encoders["image"]
    name, size = encoding.split_pixel_key(key)
    backbone = fusion.load_backbone(name.partition(":")[0])
    picture = np.random.default_rng(0).random((1, size, size), dtype=np.float32)
    backbone.embed(picture, size)
    scored = RiskAssessment.objects.filter(version=version, work_state="done").latest("finished_at")
    built = building.build_inputs(
        scored.patient,
        as_of=scored.as_of,
        encoders=version.encoders,
        series_hours=bundle.config.series_hours,
    )
    fusion.predict(bundle, [built.inputs])
    return {
        "image backbone, one forward": measuring.timed(lambda: backbone.embed(picture, size), len(files)),
        "fusion model, no explanation": measuring.timed(
            lambda: fusion.predict(bundle, [built.inputs], explain=False), len(files)
        ),
    }


def _fresh(study: Study) -> Study:
    study.refresh_from_db()
    return study


def _wait(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > until:
            raise RuntimeError(f"it did not happen within {PATIENCE_S} s")
        time.sleep(0.002)
