# ruff: noqa: E501 - tables are read by row
"""RiskAssessment out: valid by the standard's own models, a percentage, every resource used named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fhir.resources.R4B.riskassessment import RiskAssessment

from ehr import BadResource, Snomed, build_risk_assessment

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ARGUMENTS: dict[str, Any] = {
    "identifier": "6f0d7c1e-0d8f-4a37-9b43-0a5a4a4f7d11",
    "status": "final",
    "patient_id": "p1",
    "outcome": Snomed("305351004", "Admission to intensive care unit"),
    "risk": 0.42,
    "occurred_at": NOW,
    "until": NOW + timedelta(days=14),
    "model_name": "Tessera icu-admission",
    "model_version": "3",
    "model_digest": "ab" * 32,
    "basis": [("Observation", "o1"), ("ImagingStudy", "s1"), ("Observation", "o1")],
    "encounter_id": "e1",
    "category": "high",
    "interval": (0.31, 0.55),
    "interval_level": 0.9,
    "missing": ["echo cine"],
}


def build(**changes: Any) -> dict[str, Any]:
    return build_risk_assessment(**(ARGUMENTS | changes))


def test_it_is_valid_and_the_probability_a_percentage() -> None:
    built = build()
    model = RiskAssessment.model_validate(built)
    assert model.status == "final"
    (prediction,) = built["prediction"]
    assert prediction["probabilityDecimal"] == 42.0
    assert prediction["qualitativeRisk"]["coding"][0]["code"] == "high"
    assert prediction["rationale"] == "90% interval: 31.0 % to 55.0 %. Missing: echo cine."
    assert prediction["whenPeriod"]["start"] == "2026-01-02T03:04:05+00:00"
    assert built["basis"] == [{"reference": "Observation/o1"}, {"reference": "ImagingStudy/s1"}]
    assert built["subject"] == {"reference": "Patient/p1"}
    assert built["contained"][0]["version"] == [{"value": "3"}]
    assert built["identifier"][0]["value"].startswith("urn:uuid:")


@pytest.mark.parametrize("changes", [{"category": "very-high"}, {"outcome": "Death within 30 days"}, {"basis": []},
                                     {"encounter_id": "", "category": "", "interval": None, "missing": ()},
                                     {"status": "preliminary"}, {"risk": 0.0}, {"risk": 1.0}, {"resource_id": "ra1"}])  # fmt: skip
def test_every_shape_is_valid(changes: dict[str, Any]) -> None:
    built = build(**changes)
    RiskAssessment.model_validate(built)
    assert all(value not in (None, "", [], {}) for value in built.values())


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"status": "finished"}, "status"),
        ({"risk": 1.01}, "ras-2"),
        ({"risk": 42}, "ras-2"),
        ({"risk": float("nan")}, "ras-2"),
        ({"occurred_at": datetime(2026, 1, 2)}, "zone"),
        ({"until": NOW - timedelta(days=1)}, "per-1"),
        ({"patient_id": ""}, "subject"),
    ],
)
def test_what_the_standard_forbids_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(BadResource, match=rule):
        build(**changes)
