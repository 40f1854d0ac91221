"""The one scoring path, whoever asks. Worker only (torch).

Pixels and notes are encoded once, when they arrive; a score reads their embeddings and the record as it is
now, so it takes milliseconds and never touches pixels. Work is claimed, done outside any transaction, and
stored only while the claim is still ours: killed at any moment or run twice, the result is there once.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from django.conf import settings
from django.db import transaction
from django.utils import timezone

import ehr
import fusion
from cds.audit import recording
from cds.errors import ClinicError
from cds.features import building, encoding
from cds.jobs import Job, leases, outbox
from cds.jobs.models import WorkState
from cds.patients import importing
from cds.patients.models import Note, Patient
from cds.registry import queries as registry_queries
from cds.registry.loading import get_bundle
from cds.registry.models import ModelVersion
from cds.risk import assessing, measuring
from cds.risk.models import HeatMap, RiskAssessment, RiskPrediction
from cds.risk.standing import scored_outcomes
from cds.studies import receiving
from cds.studies.models import Encoding, Series, Study
from fusion import FusionConfig, Modality

logger = logging.getLogger(__name__)
WORKER = recording.system("worker")


# -- encoding: when pixels or notes arrive ----------------------------------------------------------------
def encode(encoding_id: uuid.UUID | str) -> None:
    """Make the embeddings of a study that the active models need, then ask for fresh scores."""
    work = leases.claim(Encoding, encoding_id)
    if work is None:
        return
    with leases.heartbeat(work) as lost:
        try:
            _, failures = _encode_study(work.study, encoders_in_use(), lost_check=lost.is_set)
            _finish_encoding(work, failures)
        except leases.LeaseLost:
            logger.warning("encoding %s is no longer ours; nothing stored", work.pk)
        except Exception as fault:
            # Disk, database or a defect: the next try may work; three tries end it as failed.
            leases.give_back(work, now=timezone.now(), reason=f"{type(fault).__name__} while encoding")
            raise


def encoders_in_use() -> list[tuple[Modality, str]]:
    """(modality, embedding key) of every active version; before there is any, those of the settings."""
    keys: set[tuple[Modality, str]] = set()
    for version in registry_queries.active_versions():
        keys |= {(Modality(modality), key) for modality, key in version.encoders.items()}
    if not keys:
        image = encoding.get_backbone(settings.IMAGE_BACKBONE).version
        defaults = FusionConfig(outcomes=())
        keys = {
            (Modality.IMAGE, encoding.pixel_key(image, defaults.image_size)),
            (Modality.CINE, encoding.pixel_key(image, defaults.cine_size)),
            (Modality.TEXT, encoding.get_text_backbone(settings.TEXT_BACKBONE).version),
        }
    return sorted(keys)


def _encode_study(
    study: Study, keys: Iterable[tuple[Modality, str]], *, lost_check: Callable[[], bool]
) -> tuple[bool, list[str]]:
    """Encode every usable Series; whether anything was new, and why some could not be."""
    made, failures = False, []
    now = timezone.now()
    for series in Series.objects.filter(study=study).order_by("series_uid"):
        for modality, key in keys:
            if modality not in encoding.PIXELS or not encoding.is_usable(series, modality):
                continue
            if lost_check():
                raise leases.LeaseLost(f"encoding of study {study.pk}")
            size = encoding.split_pixel_key(key)[1]
            try:
                backbone = _backbone(modality, key)
                made |= encoding.encode_series(series, backbone, size=size, now=timezone.now())
            except (ehr.Permanent, fusion.FusionError) as fault:
                failures.append(f"series {series.pk}: {fault}")
        if lost_check():
            raise leases.LeaseLost(f"measuring of study {study.pk}")
        for reason in measuring.measure(series, now=now):  # the score stands without a measurement
            logger.warning("series %s was not measured: %s", series.pk, reason)
    return made, failures


def _backbone(modality: Modality, key: str) -> fusion.ImageBackbone | fusion.VolumeBackbone:
    """The backbone of an embedding key. One that was fine-tuned lies in the bundle of a version that uses it.

    Raises UnknownEncoder where neither the site nor a bundle has these very weights.
    """
    version = encoding.split_pixel_key(key)[0]
    name = version.partition(":")[0]
    if name.endswith("+tuned"):
        owner = ModelVersion.objects.filter(**{f"encoders__{modality.value}": key}).order_by("-pk").first()
        if owner is None:
            raise fusion.UnknownEncoder(f"no model version holds the fine-tuned backbone {version}")
        return get_bundle(owner).embedder.image_backbone
    is_volume = modality == Modality.VOLUME
    backbone = encoding.get_volume_backbone(name) if is_volume else encoding.get_backbone(name)
    if backbone.version != version:
        raise fusion.UnknownEncoder(
            f"asked for {version}, and here {name} has the weights {backbone.version}: set IMAGE_WEIGHTS to "
            "the file the model was trained with"
        )
    return backbone


def _finish_encoding(work: Encoding, failures: list[str]) -> None:
    now = timezone.now()
    with transaction.atomic():
        state = WorkState.FAILED if failures else WorkState.DONE
        leases.finish(work, now=now, state=state, failure="; ".join(failures))
        study = receiving.mark_encoded(work.study, failures=failures, now=now)
        recording.record(
            by=WORKER,
            action="study.encode",
            object_type="Study",
            object_id=study.pk,
            patient_id=study.patient_id,
            now=now,
            outcome="failed" if failures else "success",
        )
        if study.patient is not None:
            importing.touch(study.patient, now)
            assessing.request_all(study.patient, by=WORKER, now=now)


def encode_notes(patient_id: uuid.UUID | str) -> None:
    """Embed a patient's notes that have no embedding yet, then ask for fresh scores. Safe to run twice."""
    patient = Patient.objects.filter(pk=patient_id).first()
    if patient is None:
        return
    made = _embed_notes(patient)
    now = timezone.now()
    with transaction.atomic():
        if made:
            importing.touch(patient, now)
        assessing.request_all(patient, by=WORKER, now=now)


