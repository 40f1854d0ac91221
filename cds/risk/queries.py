"""Reading risks: the worklist and the panel, as frozen dataclasses (`cds.risk.seen`). No torch here.

The numbers are those that were stored, never recomputed: what is on the screen equals the stored prediction.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from numpy.typing import NDArray

from cds import catalogue
from cds.catalogue import MODALITY_WORDS
from cds.errors import NotFound
from cds.jobs.models import WorkState
from cds.patients import access
from cds.patients.models import Patient
from cds.registry import queries as registry_queries
from cds.registry.models import ModelVersion
from cds.registry.outcomes import OUTCOMES, reason_without_number
from cds.risk import evidence, thresholds
from cds.risk.lists import age_years, full_name, record_number, worklist
from cds.risk.models import HeatMap, Response, RiskAssessment, RiskPrediction
from cds.risk.responding import OVERRIDE_REASONS
from cds.risk.seen import (
    Answer,
    Banner,
    CardScore,
    ModelFacts,
    OutcomePanel,
    Panel,
    ResponseView,
    TrendPoint,
)
from cds.risk.standing import DataState, Standing, left_out_in_words, stand

__all__ = [
    "banner", "find_assessment", "find_card_score", "find_heat_map", "find_prediction",
    "find_response", "heat_map_values", "panel", "worklist",
]  # fmt: skip
NEW_MODEL = timedelta(days=14)
TREND_POINTS = 200


def find_prediction(viewer: access.Viewer, prediction_id: object) -> RiskPrediction:
    """A prediction of a patient this person may see; NotFound otherwise."""
    found = (
        RiskPrediction.objects.filter(assessment__patient__in=access.visible_patients(viewer))
        .select_related("assessment__patient", "assessment__version")
        .filter(pk=str(prediction_id) if str(prediction_id).isdigit() else 0)
        .first()
    )
    if found is None:
        raise NotFound("no such score, or not of one of your patients")
    return found


def find_assessment(viewer: access.Viewer, assessment_id: object) -> RiskAssessment:
    """An assessment of a patient this person may see; NotFound otherwise."""
    try:
        key = uuid.UUID(str(assessment_id))
    except ValueError:
        key = uuid.UUID(int=0)
    rows = RiskAssessment.objects.filter(patient__in=access.visible_patients(viewer))
    found = rows.select_related("patient", "version").filter(pk=key).first()
    if found is None:
        raise NotFound("no such score, or not of one of your patients")
    return found


def find_card_score(
    viewer: access.Viewer, patient: Patient, assessment_id: str, outcome: str
) -> CardScore | None:
    """What a card said of this patient's outcome; None for another patient's, or where it gave no number."""
    found = (
        RiskPrediction.objects.filter(assessment__patient__in=access.visible_patients(viewer))
        .select_related("assessment")
        .filter(assessment__pk=assessment_id, assessment__patient=patient, outcome=outcome)
        .first()
    )
    if found is None:
        return None
    return CardScore(
        assessment_id=assessment_id,
        risk=found.risk,
        low=found.low,
        high=found.high,
        category_word=thresholds.WORDS[thresholds.Category(found.category)],
        as_of=found.assessment.as_of,
        scored_at=found.assessment.finished_at,
    )


def find_response(viewer: access.Viewer, response_id: object) -> Response:
    """An answer about a patient this person may see; NotFound otherwise."""
    try:
        key = uuid.UUID(str(response_id))
    except ValueError:
        key = uuid.UUID(int=0)
    rows = Response.objects.filter(prediction__assessment__patient__in=access.visible_patients(viewer))
    found = rows.select_related("prediction__assessment").filter(pk=key).first()
    if found is None:
        raise NotFound("no such answer, or not about one of your patients")
    return found


def find_heat_map(viewer: access.Viewer, heat_map_id: object) -> HeatMap:
    """A heat map of a patient this person may see; NotFound otherwise."""
    rows = HeatMap.objects.filter(prediction__assessment__patient__in=access.visible_patients(viewer))
    found = (
        rows.select_related("prediction__assessment", "series")
        .filter(pk=str(heat_map_id) if str(heat_map_id).isdigit() else 0)
        .first()
    )
    if found is None:
        raise NotFound("no such heat map, or not of one of your patients")
    return found


def heat_map_values(heat_map: HeatMap) -> NDArray[np.float32]:
    """The heat map's values, float32 [h, w] in [0, 1]."""
    path = Path(settings.STUDY_STORE) / heat_map.path
    if not path.is_file():
        raise NotFound("the heat map's file is gone")
    values: NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32)
    return values


