"""A candidate beside what is in use: both asked about the same patients. Worker only (torch).

Splits are drawn anew with each cohort, so the version in use may have learned from some of the patients that
the candidate did not. They are left out: what is left neither has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import fusion
from cds.registry import loading, queries
from cds.registry.models import Cohort, CohortMember, ModelVersion, TrainingRun
from fusion import Bundle, Example

LEARNED_FROM = ("train", "tuning")


class Read(Protocol):
    """The held-out members of a cohort, in the same order each time, as a model with these encoders reads
    them."""

    def __call__(self, bundle: Bundle, encoders: Mapping[str, str]) -> list[Example]: ...


def beside_active(
    run: TrainingRun,
    bundle: Bundle,
    held_out: Sequence[Example],
    encoders: Mapping[str, str],
    read: Read,
) -> list[dict[str, Any]]:
    """For each version that answers for an outcome of the run: {"version", "label", "outcomes"}, the last as
    `fusion.evaluate_beside` says it; or "note", why there is nothing to say.

    held_out  the run's, as the candidate (with `encoders`) reads them
    """
    found = []
    for version in _answering(run.outcomes):
        told: dict[str, Any] = {"version": str(version.pk), "label": version.label, "outcomes": {}}
        try:
            told["outcomes"] = _beside(run.cohort, version, bundle, held_out, encoders, read)
        except fusion.Cancelled:
            raise
        except (fusion.FusionError, OSError) as fault:
            told["note"] = f"{version.label} could not be asked: {fault}"
        else:
            if not told["outcomes"]:
                told["note"] = _nobody(version)
        found.append(told)
    return found


def _answering(outcomes: Sequence[str]) -> list[ModelVersion]:
    held = [active for active in queries.list_active() if active.outcome in outcomes]
    return list({active.version_id: active.version for active in held}.values())


def _beside(
    cohort: Cohort,
    version: ModelVersion,
    bundle: Bundle,
    held_out: Sequence[Example],
    encoders: Mapping[str, str],
    read: Read,
) -> dict[str, Any]:
    if version.run is None:
        return {}
    members = CohortMember.objects.filter(cohort=version.run.cohort_id, split__in=LEARNED_FROM)
    learned = {str(patient) for patient in members.values_list("patient_id", flat=True)}
    asked = [e for e in held_out if _patient(e) not in learned]
    if not asked:
        return {}
    other = loading.get_bundle(version)
    is_read_alike = other.config.series_hours == bundle.config.series_hours and all(
        encoders.get(modality) == key for modality, key in version.encoders.items()
    )
    if is_read_alike:
        return fusion.evaluate_beside(bundle, asked, other, asked)
    kept = {e.inputs.key for e in asked}
    same = [e for e in read(other, version.encoders) if e.inputs.key in kept]
    return fusion.evaluate_beside(bundle, asked, other, same)


def _patient(example: Example) -> str:
    """Whose moment it is (see `training.build_examples`)."""
    return example.inputs.key.partition(":")[0]


def _nobody(version: ModelVersion) -> str:
    if version.run is None:
        return f"whom {version.label} learned from is not known here"
    return f"{version.label} has learned from all of the patients held out"