def _embed_notes(patient: Patient) -> bool:
    """Whether there was anything left to embed."""
    made = False
    for modality, version in encoders_in_use():
        if modality != Modality.TEXT:
            continue
        backbone = encoding.text_backbone_of(version)
        for note in Note.objects.filter(patient=patient, available_at__isnull=False):
            made |= encoding.encode_note(
                note.text, note.text_digest, backbone, now=timezone.now(), key=version
            )
    return made


def encode_patient(patient: Patient) -> None:
    """Everything of one patient that the active models need, here and now, without a worker."""
    keys, made = encoders_in_use(), _embed_notes(patient)
    for study in Study.objects.filter(patient=patient, series__clip_path__gt="").distinct():
        new, failures = _encode_study(study, keys, lost_check=lambda: False)
        receiving.mark_encoded(study, failures=failures, now=timezone.now())
        made |= new
    if made:
        importing.touch(patient, timezone.now())


def ask_encoding(
    patient: Patient, version: ModelVersion, pending: Iterable[Modality], *, now: datetime
) -> None:
    """Queue the encoding of what `version` still waits for, unless it is queued, or was tried, already."""
    waiting = set(pending)
    if Modality.TEXT in waiting:
        outbox.enqueue(Job.ENCODE_NOTES, now=now, patient_id=str(patient.pk))
    if not waiting & set(encoding.PIXELS):
        return
    keys = {key for modality, key in version.encoders.items() if Modality(modality) in encoding.PIXELS}
    for study in Study.objects.filter(patient=patient, series__clip_path__gt="").distinct():
        latest = study.encodings.order_by("-queued_at").first()
        if latest is None or latest.work_state not in (WorkState.QUEUED, WorkState.RUNNING):
            receiving.request_encoding(study, backbones=",".join(sorted(keys)), now=now)


# -- scoring ---------------------------------------------------------------------------------------------
def score(assessment_id: uuid.UUID | str) -> None:
    """Answer one request: claim it, compute outside any transaction, store once."""
    work = leases.claim(RiskAssessment, assessment_id)
    if work is None:
        return
    newest = assessing.overtaking(work)
    if (
        newest is not None
    ):  # it takes this one's place in the queue: one score of a patient, of what is known now
        with suppress(leases.LeaseLost):
            assessing.give_up(work, by=WORKER, now=timezone.now())
            score(newest.pk)
        return
    with leases.heartbeat(work):
        try:
            result, pending = _compute(work)
            assessing.finalise(work, result, by=WORKER, now=timezone.now())
            if pending:
                with transaction.atomic():
                    ask_encoding(work.patient, work.version, pending, now=timezone.now())
        except leases.LeaseLost:
            logger.warning("assessment %s is no longer ours; nothing stored", work.pk)
        except (fusion.FusionError, ClinicError, ehr.Permanent) as fault:
            with suppress(leases.LeaseLost):
                assessing.fail(work, reason=str(fault), by=WORKER, now=timezone.now())
        except Exception as fault:
            # Disk, database or a defect: the next try may work; three tries end it as failed.
            leases.give_back(work, now=timezone.now(), reason=f"{type(fault).__name__} while scoring")
            raise