# -- the panel -----------------------------------------------------------------------------------------
def panel(viewer: access.Viewer, patient: Patient, *, now: datetime) -> Panel:
    """The risk panel. The look itself is audited by `access.get_patient`, which gave the patient."""
    if not access.visible_patients(viewer).filter(pk=patient.pk).exists():
        raise NotFound("no such patient, or not one of your units")
    outcomes = []
    for version in registry_queries.active_versions():
        standing = stand(patient, version, now=now)
        active = registry_queries.active_outcomes(version)
        outcomes += [_outcome(patient, standing, outcome, now=now) for outcome in active]
    return Panel(banner=banner(patient, now=now), outcomes=tuple(outcomes), now=now)


def banner(patient: Patient, *, now: datetime) -> Banner:
    """Who the panel is about."""
    return Banner(
        patient_id=str(patient.pk),
        name=full_name(patient),
        birth_date=patient.birth_date.isoformat() if patient.birth_date else "",
        age_years=age_years(patient, now),
        sex=patient.sex,
        record_number=record_number(patient),
        location=patient.unit.name if patient.unit else "",
        source=patient.source.title,
        simulated=patient.source.simulated,
        deceased=patient.deceased,
        paused_since=patient.source.paused_at,
    )


def _outcome(patient: Patient, standing: Standing, outcome: str, *, now: datetime) -> OutcomePanel:
    version, assessment = standing.version, standing.assessment
    prediction = assessment.predictions.filter(outcome=outcome).first() if assessment else None
    state, reason = standing.state, standing.reason
    if assessment is not None and prediction is None and not assessment.abstained:
        state, reason = DataState.NOT_ELIGIBLE, reason_without_number(outcome)
    said: dict[str, Any] = prediction.explanation if prediction else {}
    spec = OUTCOMES.get(outcome)
    as_of = assessment.as_of if assessment else None
    drivers, notes = evidence.drivers(patient, said, as_of)
    images = evidence.images(patient, assessment, prediction)
    return OutcomePanel(
        outcome=outcome,
        label=prediction.label if prediction else spec.label if spec else outcome,
        horizon_hours=prediction.horizon_hours if prediction else spec.horizon_hours if spec else 0.0,
        state=state,
        reason=reason,
        freshness=_freshness(assessment, version),
        as_of=as_of,
        retrospective=bool(assessment and assessment.retrospective),
        scored_at=assessment.finished_at if assessment else None,
        data_until=assessment.data_until if assessment else None,
        answer=_answer(prediction) if prediction else None,
        assessment_id=str(assessment.pk) if assessment else "",
        failed_assessment_id=_failed(patient, version),
        prediction_id=prediction.pk if prediction else None,
        trend=_trend(patient, outcome, now),
        missing_modalities=tuple(
            MODALITY_WORDS.get(m, m) for m in (assessment.missing if assessment else [])
        ),
        missing_fields=tuple(_labels(assessment.missing_fields if assessment else [])),
        contributions=evidence.contributions(said, assessment),
        drivers=drivers,
        notes=notes,
        images=tuple(image for image in images if not image.is_cine),
        cines=tuple(image for image in images if image.is_cine),
        measurements=evidence.measurements(patient, as_of),
        model=_model_facts(version, assessment, outcome, now),
        responses=_responses(patient, outcome),
    )


def _answer(prediction: RiskPrediction) -> Answer:
    spec = OUTCOMES.get(prediction.outcome)
    phrase = spec.phrase if spec else f"have this outcome: {prediction.label}"
    category = thresholds.Category(prediction.category)
    return Answer(
        risk=prediction.risk,
        low=prediction.low,
        high=prediction.high,
        level=prediction.level,
        base_rate=prediction.base_rate,
        category=prediction.category,
        category_word=thresholds.WORDS[category],
        sentence=f"{round(prediction.risk * 100)} in 100 patients like this {phrase}",
        threshold=thresholds.threshold_of(prediction.outcome),
        policy=thresholds.policy_ahead(prediction.outcome, prediction.category),
        policy_link=thresholds.policy_link(prediction.outcome),
        summary=str(prediction.explanation.get("summary", "")),
    )


def _freshness(assessment: RiskAssessment | None, version: ModelVersion) -> str:
    """ "Scored 14:05 from data to 13:58. 12 of 14 inputs present; missing: lactate."""
    if assessment is None or assessment.finished_at is None:
        return "Not scored yet."
    known = len(version.metadata.get("config", {}).get("fields", [])) or None
    missing = len(assessment.missing_fields)
    until = f"from data to {_clock(assessment.data_until)}" if assessment.data_until else "from no dated data"
    said = f"Scored {_clock(assessment.finished_at)} {until}"
    if assessment.retrospective:
        said += f", as the record stood on {_clock(assessment.as_of)} (looking back)"
    inputs = (
        f"{known - missing} of {known} inputs present"
        if known and known >= missing
        else f"{missing} inputs missing"
    )
    pending = ", ".join(MODALITY_WORDS.get(m, m).lower() for m in assessment.pending)
    absent = ", ".join(MODALITY_WORDS.get(m, m).lower() for m in assessment.missing)
    parts = [f"{said}.", f"{inputs}."]
    if pending:
        parts.append(f"Still being read: {pending}.")
    if absent:
        parts.append(f"Not available: {absent}; the score uses the rest.")
    if left_out := left_out_in_words(assessment):
        parts.append(f"{left_out[0].upper()}{left_out[1:]}.")
    return " ".join(parts)


