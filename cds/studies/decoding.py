"""The files of a Study become Clips, one per Series, decoded once; then the Encoding is asked for."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from django.db import transaction

import ehr
from cds.audit import recording
from cds.jobs import leases, outbox
from cds.jobs.models import WorkState
from cds.patients import importing
from cds.studies import clips
from cds.studies.models import Encoding, Instance, Series, Study, StudyState

ACTIVE = "active"  # an Encoding with whatever backbones are in use when the worker takes it
MAX_SIDE = 1024
MAX_FRAMES = 256
PLACE_S = 30.0  # for which a received file may be on its way to its place


@dataclass(frozen=True, slots=True)
class Completed:
    """What `complete` did: Series decoded now, Series of the Study that cannot be, and the work asked for."""

    study: Study
    decoded: int
    failed: int
    encoding: Encoding | None


@dataclass(slots=True)
class _Result:
    """One Series decoded, or the words why not, from exactly these instances."""

    series: Series
    instances: str  # digest of the instance set
    clip: ehr.Clip | None = None
    path: str = ""
    failure: str = ""


def complete(
    study: Study, *, by: recording.Actor, now: datetime, backbones: tuple[str, ...] = (ACTIVE,)
) -> Completed:
    """Decode every Series whose files are new, each to one Clip in the store, and ask for the Encoding.

    A Series that cannot be decoded keeps its reason in `failure`; the others go on. Nothing new: nothing is
    done. Files that arrive while this runs leave the Study `announced`, for the next call.

    backbones  what to encode with: `active`, or backbone versions
    """
    results = [_decode(series) for series in study.series.order_by("series_uid") if _is_new(series)]
    outdated: set[str] = set()
    with transaction.atomic():
        held = Study.objects.select_for_update(of=("self",)).select_related("patient").get(pk=study.pk)
        for one in results:
            outdated.add(one.series.clip_path if _keep(one) else one.path)
        readable = [series for series in held.series.all() if series.clip_path]
        failures = [series.failure for series in held.series.all() if not series.clip_path and series.failure]
        if not results and held.state != StudyState.ANNOUNCED:
            return Completed(held, 0, len(failures), None)
        if any(_is_new(series) for series in held.series.all()) or not held.series.exists():
            state, why = StudyState.ANNOUNCED, ""
        elif readable:
            state, why = StudyState.STORED, ""
        else:
            state, why = StudyState.FAILED, f"no Series can be decoded: {'; '.join(failures)}"
        held.state, held.failure = state, why[:500]
        held.save(update_fields=["state", "failure"])
        if results and held.patient is not None:
            importing.touch(held.patient, now)
        encoding = None
        if state == StudyState.STORED:
            encoding = request_encoding(held, backbones=",".join(sorted(backbones)), now=now)
            if encoding.work_state == WorkState.DONE:  # these very pixels were encoded before
                held.state = StudyState.ENCODED
                held.save(update_fields=["state"])
        recording.record(
            by=by,
            action="study.store",
            object_type="Study",
            object_id=held.pk,
            patient_id=held.patient_id,
            now=now,
            outcome="failed" if state == StudyState.FAILED else "success",
            series=len(readable),
            failed=len(failures),
        )
        outbox.tell("study", held.pk, now=now, patient_id=held.patient_id)
    for path in outdated - {""}:
        if not Series.objects.filter(clip_path=path).exists():
            clips.remove(path)
    return Completed(held, sum(one.clip is not None for one in results), len(failures), encoding)


def request_encoding(study: Study, *, backbones: str = ACTIVE, now: datetime) -> Encoding:
    """Ask for the embeddings of a Study as it is now; asked again, the same work; a failed one starts anew.

    Inside the caller's transaction.
    """
    digests = sorted(series.pixels_digest for series in study.series.all() if series.clip_path)
    encoding, created = Encoding.objects.get_or_create(
        study=study,
        pixels_digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        backbones=backbones[:200],
        defaults={"queued_at": now},
    )
    if not created and encoding.work_state == WorkState.FAILED:
        encoding.work_state, encoding.starts, encoding.queued_at, encoding.failure = (
            WorkState.QUEUED,
            0,
            now,
            "",
        )
        encoding.save(update_fields=["work_state", "starts", "queued_at", "failure"])
        created = True
    if created:
        leases.queue(encoding, now=now)
    return encoding


def instances_digest(instances: list[Instance]) -> str:
    """Of a set of instances, whatever their order."""
    lines = sorted(f"{one.sop_uid} {one.pixel_digest} {one.sha256}" for one in instances)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_new(series: Series) -> bool:
    """Whether its instances are others than those its Clip (or its failure) was made from."""
    instances = list(series.instances.all())
    if not instances:
        return False
    digest = instances_digest(instances)
    if series.clip_path:
        return f"/{digest}.npy" not in series.clip_path
    return series.pixels_digest != digest


def _decode(series: Series) -> _Result:
    """Outside any transaction: files in, one Clip in the store out."""
    instances = list(series.instances.all())
    digest = instances_digest(instances)
    paths = [clips.path_of(one.path) for one in instances]
    _wait_for(paths)
    try:
        clip = ehr.read_clip(paths, max_side=MAX_SIDE, max_frames=MAX_FRAMES)
    except ehr.Permanent as error:
        return _Result(series, digest, failure=str(error)[:500])
    path = clips.keep_clip(clip, f"{series.study_id}/{series.pk}", digest)
    return _Result(series, digest, clip=clip, path=path)


def _wait_for(paths: list[Path]) -> None:
    """Rows come before files (`arriving`): a file that was just received may be on its way to its place."""
    until = time.monotonic() + PLACE_S
    while not all(path.exists() for path in paths) and time.monotonic() < until:
        time.sleep(0.05)


def _keep(result: _Result) -> bool:
    """Fill the Series' row, in the caller's transaction; False, writing nothing, when newer files came."""
    series = Series.objects.select_related("study").get(pk=result.series.pk)
    if instances_digest(list(series.instances.all())) != result.instances:
        return False
    clip = result.clip
    series.failure, series.clip_path = result.failure, result.path
    if clip is None:
        series.pixels_digest, series.frames, series.rows, series.columns = result.instances, 0, 0, 0
        series.frame_ms = series.spacing_row_mm = series.spacing_column_mm = series.slice_mm = None
        series.remarks, series.sources = [], []
    else:
        series.pixels_digest = _pixels_digest(series, clip)
        series.frames, series.rows, series.columns = clip.frames.shape
        series.frame_ms = _mean_step(clip)
        row, column = clip.spacing_mm or (None, None)
        series.spacing_row_mm, series.spacing_column_mm = row, column
        series.slice_mm = clip.slice_mm
        series.remarks = list(clip.notes) + _partial(series)
        series.sources = [list(source) for source in clip.sources]
    series.save(update_fields=_DECODED)
    return True


def _partial(series: Series) -> list[str]:
    """The remark that part of a Series has not come, where it was announced how many there are."""
    expected = series.study.expected.get(series.series_uid, 0)
    held = series.instances.count()
    return [f"partial: {held} of {expected} instances are here"] if held < expected else []


_DECODED = [
    "failure",
    "clip_path",
    "pixels_digest",
    "frames",
    "rows",
    "columns",
    "frame_ms",
    "spacing_row_mm",
    "spacing_column_mm",
    "slice_mm",
    "remarks",
    "sources",
]


def _pixels_digest(series: Series, clip: ehr.Clip) -> str:
    """Key of the embeddings: the pixel data of the instance set, and what it looks like decoded.

    Both, because the same pixel data under another window or inverted is another picture to an encoder.
    """
    digest = hashlib.sha256("\n".join(sorted(one.pixel_digest for one in series.instances.all())).encode())
    digest.update(np.ascontiguousarray(clip.frames).data.cast("B"))
    return digest.hexdigest()


def _mean_step(clip: ehr.Clip) -> float | None:
    """Mean time between frames in ms; None for a still image or when the file does not tell."""
    if len(clip.times_ms) < 2 or not clip.times_ms[-1] > 0:
        return None
    return float(clip.times_ms[-1] / (len(clip.times_ms) - 1))