def _compute(work: RiskAssessment) -> tuple[assessing.Result, frozenset[Modality]]:
    started = time.perf_counter()
    work.version = _version(work.version_id)
    work.patient = Patient.objects.select_related("source").get(pk=work.patient_id)
    bundle = get_bundle(work.version)
    loaded = time.perf_counter()
    built = building.build_inputs(
        work.patient,
        as_of=work.as_of,
        encoders=work.version.encoders,
        series_hours=bundle.config.series_hours,
    )
    read = time.perf_counter()
    said = fusion.predict(bundle, [built.inputs], explain=True)[0]
    predicted = time.perf_counter()
    unused = registry_queries.unused_modalities(work.version.metadata, work.version.outcomes)
    wanted = scored_outcomes(work.patient, work.version.outcomes, work.as_of)
    nothing = "" if built.inputs.present() else "nothing is known about this patient yet"
    return (
        assessing.Result(
            predictions=[orjson.loads(orjson.dumps(one)) for one in said.outcomes if one.outcome in wanted],
            inputs_digest=built.inputs.digest(),
            data_until=built.data_until,
            present=[modality.value for modality in said.present],
            missing=[modality.value for modality in said.missing if modality.value not in unused],
            pending=sorted(modality.value for modality in built.inputs.pending),
            missing_fields=list(said.missing_fields),
            basis=built.basis,
            abstained=said.out_of_scope or nothing,
            left_out=said.left_out,
            frame_weights={
                key: {"indices": said.frame_indices.get(key, []), "weights": weights}
                for key, weights in said.frame_weights.items()
            },
            milliseconds={
                "load_model": _ms(started, loaded),
                "build_inputs": _ms(loaded, read),
                "model": _ms(read, predicted),
            },
        ),
        built.inputs.pending,
    )


@lru_cache(maxsize=8)
def _version(pk: uuid.UUID) -> ModelVersion:
    """A version, read once: what a score reads of it is settled when it is made."""
    return ModelVersion.objects.get(pk=pk)


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1000, 2)


def warm_up() -> int:
    """Load the active models, so that the first score does not wait for them. Returns how many."""
    versions = registry_queries.active_versions()
    for version in versions:
        get_bundle(version)
    return len(versions)


# -- explaining: heat maps, after the score ---------------------------------------------------------------
def explain(assessment_id: uuid.UUID | str) -> int:
    """Where in its images the model looked, one HeatMap per outcome and image. Returns how many were made.

    Made from the very inputs that were scored: if the record has since changed what was known at `as_of`
    (a late correction), there is no heat map, rather than one of something else.
    """
    assessment = RiskAssessment.objects.select_related("patient", "version").filter(pk=assessment_id).first()
    if assessment is None or assessment.work_state != WorkState.DONE:
        return 0
    predictions = list(assessment.predictions.order_by("outcome"))
    missing = [one for one in predictions if not one.heat_maps.exists()]
    if not missing:
        return 0
    try:
        made = _draw(assessment, missing)
    except (fusion.FusionError, ClinicError) as fault:
        logger.warning(
            "no heat map of assessment %s: %s", assessment.pk, fault
        )  # the score stands without one
        return 0
    if made:
        with transaction.atomic():
            outbox.tell("assessment", assessment.pk, now=timezone.now(), patient_id=assessment.patient_id)
    return made


def _draw(assessment: RiskAssessment, missing: list[RiskPrediction]) -> int:
    bundle = get_bundle(assessment.version)
    built = building.build_inputs(
        assessment.patient,
        as_of=assessment.as_of,
        encoders=assessment.version.encoders,
        series_hours=bundle.config.series_hours,
    )
    if built.inputs.digest() != assessment.inputs_digest:
        return 0
    made = 0
    for pixels in built.inputs.images[: bundle.config.max_images]:
        if pixels.key in assessment.left_out:
            continue  # what was not looked at has no map
        series = Series.objects.filter(study__patient=assessment.patient, pixels_digest=pixels.key).first()
        for prediction in missing if series is not None else []:
            map_ = _best_map(bundle, built.inputs, pixels, prediction.outcome)
            made += _keep_heat_map(prediction, series, map_)
    return made


def _best_map(
    bundle: fusion.Bundle, inputs: fusion.PatientInputs, pixels: fusion.PixelInput, outcome: str
) -> fusion.ImageExplanation:
    """Grad-CAM; where it fails its checks, integrated gradients if they pass them. Some seconds at most."""
    first = fusion.explain_image(bundle, inputs, pixels, outcome=outcome)
    if first.sanity["passed"]:
        return first
    other = fusion.HeatMapMethod.INTEGRATED_GRADIENTS
    second = fusion.explain_image(bundle, inputs, pixels, outcome=outcome, method=other)
    return second if second.sanity["passed"] else first


def _keep_heat_map(prediction: RiskPrediction, series: Series | None, map_: fusion.ImageExplanation) -> int:
    assert series is not None  # the caller looked it up
    path = f"heatmaps/{prediction.assessment_id}/{series.pk}-{prediction.pk}.npy"
    target = settings.STUDY_STORE / path
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{uuid.uuid4().hex}.npy")
    np.save(half, np.clip(map_.values, 0.0, 1.0).astype(np.float16), allow_pickle=False)
    half.replace(target)
    _, created = HeatMap.objects.get_or_create(
        prediction=prediction,
        series=series,
        frame=0,
        defaults={
            "method": map_.method,
            "path": path,
            "sanity": _plain(map_.sanity),
            "created_at": timezone.now(),
        },
    )
    return int(created)


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item.item() if isinstance(item, np.generic) else item for key, item in value.items()}
