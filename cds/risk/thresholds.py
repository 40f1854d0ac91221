"""From a risk to a word, and what the local policy says at it. Change them here; a test shows the table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cds.registry.outcomes import OUTCOMES


class Category(StrEnum):
    """Low is never used for "not known": a patient without a score has no category."""

    LOW = "low"
    MODERATE = "moderate"
    HIGH = "high"
    VERY_HIGH = "very-high"


WORDS: dict[Category, str] = {
    Category.LOW: "Low",
    Category.MODERATE: "Moderate",
    Category.HIGH: "High",
    Category.VERY_HIGH: "Very high",
}
SEVERITY: dict[str, int] = {category.value: rank for rank, category in enumerate(Category)}


@dataclass(frozen=True, slots=True)
class Policy:
    """Lower bounds of moderate, high and very high; a risk on a bound belongs to the higher category."""

    moderate: float
    high: float
    very_high: float
    text: str


POLICIES: dict[str, Policy] = {
    "icu-admission": Policy(
        0.10,
        OUTCOMES["icu-admission"].act_at,
        0.50,
        "At 25 % and above: ask a senior clinician to review, and observe at least every 4 hours.",
    ),
    "death": Policy(
        0.05,
        OUTCOMES["death"].act_at,
        0.35,
        "At 15 % and above: ask a senior clinician to review goals and level of care.",
    ),
}
DEFAULT = Policy(0.10, 0.25, 0.50, "No local policy is set for this outcome.")


def category_of(outcome: str, risk: float) -> Category:
    """The category of a risk in [0, 1]; raises ValueError outside it."""
    if not 0.0 <= risk <= 1.0:
        raise ValueError("a risk lies in 0 to 1")
    policy = POLICIES.get(outcome, DEFAULT)
    if risk >= policy.very_high:
        return Category.VERY_HIGH
    if risk >= policy.high:
        return Category.HIGH
    return Category.MODERATE if risk >= policy.moderate else Category.LOW


def threshold_of(outcome: str) -> float:
    """The risk from which the local policy asks somebody to act."""
    return POLICIES.get(outcome, DEFAULT).high


def policy_text(outcome: str) -> str:
    """What the local policy says at the threshold."""
    return POLICIES.get(outcome, DEFAULT).text
