"""One retraining run, whole: cohort → inputs → training → report → candidate. Worker only (torch).

A run killed at any moment goes on where it was when a worker takes it up again: embeddings made so far are
kept, the cohort is frozen once, every encoder says in a file how far it is and ends with the weights it would
have had, and the candidate is registered in the transaction that ends the run, so there is one or none.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.utils import timezone

import fusion
from cds.audit import recording
from cds.errors import ClinicError
from cds.features import building, encoding
from cds.features.fields import CHANNELS, FIELDS, GENOMICS
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.patients.models import Note
from cds.registry import bundles, cohorts, comparing, following, policies, queries, runs
from cds.registry.models import Cohort, TrainingRun
from cds.studies.models import Series
from fusion import Example, FusionConfig, Modality

logger = logging.getLogger(__name__)
WORKER = recording.system("worker-train")
WRITE_EVERY_S = 0.5
SCOPE_PICTURES = 120  # of the training pictures, read once more to learn what a wrong one looks like
SCOPE_FIELDS = ("age",)  # a patient outside the ages trained on is not scored


def execute(run_id: UUID | str) -> None:
    """Carry out a run: claim it, do it, end it. Done, cancelled or held elsewhere: nothing happens."""
    if runs.is_other_running(run_id, now=timezone.now()):
        return  # one at a time: the sweeper wakes it again
    run = leases.claim(TrainingRun, run_id)
    if run is None:
        return
    with leases.heartbeat(run) as lost:
        try:
            _train(run, Progress(run, lost))
        except fusion.Cancelled:
            _end(run, WorkState.CANCELLED, "cancelled on request")
        except (fusion.FusionError, ClinicError) as fault:
            _end(run, WorkState.FAILED, str(fault))
        except leases.LeaseLost:
            logger.warning("run %s is no longer ours; nothing stored", run.pk)
        except Exception as fault:
            # Whatever else went wrong (disk, database) may be gone on the next try; three tries end it.
            leases.give_back(run, now=timezone.now(), reason=f"{type(fault).__name__} while training")
            raise


def _train(run: TrainingRun, progress: Progress) -> None:
    """The whole run in one screen."""
    progress.step("choosing patients", 0.0)
    cohort = cohorts.freeze(run.cohort, now=timezone.now())
    run.simulated = cohorts.is_simulated(cohort)
    TrainingRun.objects.filter(pk=run.pk).update(simulated=run.simulated)
    config = build_config(run.outcomes, run.config, cohort=cohort)

    progress.step("encoding images and notes", 0.02)
    encoders = encode_missing(cohort, config, progress, low=0.02, high=0.4)

    progress.step("reading records", 0.4)
    examples = build_examples(cohort, config, encoders, progress, low=0.4, high=0.5)

    progress.step("training", 0.5)
    bundle = fusion.train(
        examples["train"],
        examples["tuning"],
        config,
        progress=progress.during("training", 0.5, 0.83),
        checkpoint=_checkpoint(run),
    )
    encoders = encode_tuned(cohort, bundle, encoders, progress, low=0.83, high=0.85)

    progress.step("evaluating on held-out patients", 0.85)
    acted_at = {name: policies.policy_of(name).high for name in run.outcomes}
    report = fusion.evaluate(bundle, examples["held_out"], thresholds=acted_at)
    report = following.without_steps(report, run.outcomes)

    progress.step("asking the version in use about the same patients", 0.93)
    read = functools.partial(read_as, cohort, progress)
    beside = comparing.beside_active(run, bundle, examples["held_out"], encoders, read)

    progress.step("saving the model", 0.97)
    path = f"{'+'.join(run.outcomes)}/{run.pk}"
    digest = _save(bundle, path)
    unused = queries.unused_modalities(bundle.metadata, run.outcomes)
    runs.succeed(
        run,
        path=path,
        digest=digest,
        encoders={name: key for name, key in encoders.items() if name not in unused},
        metadata={
            **bundle.metadata,
            **_told_of(cohort, is_private=bool(bundle.metadata.get("privacy"))),
            "files": bundles.file_digests(settings.BUNDLE_STORE / path),
        },
        report={**report.to_json(), "beside_active": beside},
        by=WORKER,
        now=timezone.now(),
    )
    shutil.rmtree(_checkpoint(run), ignore_errors=True)


_CHOSEN: dict[str, type[StrEnum]] = {
    "fusion": fusion.FusionKind,
    "cine_pooling": fusion.CinePooling,
    "volume_kind": fusion.VolumeKind,
    "imbalance": fusion.Imbalance,
    "augment": fusion.Augment,
}


def build_config(
    names: Sequence[str], overrides: Mapping[str, Any], *, cohort: Cohort | None = None
) -> FusionConfig:
    """The catalogue's fields, the named outcomes (as curves where the cohort lost many patients from sight),
    the site's backbones, and what the run overrides."""
    settled: dict[str, Any] = {
        "image_backbone": settings.IMAGE_BACKBONE,
        "cine_backbone": settings.IMAGE_BACKBONE,
        "text_backbone": settings.TEXT_BACKBONE,
        "scope_pictures": SCOPE_PICTURES,
        "scope_fields": SCOPE_FIELDS,
        "summarise": True,
        "most_auroc_gap": settings.FAIRNESS_AUROC_GAP,
        "most_calibration_gap": settings.FAIRNESS_CALIBRATION_GAP,
        **runs.check_overrides(overrides),
    }
    if settled.get("dp_noise"):  # these keep statistics of training patients, to which no noise is added
        settled |= {"scope_pictures": 0, "scope_fields": (), "summarise": False}
    settled["text_backbone"] = encoding.text_folder(settled["text_backbone"])
    settled["image_weights"] = str(encoding.image_weights(settled["image_backbone"]) or "")
    if "modalities" in settled:
        settled["modalities"] = tuple(Modality(name) for name in settled["modalities"])
    for name, kind in _CHOSEN.items():
        if name in settled:
            settled[name] = kind(settled[name])
    split = "tuning" if settled.get("dp_noise") else "train"
    is_single = settled.get("imbalance") == fusion.Imbalance.BALANCED_SAMPLING  # draws rows by one outcome
    members = cohort.members.filter(split=split).order_by("pk") if cohort is not None else ()
    return FusionConfig(
        outcomes=following.specs_of(names, members, steps=not is_single),
        fields=FIELDS,
        genomics=GENOMICS,
        channels=CHANNELS,
        **settled,
    )


