"""Retraining runs: start, cancel, watch, succeed. No torch here; the work itself is `training.execute`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Max

from cds.audit import recording
from cds.errors import Conflict, Invalid
from cds.jobs import leases, outbox
from cds.jobs.models import WorkState
from cds.patients import access
from cds.registry import cohorts, model_card
from cds.registry.models import ModelVersion, TrainingRun

PRIVATE = {"fusion": "late", "finetune": "none"}  # what DP-SGD needs (`fusion.privacy`)
KEEP_HISTORY = 600  # entries of the loss curve


@dataclass(frozen=True, slots=True)
class Override:
    """A field of fusion.FusionConfig that a person may set for a run. Checked against fusion by a test."""

    name: str
    label: str
    kind: type
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def is_fraction(self) -> bool:
        return self.kind is float


OVERRIDES: dict[str, Override] = {
    override.name: override
    for override in (
        Override(
            "modalities",
            "Modalities",
            list,
            choices=("tabular", "series", "text", "genomics", "image", "cine", "volume"),
        ),
        Override("fusion", "Fusion", str, choices=("late", "gated", "attention", "stacking")),
        Override("image_backbone", "Image encoder", str),
        Override("cine_backbone", "Cine encoder", str),
        Override("text_backbone", "Text encoder", str),
        Override("volume_backbone", "Volume encoder of slices", str),
        Override("volume_kind", "Volumes as", str, choices=("2.5d", "3d")),
        Override("volume_size", "Volume side in pixels", int, 16, 512),
        Override("volume_extent_mm", "Volume side in mm", float, 10, 2000),
        Override("volume_step_mm", "Volume step between slices in mm", float, 0.2, 50),
        Override("volume_slices", "Volume slices kept", int, 1, 256),
        Override(
            "cine_pooling", "Frames pooled by", str, choices=("gru", "lstm", "attention", "mean", "frame")
        ),
        Override(
            "imbalance",
            "Against rare outcomes",
            str,
            choices=("none", "class-weights", "focal", "balanced-sampling"),
        ),
        Override("image_size", "Image side in pixels", int, 16, 1024),
        Override("cine_size", "Cine side in pixels", int, 16, 512),
        Override("cine_frames", "Frames kept of a clip", int, 1, 128),
        Override("series_hours", "Hours of labs and vitals", float, 1, 8760),
        Override("max_images", "Images a patient", int, 1, 8),
        Override("max_notes", "Notes a patient", int, 1, 50),
        Override("width", "Width of an embedding", int, 2, 512),
        Override("folds", "Folds", int, 2, 20),
        Override("epochs", "Epochs of a network at most", int, 1, 1000),
        Override("patience", "Epochs without progress before stopping", int, 1, 200),
        Override("batch_size", "Patients a batch", int, 2, 1024),
        Override("accumulate", "Batches a step", int, 1, 64),
        Override("learning_rate", "Learning rate", float, 1e-6, 1),
        Override("weight_decay", "Weight decay", float, 0, 1),
        Override("modality_dropout", "Modality dropout", float, 0, 0.95),
        Override(
            "finetune", "What of the image encoder is trained", str, choices=("none", "head", "gradual")
        ),
        Override("finetune_epochs", "Epochs of that at most", int, 1, 200),
        Override("augment", "Training pictures changed", str, choices=("none", "upright", "any-way-up")),
        Override("finetune_rate", "Learning rate of that", float, 1e-6, 1),
        Override("interval_level", "Stated coverage of the interval", float, 0.5, 0.99),
        Override("dp_noise", "Privacy noise (0: none)", float, 0, 1000),
        Override("dp_clip", "Privacy: largest gradient of one patient", float, 1e-3, 1000),
        Override("dp_delta", "Privacy: delta", float, 1e-12, 0.01),
        Override("seed", "Seed", int, 0, 2**31 - 1),
    )
}


def start(
    *,
    outcomes: Sequence[str],
    sources: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    note: str = "",
    by: recording.Actor,
    user: User | None,
    now: datetime,
) -> TrainingRun:
    """Queue a run. `user` None: the machine itself (demo, command line); a person needs the permission.

    A run that finds another one running waits in its queue.
    """
    if user is not None:
        access.check_start_runs(user)
    overrides = check_overrides(config or {})
    with transaction.atomic():
        cohort = cohorts.draw(outcomes=outcomes, sources=sources, now=now, seed=int(overrides.get("seed", 0)))
        run = TrainingRun.objects.create(
            cohort=cohort,
            outcomes=cohort.outcomes,
            config=overrides,
            note=note[:300],
            requested_by=user,
            step="waiting for a worker",
            queued_at=now,
        )
        leases.queue(run, now=now)
        outbox.tell("run", run.pk, now=now)
        recording.record(
            by=by,
            action="run.start",
            object_type="TrainingRun",
            object_id=run.pk,
            now=now,
            outcomes=run.outcomes,
        )
    return run


def check_overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides, typed; Invalid says what a field takes. Text is read as a form sends it."""
    checked: dict[str, Any] = {}
    for name, given in config.items():
        override = OVERRIDES.get(name)
        if override is None:
            raise Invalid(f"{name!r} is not a setting of a run; there are: {', '.join(sorted(OVERRIDES))}")
        checked[name] = _read(override, given)
    _check_private(checked)
    return checked


