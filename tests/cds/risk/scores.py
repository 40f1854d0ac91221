"""Assessments as scoring leaves them, made by hand: what the screens are tested with."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk import assessing
from cds.risk.models import RiskAssessment
from tests.factories import NOW, TESTS


def say(outcome: str = "icu-admission", risk: float = 0.3, **changes: Any) -> dict[str, Any]:
    """A fusion.OutcomePrediction as JSON."""
    return {
        "outcome": outcome,
        "label": "Admission to intensive care within 14 days",
        "horizon_hours": 336.0,
        "risk": risk,
        "low": max(0.0, risk - 0.1),
        "high": min(1.0, risk + 0.1),
        "level": 0.9,
        "logit": 0.0,
        "base_rate": 0.2,
        "contributions": [
            {"modality": "tabular", "points": (risk - 0.2) / 2, "logit": 0.1},
            {"modality": "image", "points": (risk - 0.2) / 2, "logit": 0.1},
        ],
        "drivers": [],
        "summary": "Made of these numbers.",
        **changes,
    }


def result(*predictions: dict[str, Any], **changes: Any) -> assessing.Result:
    known: dict[str, Any] = {
        "predictions": list(predictions or (say(),)),
        "inputs_digest": "i" * 64,
        "data_until": NOW - timedelta(minutes=7),
        "present": ["tabular", "image"],
        "missing": ["cine"],
        "pending": [],
        "missing_fields": ["lactate"],
        "basis": [],
    }
    return assessing.Result(**{**known, **changes})


def score_by_hand(
    patient: Patient, version: ModelVersion, *predictions: dict[str, Any], now: datetime = NOW, **changes: Any
) -> RiskAssessment:
    """Ask, claim and finish, with these numbers."""
    asked = assessing.request(patient, version, by=TESTS, now=now)
    claimed = leases.claim(RiskAssessment, asked.pk)
    assert claimed is not None
    assessing.finalise(claimed, result(*predictions, **changes), by=TESTS, now=now)
    claimed.refresh_from_db()
    assert claimed.work_state == WorkState.DONE
    return claimed