def encoder_keys(config: FusionConfig) -> dict[str, str]:
    """Modality → key of the embeddings a model of this config reads (see `building.build_inputs`)."""
    keys: dict[str, str] = {}
    if Modality.IMAGE in config.modalities:
        keys[Modality.IMAGE.value] = encoding.pixel_key(
            encoding.get_backbone(config.image_backbone).version, config.image_size
        )
    if Modality.CINE in config.modalities:
        keys[Modality.CINE.value] = encoding.pixel_key(
            encoding.get_backbone(config.cine_backbone).version, config.cine_size
        )
    if Modality.VOLUME in config.modalities:
        keys[Modality.VOLUME.value] = encoding.pixel_key(
            encoding.get_volume_backbone(fusion.volume_backbone_name(config)).version, config.volume_size
        )
    if Modality.TEXT in config.modalities:
        keys[Modality.TEXT.value] = encoding.get_text_backbone(config.text_backbone).version
    return keys


def read_as(
    cohort: Cohort, progress: Progress, bundle: fusion.Bundle, encoders: Mapping[str, str]
) -> list[Example]:
    """The held-out members as another model reads them, encoded by its encoders where they are not yet."""
    held_out, at = ("held_out",), {"low": 0.93, "high": 0.96}
    keys = encode_missing(cohort, bundle.config, progress, splits=held_out, **at)
    encode_tuned(cohort, bundle, keys, progress, splits=held_out, **at)
    return build_examples(cohort, bundle.config, encoders, progress, splits=held_out, **at)["held_out"]


