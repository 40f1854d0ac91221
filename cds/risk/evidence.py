"""What stands behind a score on the panel: contributions, drivers with their sources, images, measurements.

Read from what was stored with the score and from the record as it stood then; nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F, Q

from cds import catalogue
from cds.catalogue import MEASURED, MODALITY_WORDS, Measured
from cds.patients.models import Note, Observation, Patient
from cds.risk.models import HeatMap, RiskAssessment, RiskPrediction
from cds.risk.seen import (
    ContributionView,
    DriverView,
    HeatMapView,
    ImageView,
    MeasurementView,
    NoteHit,
    RawValue,
)
from cds.studies.models import Measurement, Series

STRONG = 0.02  # a sentence that moves the estimate by two points or more
RAW_VALUES, SHOWN_SERIES = 12, 6


def contributions(said: Mapping[str, Any], assessment: RiskAssessment | None) -> tuple[ContributionView, ...]:
    """What each modality added, largest first; absent and pending ones say so."""
    if assessment is None:
        return ()
    views = []
    for one in said.get("contributions", []):
        modality = str(one["modality"])
        present = modality in assessment.present
        note = "" if present else "not available: the score uses the rest"
        if modality in assessment.pending:
            note = "still being read"
        views.append(
            ContributionView(
                modality,
                MODALITY_WORDS.get(modality, modality),
                float(one["points"]),
                present,
                modality in assessment.pending,
                note,
            )
        )
    listed = {view.modality for view in views}
    for modality in [*assessment.pending, *assessment.missing]:
        if modality not in listed:
            pending = modality in assessment.pending
            note = "still being read" if pending else "not available: the score uses the rest"
            views.append(
                ContributionView(modality, MODALITY_WORDS.get(modality, modality), 0.0, False, pending, note)
            )
            listed.add(modality)
    return tuple(sorted(views, key=lambda view: -abs(view.points)))


def drivers(
    patient: Patient, said: Mapping[str, Any], as_of: datetime | None
) -> tuple[tuple[DriverView, ...], tuple[NoteHit, ...]]:
    """What moved the estimate, largest first, with its source values; sentences of notes apart."""
    drivers: list[DriverView] = []
    hits: list[NoteHit] = []
    listed = sorted(said.get("drivers", []), key=lambda one: -abs(float(one["points"])))
    raw = _raw_values(patient, [str(one["name"]) for one in listed], as_of)
    notes = {note.text_digest: note for note in Note.objects.filter(patient=patient)} if listed else {}
    for one in listed:
        points, at = float(one["points"]), None
        if as_of is not None and one.get("hours_before") is not None:
            at = as_of - timedelta(hours=float(one["hours_before"]))
        if one.get("text"):
            note = notes.get(str(one.get("key", "")))
            hits.append(
                NoteHit(
                    text=str(one["text"]),
                    points=points,
                    strong=abs(points) >= STRONG,
                    title=note.title if note else "",
                    author=note.author if note else "",
                    at=note.available_at if note else at,
                )
            )
            continue
        values = raw.get(str(one["name"]), ())
        drivers.append(
            DriverView(
                modality=str(one["modality"]),
                name=str(one["name"]),
                label=str(one["label"]),
                points=points,
                value=one.get("value"),
                unit=str(one.get("unit", "")),
                at=at or (values[0].at if values else None),
                reference_low=values[0].low if values else None,
                reference_high=values[0].high if values else None,
                raw=values,
            )
        )
    return tuple(drivers), tuple(hits)


def _raw_values(
    patient: Patient, names: Iterable[str], as_of: datetime | None
) -> dict[str, tuple[RawValue, ...]]:
    """The source values behind measured drivers, newest first, in one query."""
    wanted = {name: measured for name in names if (measured := catalogue.find_measurement(name)) is not None}
    by_code = {code: name for name, measured in wanted.items() for code in measured.loinc}
    if as_of is None or not by_code:
        return {}
    rows = Observation.objects.filter(
        patient=patient, code__in=list(by_code), value__isnull=False, available_at__lte=as_of
    ).order_by("-effective_at", "-available_at")
    found: dict[str, list[RawValue]] = {}
    for row in rows:
        name, at = by_code[row.code], row.effective_at or row.available_at
        values = found.setdefault(name, [])
        if at is None or row.value is None or row.unit != wanted[name].unit or len(values) >= RAW_VALUES:
            continue
        values.append(
            RawValue(at, row.value, row.unit, row.low, row.high, f"{row.resource_type}/{row.resource_id}")
        )
    return {name: tuple(values) for name, values in found.items()}


def images(
    patient: Patient, assessment: RiskAssessment | None, prediction: RiskPrediction | None
) -> list[ImageView]:
    """The patient's series up to that time, with heat map and frame weights, or why one was left out."""
    rows = Series.objects.filter(study__patient=patient, clip_path__gt="").select_related("study")
    if assessment is not None:
        rows = rows.filter(Q(study__started_at__lte=assessment.as_of) | Q(study__started_at=None))
    used_studies = (
        {one["id"] for one in assessment.basis if one["type"] == "ImagingStudy"} if assessment else set()
    )
    weights: dict[str, Any] = assessment.frame_weights if assessment else {}
    left_out: dict[str, str] = assessment.left_out if assessment else {}
    maps: dict[Any, HeatMap] = (
        {one.series_id: one for one in prediction.heat_maps.all()} if prediction is not None else {}
    )
    views = []
    for series in rows.order_by("-study__started_at", "series_uid")[:SHOWN_SERIES]:
        kept = weights.get(series.pixels_digest, {})
        map_ = maps.get(series.pk)
        views.append(
            ImageView(
                series_id=str(series.pk),
                study_uid=series.study.study_uid,
                is_cine=series.is_cine,
                taken_at=series.study.started_at,
                imaging_modality=series.imaging_modality,
                body_part=series.body_part,
                view=series.view,
                laterality=series.laterality,
                frames=series.frames,
                rows=series.rows,
                columns=series.columns,
                frame_ms=series.frame_ms,
                spacing_row_mm=series.spacing_row_mm,
                remarks=tuple(series.remarks),
                used=series.study.study_uid in used_studies and series.pixels_digest not in left_out,
                left_out=left_out.get(series.pixels_digest, ""),
                heat_map=_heat_map(map_) if map_ else None,
                weights=tuple(zip(kept.get("indices", []), kept.get("weights", []), strict=False)),
            )
        )
    return views


