"""The table a clinician can read: from which risk which word."""

from __future__ import annotations

import pytest

from cds.risk import thresholds

TABLE = [
    # outcome, risk, word
    ("icu-admission", 0.0, "Low"),
    ("icu-admission", 0.0999, "Low"),
    ("icu-admission", 0.10, "Moderate"),
    ("icu-admission", 0.2499, "Moderate"),
    ("icu-admission", 0.25, "High"),
    ("icu-admission", 0.50, "Very high"),
    ("icu-admission", 1.0, "Very high"),
    ("death", 0.0499, "Low"),
    ("death", 0.05, "Moderate"),
    ("death", 0.15, "High"),
    ("death", 0.35, "Very high"),
    ("something new", 0.25, "High"),
]


@pytest.mark.parametrize(("outcome", "risk", "word"), TABLE)
def test_category_of(outcome: str, risk: float, word: str) -> None:
    assert thresholds.WORDS[thresholds.category_of(outcome, risk)] == word


@pytest.mark.parametrize("risk", [-0.01, 1.01, float("nan")])
def test_what_is_no_probability_has_no_category(risk: float) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        thresholds.category_of("death", risk)


def test_the_policy_speaks_from_high() -> None:
    for outcome in thresholds.POLICIES:
        assert thresholds.category_of(outcome, thresholds.threshold_of(outcome)) == thresholds.Category.HIGH
        assert f"{thresholds.threshold_of(outcome) * 100:.0f} %" in thresholds.policy_text(outcome)