def encode_missing(
    cohort: Cohort,
    config: FusionConfig,
    progress: Progress,
    *,
    low: float,
    high: float,
    splits: Sequence[str] = cohorts.SPLITS,
) -> dict[str, str]:
    """Encode every image, cine and note of the cohort that has no embedding of this config yet."""
    keys = encoder_keys(config)
    asked = cohort.members.filter(split__in=splits)
    members = list(asked.select_related("patient").order_by("patient_id", "-as_of"))
    newest = {member.patient_id: member for member in reversed(members)}  # one, the latest moment, a patient
    moments: dict[UUID, list[datetime]] = {}
    for member in members:
        moments.setdefault(member.patient_id, []).append(member.as_of)
    sizes = {
        Modality.IMAGE: config.image_size,
        Modality.CINE: config.cine_size,
        Modality.VOLUME: config.volume_size,
    }
    for done, member in enumerate(newest.values()):
        taken = encoding.taken_series(member.patient, as_of=member.as_of)
        for modality, size in sizes.items():
            if modality.value not in keys:
                continue
            name = encoding.split_pixel_key(keys[modality.value])[0].rpartition(":")[0]
            is_volume = modality == Modality.VOLUME
            backbone = encoding.get_volume_backbone(name) if is_volume else encoding.get_backbone(name)
            for series in _read_at(taken, modality, moments[member.patient_id]):
                encoding.encode_series(series, backbone, size=size, now=timezone.now())
                progress.step("encoding images and notes", low + (high - low) * done / len(newest))
        if Modality.TEXT.value in keys:
            for note in Note.objects.filter(patient=member.patient, available_at__lte=member.as_of):
                reader = encoding.get_text_backbone(config.text_backbone)
                encoding.encode_note(note.text, note.text_digest, reader, now=timezone.now())
        progress.step("encoding images and notes", low + (high - low) * (done + 1) / len(newest))
    return keys


def _read_at(taken: Sequence[Series], modality: Modality, moments: Sequence[datetime]) -> list[Series]:
    """The Series among those `taken` that a model reads at any of these moments, each once."""
    read: dict[UUID, Series] = {}
    for as_of in moments:
        known = [one for one in taken if one.study.started_at is not None and one.study.started_at <= as_of]
        read.update({series.pk: series for series in encoding.usable_series(known, modality)})
    return list(read.values())


def encode_tuned(
    cohort: Cohort,
    bundle: fusion.Bundle,
    encoders: Mapping[str, str],
    progress: Progress,
    *,
    low: float,
    high: float,
    splits: Sequence[str] = cohorts.SPLITS,
) -> dict[str, str]:
    """The encoders the model needs. Where its image backbone was fine-tuned, the cohort's images are encoded
    with it here and now; other patients' images are when the model first asks for them."""
    backbone = bundle.embedder.tuned
    if backbone is None:
        return dict(encoders)
    asked = cohort.members.filter(split__in=splits)
    members = list(asked.select_related("patient").order_by("patient_id", "-as_of"))
    for done, member in enumerate(members):
        taken = encoding.taken_series(member.patient, as_of=member.as_of)
        for series in encoding.usable_series(taken, Modality.IMAGE):
            encoding.encode_series(series, backbone, size=bundle.config.image_size, now=timezone.now())
        progress.step("encoding images with the tuned encoder", low + (high - low) * done / len(members))
    return {**encoders, Modality.IMAGE.value: encoding.pixel_key(backbone.version, bundle.config.image_size)}