def measurements(patient: Patient, as_of: datetime | None) -> tuple[MeasurementView, ...]:
    """Of each size and method the newest, known or not, beside the known one of the study before."""
    rows = Measurement.objects.filter(
        series__study__patient=patient, pixels_digest=F("series__pixels_digest")
    ).select_related("series__study")
    if as_of is not None:
        rows = rows.filter(series__study__started_at__lte=as_of)
    by_size: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows.order_by("-series__study__started_at", "-made_at", "pk"):
        by_size.setdefault((row.name, row.method_version), []).append(row)
    newest: dict[str, list[Measurement]] = {}
    for (name, _), held in by_size.items():
        if name not in newest or held[0].made_at > newest[name][0].made_at:
            newest[name] = held
    return tuple(_measurement(size, newest[size.name]) for size in MEASURED if size.name in newest)


def _measurement(size: Measured, held: list[Measurement]) -> MeasurementView:
    row, study = held[0], held[0].series.study
    before = next(
        (one for one in held[1:] if one.value is not None and one.series.study_id != study.pk), None
    )
    return MeasurementView(
        name=row.name,
        label=size.label.removesuffix(" (measured)"),
        value=row.value,
        unit=row.unit,
        why=row.why,
        reference=size.reference,
        reference_source=size.reference_source,
        method=row.method,
        method_version=row.method_version,
        confidence=row.confidence,
        series_id=str(row.series_id),
        is_cine=row.series.is_cine and bool(row.series.frame_ms),
        taken_at=study.started_at,
        earlier=before.value if before else None,
        earlier_at=before.series.study.started_at if before else None,
    )


def _heat_map(held: HeatMap) -> HeatMapView:
    passed = held.sanity.get("passed")
    return HeatMapView(
        heat_map_id=held.pk,
        method=held.method,
        frame=held.frame,
        passed=bool(passed) if passed is not None else None,
        sanity=held.sanity,
    )