def _clock(at: datetime | None) -> str:
    return at.astimezone(_zone()).strftime("%-d %b %Y %H:%M") if at else ""


def _zone() -> Any:
    from django.utils import timezone

    return timezone.get_current_timezone()


def _failed(patient: Patient, version: ModelVersion) -> str:
    newest = (
        RiskAssessment.objects.filter(patient=patient, version=version)
        .order_by("-revision", "-queued_at")
        .first()
    )
    return str(newest.pk) if newest is not None and newest.work_state == WorkState.FAILED else ""


def _trend(patient: Patient, outcome: str, now: datetime) -> tuple[TrendPoint, ...]:
    """Scores of one outcome by any version, oldest first: the last 7 days before the newest."""
    rows = (
        RiskPrediction.objects.filter(assessment__patient=patient, outcome=outcome)
        .select_related("assessment__version")
        .prefetch_related("responses")
        .order_by("-assessment__as_of", "-assessment__revision")
    )
    points: list[TrendPoint] = []
    newest: datetime | None = None
    seen: set[tuple[datetime, object]] = set()
    for row in rows[:TREND_POINTS]:
        at = row.assessment.as_of
        newest = newest or at
        if at < newest - timedelta(days=7):
            break
        said = (at, row.assessment.version_id)
        if said in seen:
            continue  # the same moment scored again: the newest record of it counts
        seen.add(said)
        answered = max(row.responses.all(), key=lambda response: response.at, default=None)
        points.append(
            TrendPoint(
                at,
                row.risk,
                row.low,
                row.high,
                row.assessment.version.label,
                response=answered.kind if answered else "",
            )
        )
    points.reverse()
    marked = []
    for before, point in zip([None, *points], points, strict=False):
        changed = before is not None and before.version_label != point.version_label
        marked.append(
            TrendPoint(
                point.at, point.risk, point.low, point.high, point.version_label, changed, point.response
            )
        )
    return tuple(marked)


def _model_facts(
    version: ModelVersion, assessment: RiskAssessment | None, outcome: str, now: datetime
) -> ModelFacts:
    since, has_earlier = registry_queries.active_since(outcome)
    measured = version.report.get("outcomes", {}).get(outcome, {}).get("auroc") or {}
    auroc = (
        (float(measured["value"]), float(measured["low"]), float(measured["high"]))
        if measured.get("value") is not None and measured.get("low") is not None
        else None
    )
    counts = version.metadata.get("cohort_counts", {})
    return ModelFacts(
        version_id=str(version.pk),
        label=version.label,
        active_since=since,
        is_new=since is not None and now - since < NEW_MODEL,
        has_earlier=has_earlier,
        trained_patients=counts.get("patients"),
        simulated=version.simulated,
        digest=version.digest,
        inputs_digest=assessment.inputs_digest if assessment else "",
        auroc=auroc,
        correlation_id=assessment.correlation_id if assessment else "",
        basis=tuple((one["type"], one["id"]) for one in (assessment.basis if assessment else [])),
        unused=tuple(
            MODALITY_WORDS.get(name, name)
            for name in sorted(registry_queries.unused_modalities(version.metadata, version.outcomes))
        ),
        milliseconds=assessment.milliseconds if assessment else {},
    )


def _responses(patient: Patient, outcome: str) -> tuple[ResponseView, ...]:
    rows = (
        Response.objects.filter(prediction__assessment__patient=patient, prediction__outcome=outcome)
        .select_related("by")
        .order_by("-at", "-pk")
    )
    return tuple(
        ResponseView(
            response_id=str(row.pk),
            kind=row.kind,
            by=(row.by.get_full_name() or row.by.get_username()) if row.by else "from the EHR",
            at=row.at,
            reason=OVERRIDE_REASONS[row.reason_code].words
            if row.reason_code in OVERRIDE_REASONS
            else row.reason_code,
            comment=row.comment,
            until=row.until,
            via=row.via,
        )
        for row in rows[:20]
    )


def _labels(names: Iterable[str]) -> list[str]:
    return [catalogue.label_of(name) for name in names]