def build_examples(
    cohort: Cohort,
    config: FusionConfig,
    encoders: Mapping[str, str],
    progress: Progress,
    *,
    low: float,
    high: float,
    splits: Sequence[str] = cohorts.SPLITS,
) -> dict[str, list[Example]]:
    """split → examples, each from `building.build_inputs`: the function that scoring uses too."""
    examples: dict[str, list[Example]] = {split: [] for split in splits}
    members = list(
        cohort.members.filter(split__in=splits)
        .select_related("patient", "patient__source")
        .order_by("patient__source__slug", "patient__resource_id", "as_of")
    )
    for done, member in enumerate(members):
        built = building.build_inputs(
            member.patient, as_of=member.as_of, encoders=encoders, series_hours=config.series_hours
        )
        inputs = dataclasses.replace(built.inputs, key=f"{member.patient_id}:{member.pk}")
        examples[member.split].append(
            Example(
                inputs,
                member.labels,
                group=cohorts.place_of(member.patient),
                attributes=inputs.attributes,
                follow_up=following.follow_up_of(member, config.outcomes),
            )
        )
        progress.step("reading records", low + (high - low) * (done + 1) / len(members))
    return examples


def _told_of(cohort: Cohort, *, is_private: bool) -> dict[str, Any]:
    """What a version tells of its cohort. Of a private one neither how many had events nor who they were, of
    which the guarantee covers nothing; the cohort itself, which stays here, holds both."""
    if not is_private:
        return {"cohort_digest": cohort.digest, "cohort_counts": cohort.counts}
    counts = {name: cohort.counts[name] for name in ("patients", "moments")}
    return {"cohort_digest": "", "cohort_counts": counts}


def _save(bundle: fusion.Bundle, path: str) -> str:
    """Write the bundle beside its place, then move it there: a killed worker leaves no half a model."""
    folder = settings.BUNDLE_STORE / path
    half = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    half.parent.mkdir(parents=True, exist_ok=True)
    digest = bundle.save(half, created_at=timezone.now().isoformat())
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)
    return digest


def _checkpoint(run: TrainingRun) -> Path:
    """Where this run's encoders say how far they are."""
    return settings.BUNDLE_STORE / ".training" / str(run.pk)


def _end(run: TrainingRun, state: WorkState, reason: str) -> None:
    try:
        runs.end(run, state, reason=reason, by=WORKER, now=timezone.now())
        shutil.rmtree(_checkpoint(run), ignore_errors=True)
    except leases.LeaseLost:
        logger.warning("run %s is no longer ours; its end was not stored", run.pk)


class Progress:
    """Stores how far the run is, at most twice a second, and stops it when somebody asked for that."""

    def __init__(self, run: TrainingRun, lost: threading.Event) -> None:
        self._run, self._lost = run, lost
        self._written, self._last_step = 0.0, ""

    def step(self, step: str, fraction: float, point: Mapping[str, Any] | None = None) -> None:
        """Raises fusion.Cancelled when the run was cancelled, LeaseLost when it is no longer ours."""
        if self._lost.is_set():
            raise leases.LeaseLost(f"run {self._run.pk}")
        if point is None and step == self._last_step and time.monotonic() - self._written < WRITE_EVERY_S:
            return
        self._written, self._last_step = time.monotonic(), step
        if not runs.note_progress(self._run, step=step, fraction=fraction, now=timezone.now(), point=point):
            self._run.refresh_from_db(fields=["cancel_requested"])
            if self._run.cancel_requested:
                raise fusion.Cancelled("cancelled on request")
            raise leases.LeaseLost(f"run {self._run.pk}")

    def during(self, prefix: str, low: float, high: float) -> Any:
        """The callback for fusion.train: False stops it."""

        def report(at: fusion.Progress) -> bool:
            point = None
            if at.train_loss is not None or at.tuning_loss is not None:
                point = {
                    "step": at.step,
                    "epoch": at.epoch,
                    "train_loss": at.train_loss,
                    "tuning_loss": at.tuning_loss,
                }
            try:
                self.step(f"{prefix}: {at.step}", low + (high - low) * at.fraction, point)
            except fusion.Cancelled:
                return False
            return True

        return report
