"""Reading the registry: which version answers, what there is, how runs go. No torch here."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings

from cds.errors import NotFound
from cds.jobs.models import WorkState
from cds.registry.models import ActiveModel, CohortMember, ModelVersion, Promotion, TrainingRun
from cds.registry.outcomes import OUTCOMES


def active_version(outcome: str) -> ModelVersion | None:
    """The version that answers for an outcome, or None."""
    held = ActiveModel.objects.filter(pk=outcome).select_related("version").first()
    return held.version if held else None


def answering(outcome: str) -> ModelVersion | None:
    """The version that answers for an outcome, without its metadata and report, which may be large."""
    held = ActiveModel.objects.filter(pk=outcome).values("version")
    return ModelVersion.objects.filter(pk__in=held).defer("metadata", "report").first()


def active_versions() -> list[ModelVersion]:
    """Every version that answers for at least one outcome, by name."""
    return list(
        ModelVersion.objects.filter(pk__in=ActiveModel.objects.values("version")).order_by("name", "number")
    )


def active_outcomes(version: ModelVersion) -> list[str]:
    """The outcomes this version answers for now."""
    names = ActiveModel.objects.filter(version=version).values_list("outcome", flat=True)
    return sorted(names, key=_place)


def active_since(outcome: str) -> tuple[datetime | None, bool]:
    """When the active version of an outcome became active, and whether another answered before it."""
    held = ActiveModel.objects.filter(pk=outcome).first()
    return (held.since, held.previous_id is not None) if held else (None, False)


def list_active() -> list[ActiveModel]:
    """What is active for each outcome, with its version and the one before; outcomes in their own order."""
    held = ActiveModel.objects.select_related("version", "previous")
    return sorted(held, key=lambda active: _place(active.outcome))


def _place(outcome: str) -> tuple[int, str]:
    """Outcomes come as `OUTCOMES` lists them: the one a ward acts on first."""
    known = list(OUTCOMES)
    return (known.index(outcome) if outcome in known else len(known), outcome)


def list_versions(*, stage: str = "") -> list[ModelVersion]:
    """Versions, newest first."""
    rows = ModelVersion.objects.select_related("run").order_by("-created_at")
    return list(rows.filter(stage=stage) if stage else rows)


def get_version(version_id: object) -> ModelVersion:
    """One version by its id; NotFound."""
    found = ModelVersion.objects.select_related("run__cohort").filter(pk=_uuid(version_id)).first()
    if found is None:
        raise NotFound("no such model version")
    return found


def find_version(label: str) -> ModelVersion | None:
    """A version by id, by "name v3" or "name:3"; with a name alone, its newest."""
    try:
        return ModelVersion.objects.filter(pk=uuid.UUID(label)).first()
    except ValueError:
        name, _, number = label.replace(" v", ":").partition(":")
        rows = ModelVersion.objects.filter(name=name.strip())
        if number.strip().isdigit():
            rows = rows.filter(number=int(number))
        return rows.order_by("-number").first()


def same_outcomes(version: ModelVersion) -> list[ModelVersion]:
    """The other versions that could answer for one of its outcomes, newest first."""
    asked = set(version.outcomes)
    rows = ModelVersion.objects.exclude(pk=version.pk).select_related("run").order_by("-created_at")
    return [other for other in rows.defer("metadata", "report") if asked & set(other.outcomes)]


def held_out_of(versions: Sequence[ModelVersion]) -> list[set[tuple[object, object]]]:
    """Per version the moments (patient, as_of) it was evaluated on; empty where its cohort is not known."""
    cohorts = [version.run.cohort_id if version.run else None for version in versions]
    found: dict[object, set[tuple[object, object]]] = {cohort: set() for cohort in cohorts}
    rows = CohortMember.objects.filter(cohort__in=[one for one in cohorts if one], split="held_out")
    for cohort, *moment in rows.values_list("cohort_id", "patient_id", "as_of"):
        found[cohort].add((moment[0], moment[1]))
    return [found[cohort] for cohort in cohorts]


def list_runs(limit: int = 50) -> list[TrainingRun]:
    """Runs, newest first, with their version where they made one."""
    rows = TrainingRun.objects.select_related("cohort", "requested_by", "version").order_by("-queued_at")
    return list(rows[:limit])


def get_run(run_id: object) -> TrainingRun:
    """One run by its id; NotFound."""
    found = (
        TrainingRun.objects.select_related("cohort", "requested_by", "version")
        .filter(pk=_uuid(run_id))
        .first()
    )
    if found is None:
        raise NotFound("no such run")
    return found


def running_run() -> TrainingRun | None:
    """The run at work, if any."""
    return TrainingRun.objects.filter(work_state=WorkState.RUNNING).order_by("-started_at").first()


def open_promotions() -> list[Promotion]:
    """Requests waiting for a second person, oldest first."""
    rows = Promotion.objects.filter(approved=None).select_related("version", "requested_by")
    return list(rows.order_by("requested_at"))


def list_promotions(version: ModelVersion) -> list[Promotion]:
    """What was asked and decided about a version, newest first."""
    rows = Promotion.objects.filter(version=version).select_related("requested_by", "decided_by")
    return list(rows.order_by("-requested_at"))


def get_promotion(promotion_id: object) -> Promotion:
    """One request by its id; NotFound."""
    found = Promotion.objects.select_related("version", "requested_by").filter(pk=_uuid(promotion_id)).first()
    if found is None:
        raise NotFound("no such promotion request")
    return found


def unused_modalities(metadata: Mapping[str, Any], outcomes: Sequence[str]) -> set[str]:
    """Modalities the model says nothing from, for any of these outcomes or a step towards one (`following`):
    too few patients had them in training."""
    left_out = metadata.get("left_out", {})
    if not left_out:
        return set()
    steps = [one["name"] for one in metadata.get("outputs", ()) if one.get("event") in outcomes]
    named = {key.partition(", ")[0] for key in left_out}
    return {name for name in named if all(f"{name}, {asked}" in left_out for asked in (*outcomes, *steps))}


def bundle_folder(version: ModelVersion) -> Path:
    """Where the bundle of a version lies."""
    return settings.BUNDLE_STORE / version.path


def _uuid(given: object) -> uuid.UUID:
    try:
        return uuid.UUID(str(given))
    except ValueError as fault:
        raise NotFound("not an id") from fault
