"""From a risk to a word, and what the local policy says at it: by the site's table (`registry.policies`)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from cds.registry import policies


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


def category_of(outcome: str, risk: float) -> Category:
    """The category of a risk in [0, 1]; raises ValueError outside it."""
    if not 0.0 <= risk <= 1.0:
        raise ValueError("a risk lies in 0 to 1")
    policy = policies.policy_of(outcome)
    if risk >= policy.very_high:
        return Category.VERY_HIGH
    if risk >= policy.high:
        return Category.HIGH
    return Category.MODERATE if risk >= policy.moderate else Category.LOW


def bounds_of(outcome: str) -> tuple[tuple[Category, float], ...]:
    """Each category with the lowest risk of it, rising."""
    policy = policies.policy_of(outcome)
    return (
        (Category.LOW, 0.0),
        (Category.MODERATE, policy.moderate),
        (Category.HIGH, policy.high),
        (Category.VERY_HIGH, policy.very_high),
    )


def threshold_of(outcome: str) -> float:
    """The risk from which the local policy asks somebody to act."""
    return policies.policy_of(outcome).high


def policy_text(outcome: str, category: str) -> str:
    """What the local policy says of a category: its text, or that of the next lower one; "" for none."""
    texts = _texts(outcome)
    lower = [one.value for one in reversed(Category) if SEVERITY[one.value] <= SEVERITY[category]]
    return next((texts[one] for one in lower if one in texts), "")


def policy_ahead(outcome: str, category: str) -> str:
    """The same; of a category that it says nothing of, what it says of the next higher one."""
    texts = _texts(outcome)
    higher = (texts[one.value] for one in Category if one.value in texts)
    return policy_text(outcome, category) or next(higher, policies.NOT_SET)


def policy_link(outcome: str) -> str:
    """Where the local policy is read; "" for nowhere."""
    return policies.policy_of(outcome).link


def _texts(outcome: str) -> Mapping[str, str]:
    return {str(category): text for category, text in policies.policy_of(outcome).texts.items()}