def _check_private(checked: Mapping[str, Any]) -> None:
    """Raises Invalid for settings that a private training cannot have, or that only it has."""
    if not checked.get("dp_noise"):
        if named := sorted({"dp_clip", "dp_delta"} & checked.keys()):
            raise Invalid(f"{' and '.join(named)} say how a private training goes: set dp_noise above 0 too")
        return
    for name, needed in PRIVATE.items():
        if checked.get(name, needed) != needed:
            raise Invalid(f"with dp_noise (a private training) {name} must be {needed}, not {checked[name]}")


def _read(override: Override, given: Any) -> Any:
    if override.kind is list:
        items = given.replace("+", ",").split(",") if isinstance(given, str) else list(given)
        chosen = [str(item).strip() for item in items if str(item).strip()]
        if not chosen or set(chosen) - set(override.choices):
            raise Invalid(f"{override.name} takes some of: {', '.join(override.choices)}")
        return [choice for choice in override.choices if choice in chosen]
    try:
        value = override.kind(given)
    except (TypeError, ValueError) as fault:
        raise Invalid(f"{override.name} takes a {override.kind.__name__}, not {given!r}") from fault
    if override.choices and value not in override.choices:
        raise Invalid(f"{override.name} takes one of: {', '.join(override.choices)}")
    if override.low is not None and override.high is not None and not override.low <= value <= override.high:
        raise Invalid(f"{override.name} must lie in {override.low:g} to {override.high:g}")
    return value


def cancel(run: TrainingRun, *, by: recording.Actor, user: User | None, now: datetime) -> TrainingRun:
    """Ask the run to stop; one still waiting stops at once, one at work within seconds."""
    if user is not None:
        access.check_start_runs(user)
    with transaction.atomic():
        waiting = TrainingRun.objects.filter(pk=run.pk, work_state=WorkState.QUEUED)
        if not waiting.update(work_state=WorkState.CANCELLED, finished_at=now, step="cancelled"):
            asked = TrainingRun.objects.filter(pk=run.pk, work_state=WorkState.RUNNING).update(
                cancel_requested=True
            )
            if not asked:
                raise Conflict("this run has already ended")
        outbox.tell("run", run.pk, now=now)
        recording.record(by=by, action="run.cancel", object_type="TrainingRun", object_id=run.pk, now=now)
    run.refresh_from_db()
    return run


def is_other_running(run_id: UUID | str, *, now: datetime) -> bool:
    """Whether another run is at work right now."""
    busy = TrainingRun.objects.filter(work_state=WorkState.RUNNING, lease_until__gte=now)
    return busy.exclude(pk=run_id).exists()


def note_progress(
    run: TrainingRun, *, step: str, fraction: float, now: datetime, point: Mapping[str, Any] | None = None
) -> bool:
    """Store how far a run is and tell the screens; False when it should stop (cancelled, or not ours)."""
    if point is not None:
        run.history = [*run.history, {**_known(point), "at": now.isoformat()}][-KEEP_HISTORY:]
    run.step, run.fraction = step, max(0.0, min(1.0, fraction))
    held = TrainingRun.objects.filter(pk=run.pk, work_state=WorkState.RUNNING, lease_owner=run.lease_owner)
    with transaction.atomic():
        if not held.update(step=run.step, fraction=run.fraction, history=run.history):
            return False
        outbox.tell("run", run.pk, now=now)
    return not TrainingRun.objects.filter(pk=run.pk, cancel_requested=True).exists()


def succeed(
    run: TrainingRun,
    *,
    path: str,
    digest: str,
    encoders: Mapping[str, str],
    metadata: Mapping[str, Any],
    report: Mapping[str, Any],
    by: recording.Actor,
    now: datetime,
) -> ModelVersion:
    """Register the candidate and end the run, together. Raises LeaseLost, storing nothing."""
    name = "+".join(run.outcomes)
    with transaction.atomic():
        leases.check_still_ours(run)
        newest = ModelVersion.objects.filter(name=name).aggregate(number=Max("number"))["number"] or 0
        version = ModelVersion.objects.create(
            name=name,
            number=newest + 1,
            run=run,
            outcomes=run.outcomes,
            path=path,
            digest=digest,
            encoders=dict(encoders),
            metadata=_known(metadata),
            report=_known(report),
            simulated=run.simulated,
            created_at=now,
        )
        model_card.fill(version, now=now)
        run.step, run.fraction = "done", 1.0
        TrainingRun.objects.filter(pk=run.pk).update(step=run.step, fraction=run.fraction)
        leases.finish(run, now=now)
        outbox.tell("run", run.pk, now=now)
        outbox.tell("model", version.pk, now=now)
        recording.record(
            by=by,
            action="run.succeed",
            object_type="ModelVersion",
            object_id=version.pk,
            now=now,
            run=str(run.pk),
            digest=digest,
        )
    return version


def _known(value: Any) -> Any:
    """As JSON can hold it: what is not a number (nan, infinite) is not known, so None."""
    if isinstance(value, Mapping):
        return {str(key): _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def end(run: TrainingRun, state: WorkState, *, reason: str, by: recording.Actor, now: datetime) -> None:
    """End a run without a model: failed for good, or cancelled."""
    with transaction.atomic():
        leases.finish(run, now=now, state=state, failure=reason)
        TrainingRun.objects.filter(pk=run.pk).update(step=state.label.lower())
        outbox.tell("run", run.pk, now=now)
        recording.record(
            by=by,
            action=f"run.{state.value}",
            object_type="TrainingRun",
            object_id=run.pk,
            now=now,
            outcome="failed",
            reason=reason[:300],
        )
