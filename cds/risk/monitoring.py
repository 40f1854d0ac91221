"""Do recent patients still look like those a model learned from? Worker only (torch); see `risk.shifts`.

Every few hours, for each active version: the newest score of each of the last patients, its inputs built as
they were then, beside what the bundle keeps of its training inputs. Only counts and shares are stored.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

import fusion
from cds.features import building
from cds.jobs.models import WorkState
from cds.registry import loading
from cds.registry import queries as registry_queries
from cds.registry.models import ModelVersion
from cds.risk.models import RiskAssessment, ShiftReport

logger = logging.getLogger(__name__)
PATIENTS = 200  # with the newest scores
KEPT = 60  # reports a version


def watch_inputs(*, now: datetime) -> int:
    """Compare the inputs of every active version; how many reports were made."""
    return sum(compare(version, now=now) is not None for version in registry_queries.active_versions())


def compare(version: ModelVersion, *, now: datetime, patients: int = PATIENTS) -> ShiftReport | None:
    """One report, kept; None when the model keeps nothing to compare with, or nobody was scored yet."""
    bundle = loading.get_bundle(version)
    if bundle.summary is None:
        return None
    recent = [_inputs(one, bundle) for one in _newest(version, patients)]
    if not recent:
        return None
    found = fusion.compare_inputs(bundle.summary, recent, bundle.config, bundle.embedder).to_json()
    report = ShiftReport.objects.create(
        version=version, at=now, scores=found["patients"], inputs=found["inputs"], pictures=found["pictures"]
    )
    old = ShiftReport.objects.filter(version=version).order_by("-at").values_list("pk", flat=True)[KEPT:]
    ShiftReport.objects.filter(pk__in=list(old)).delete()
    if coloured := [
        one["name"] for one in found["inputs"] if one["band"] in (fusion.Band.AMBER, fusion.Band.RED)
    ]:
        logger.warning("inputs of %s have shifted: %s", version.label, ", ".join(coloured))
    return report


def _newest(version: ModelVersion, patients: int) -> list[RiskAssessment]:
    """The newest finished score of each of the patients scored last."""
    rows = (
        RiskAssessment.objects.filter(version=version, work_state=WorkState.DONE)
        .select_related("patient")
        .order_by("-finished_at")
    )
    newest: dict[Any, RiskAssessment] = {}
    for row in rows.iterator(200):
        newest.setdefault(row.patient_id, row)
        if len(newest) >= patients:
            break
    return list(newest.values())


def _inputs(assessment: RiskAssessment, bundle: fusion.Bundle) -> fusion.PatientInputs:
    return building.build_inputs(
        assessment.patient,
        as_of=assessment.as_of,
        encoders=assessment.version.encoders,
        series_hours=bundle.config.series_hours,
    ).inputs
