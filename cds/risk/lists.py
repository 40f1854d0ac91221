"""The worklist: every patient one may see, by risk. A dozen queries at most, however many patients."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import OuterRef, Q, QuerySet, Subquery

from cds import catalogue
from cds.jobs.models import WorkState
from cds.patients import access
from cds.patients.models import Patient, PatientIdentifier
from cds.registry import queries as registry_queries
from cds.registry.models import ModelVersion
from cds.registry.outcomes import OUTCOMES, reason_without_number
from cds.risk import thresholds
from cds.risk.models import Response, RiskAssessment, RiskPrediction
from cds.risk.seen import Filters, WorklistPage, WorklistRow
from cds.risk.standing import DataState, standing_of
from cds.studies.models import Series

PAGE = 25
RISING = 10.0  # points over 24 h
DAY = timedelta(hours=24)


def worklist(
    viewer: access.Viewer, filters: Filters | None = None, page: int = 1, *, now: datetime
) -> WorklistPage:
    """One page of the patients this person may see, for one outcome.

    Sorted by category, then change over 24 h, then risk, then age of the score; patients without a number
    come after all others, in their own group, never among the low ones.
    """
    filters = filters or Filters()
    active = registry_queries.list_active()
    chosen = next((one for one in active if one.outcome == filters.outcome), active[0] if active else None)
    outcome, version = (chosen.outcome, chosen.version) if chosen else ("", None)
    visible = access.visible_patients(viewer)
    rows = [_row(found, version, outcome, now=now) for found in _find(visible, filters, version, outcome)]
    changes = _changes(visible, version, outcome, rows) if version else {}
    listed = [(row, changes.get(str(row["id"]))) for row in rows]
    kept = [(row, change) for row, change in listed if _passes(row, change, filters)]
    kept.sort(key=lambda one: _order(*one))
    pages = max(1, -(-len(kept) // PAGE))
    page = min(max(1, page), pages)
    shown = kept[(page - 1) * PAGE : page * PAGE]
    return WorklistPage(
        outcome=outcome,
        outcome_label=OUTCOMES[outcome].label if outcome in OUTCOMES else outcome,
        outcomes=tuple(
            (one.outcome, OUTCOMES[one.outcome].label) for one in active if one.outcome in OUTCOMES
        ),
        units=tuple(
            sorted({name for name in visible.values_list("unit__name", flat=True).distinct() if name})
        ),
        rows=_finish(shown),
        total=len(kept),
        not_scored=sum(row["risk"] is None for row, _ in kept),
        page=page,
        pages=pages,
        by_category=dict(Counter(row["category"] for row, _ in kept if row["category"])),
    )


def _find(
    visible: QuerySet[Patient], filters: Filters, version: ModelVersion | None, outcome: str
) -> list[dict[str, Any]]:
    """Every patient with the columns that sorting and filtering need, in one query."""
    done, newest = latest_done(version), latest_any(version)
    said = RiskPrediction.objects.filter(assessment=OuterRef("done_id"), outcome=outcome)
    columns = {name: Subquery(said.values(name)[:1]) for name in ("risk", "low", "high", "level", "category")}
    answered = Response.objects.filter(
        prediction__assessment__patient=OuterRef("pk"), prediction__outcome=outcome
    ).order_by("-at", "-pk")
    images = Series.objects.filter(study__patient=OuterRef("pk"), clip_path__gt="").order_by(
        "-study__started_at"
    )
    found = visible.annotate(
        done_id=Subquery(done.values("pk")[:1]),
        newest_id=Subquery(newest.values("pk")[:1]),
    ).annotate(
        prediction_id=Subquery(said.values("pk")[:1]),
        response=Subquery(answered.values("kind")[:1]),
        answered_by=Subquery(answered.values("by__username")[:1]),
        image_id=Subquery(images.values("pk")[:1]),
        **columns,
    )
    if filters.unit:
        found = found.filter(unit__name=filters.unit)
    if filters.search:
        word = filters.search.strip()
        numbers = PatientIdentifier.objects.filter(value__iexact=word).values("patient")
        found = found.filter(Q(family__icontains=word) | Q(given__icontains=word) | Q(pk__in=numbers))
    rows = list(
        found.values(
            "id", "family", "given", "birth_date", "sex", "revision", "resource_id", "unit__name",
            "source__simulated", "done_id", "newest_id", "prediction_id", "response", "answered_by",
            "image_id", *columns,
        )
    )  # fmt: skip
    wanted = {row["done_id"] for row in rows} | {row["newest_id"] for row in rows}
    assessments = (
        {one.pk: one for one in _by_ids(wanted - {None})} if version is not None and wanted - {None} else {}
    )
    for row in rows:
        row["done"], row["newest"] = assessments.get(row["done_id"]), assessments.get(row["newest_id"])
    return rows


def _by_ids(wanted: set[Any]) -> list[RiskAssessment]:
    columns = (
        "id", "patient_id", "version_id", "work_state", "failure", "status", "as_of", "retrospective",
        "revision", "pending", "abstained", "left_out", "finished_at",
    )  # fmt: skip
    keys = list(wanted)
    found: list[RiskAssessment] = []
    for start in range(0, len(keys), 10_000):
        found += RiskAssessment.objects.filter(pk__in=keys[start : start + 10_000]).only(*columns)
    return found


def _row(row: dict[str, Any], version: ModelVersion | None, outcome: str, *, now: datetime) -> dict[str, Any]:
    """Add state, reason and what follows from them."""
    row["version"], row["outcome"], row["now"] = version, outcome, now
    if version is None:
        row["state"], row["reason"] = DataState.NOT_ELIGIBLE, "no model is active yet"
        return row
    standing = standing_of(version, row["done"], row["newest"], revision=row["revision"], now=now)
    row["state"], row["reason"] = standing.state, standing.reason
    if row["done"] is not None and row["risk"] is None and row["state"] != DataState.ABSTAINED:
        row["state"], row["reason"] = DataState.NOT_ELIGIBLE, reason_without_number(outcome)
    return row


def _changes(
    visible: QuerySet[Patient], version: ModelVersion, outcome: str, rows: list[dict[str, Any]]
) -> dict[str, float]:
    """patient id → change of the risk, in points, against the oldest score of the 24 h before.

    By the same model, about an earlier moment: another model, or the same moment scored again, is no change.
    """
    newest = {
        row["id"]: row["done"].as_of for row in rows if row["done"] is not None and row["risk"] is not None
    }
    if not newest:
        return {}
    earlier = (
        RiskPrediction.objects.filter(
            assessment__patient__in=visible,
            assessment__version=version,
            assessment__as_of__gte=min(newest.values()) - DAY,
            outcome=outcome,
        )
        .order_by("-assessment__as_of", "assessment__revision")
        .values_list("assessment__patient_id", "assessment__as_of", "risk")
    )
    oldest: dict[Any, float] = {}
    for patient_id, as_of, risk in earlier:
        if patient_id in newest and newest[patient_id] - DAY <= as_of < newest[patient_id]:
            oldest[patient_id] = risk
    return {
        str(row["id"]): (row["risk"] - oldest[row["id"]]) * 100
        for row in rows
        if row["id"] in oldest and row["risk"] is not None
    }


def _passes(row: dict[str, Any], change: float | None, filters: Filters) -> bool:
    return not (
        (filters.category and row["category"] != filters.category)
        or (filters.state and row["state"].value != filters.state)
        or (filters.version and str(row["version"].pk if row["version"] else "") != filters.version)
        or (filters.unacknowledged and row["response"] not in (None, "undone"))
        or (filters.rising and (change is None or change < RISING))
        or (filters.has_image and row["image_id"] is None)
    )


def _order(row: dict[str, Any], change: float | None) -> tuple[Any, ...]:
    scored_at = row["done"].finished_at if row["done"] is not None and row["done"].finished_at else None
    return (
        row["risk"] is None,
        -thresholds.SEVERITY.get(row["category"] or "", -1),
        -round(change or 0.0),  # whole points: a wobble is not a change
        -(row["risk"] or 0.0),
        -(scored_at.timestamp() if scored_at else 0.0),
        str(row["id"]),
    )


def _finish(shown: list[tuple[dict[str, Any], float | None]]) -> tuple[WorklistRow, ...]:
    """The rows of one page, with what only a page needs: record numbers and top drivers."""
    ids = [row["id"] for row, _ in shown]
    numbers: dict[Any, str] = {}
    for patient_id, value in (
        PatientIdentifier.objects.filter(patient__in=ids).order_by("-pk").values_list("patient_id", "value")
    ):
        numbers[patient_id] = value
    said = dict(
        RiskPrediction.objects.filter(pk__in=[row["prediction_id"] for row, _ in shown]).values_list(
            "pk", "explanation"
        )
    )
    return tuple(_worklist_row(row, change, numbers, said) for row, change in shown)


def _worklist_row(
    row: dict[str, Any], change: float | None, numbers: dict[Any, str], said: dict[int, dict[str, Any]]
) -> WorklistRow:
    done, newest = row["done"], row["newest"]
    response = "" if row["response"] in (None, "undone") else str(row["response"])
    return WorklistRow(
        patient_id=str(row["id"]),
        name=", ".join(part for part in (row["family"], row["given"]) if part) or "name not known",
        record_number=numbers.get(row["id"], row["resource_id"]),
        age_years=_years(row["birth_date"], row["now"]),
        sex=row["sex"],
        location=row["unit__name"] or "",
        simulated=row["source__simulated"],
        state=row["state"],
        reason=row["reason"],
        risk=row["risk"],
        low=row["low"],
        high=row["high"],
        level=row["level"],
        category=row["category"] or "",
        change_points=change,
        scored_at=done.finished_at if done else None,
        as_of=done.as_of if done else None,
        retrospective=bool(done and done.retrospective),
        top_driver=_top_driver(said.get(row["prediction_id"], {})),
        image_series_id=str(row["image_id"]) if row["image_id"] else "",
        acknowledged_by=str(row["answered_by"] or "from the EHR") if response else "",
        response=response,
        assessment_id=str(done.pk) if done else "",
        failed_assessment_id=str(newest.pk) if newest and newest.work_state == WorkState.FAILED else "",
        prediction_id=row["prediction_id"],
        version_label=row["version"].label if row["version"] else "",
    )


def _top_driver(said: dict[str, Any]) -> str:
    """ "Lactate 4.1 mmol/L (+6 points)": the value of the record that moves the estimate most.

    A sentence of a note, which a line cannot show and which others of its note often outweigh, is named only
    where nothing else moved it.
    """
    drivers = said.get("drivers") or []
    if not drivers:
        return ""
    top = max(drivers, key=lambda one: (not one.get("text"), abs(float(one["points"]))))
    value = ""
    if top.get("value") is not None and not top.get("text"):
        value = " " + catalogue.value_in_words(
            str(top["name"]), float(top["value"]), str(top.get("unit") or "")
        )
    points = float(top["points"]) * 100
    label = "A sentence in the notes" if top.get("text") else top["label"]
    moved = f"{points:{'+.0f' if abs(points) >= 1 else '+.1f'}}".replace("-", "−")
    return f"{label}{value} ({moved} points)"


def full_name(patient: Patient) -> str:
    """`Family, Given`, or "name not known"."""
    return ", ".join(part for part in (patient.family, patient.given) if part) or "name not known"


def age_years(patient: Patient, at: datetime) -> int | None:
    """Completed years."""
    return _years(patient.birth_date, at)


def _years(born: Any, at: datetime) -> int | None:
    if born is None:
        return None
    day = at.astimezone(UTC).date()
    return int(day.year - born.year - ((day.month, day.day) < (born.month, born.day)))


def record_number(patient: Patient) -> str:
    """The first business identifier, else the id within the source."""
    held = sorted(patient.identifiers.all(), key=lambda identifier: identifier.pk)
    return held[0].value if held else patient.resource_id


def latest_done(version: ModelVersion | None) -> QuerySet[RiskAssessment]:
    """For a Subquery on Patient: its newest assessment that ended with an answer."""
    return RiskAssessment.objects.filter(
        patient=OuterRef("pk"), version=version, work_state=WorkState.DONE
    ).order_by("-revision", "-as_of")


def latest_any(version: ModelVersion | None) -> QuerySet[RiskAssessment]:
    """For a Subquery on Patient: its newest assessment, ended or not."""
    return RiskAssessment.objects.filter(patient=OuterRef("pk"), version=version).order_by(
        "-revision", "-queued_at"
    )


def find_row(viewer: access.Viewer, patient: Patient, *, outcome: str, now: datetime) -> WorklistRow | None:
    """The row of one patient as it stands now; None when this person may not see them."""
    active = registry_queries.list_active()
    chosen = next((one for one in active if one.outcome == outcome), active[0] if active else None)
    name, version = (chosen.outcome, chosen.version) if chosen else ("", None)
    visible = access.visible_patients(viewer).filter(pk=patient.pk)
    rows = [_row(found, version, name, now=now) for found in _find(visible, Filters(), version, name)]
    changes = _changes(visible, version, name, rows) if version else {}
    return next(iter(_finish([(row, changes.get(str(row["id"]))) for row in rows])), None)
