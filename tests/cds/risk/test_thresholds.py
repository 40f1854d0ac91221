"""The table a clinician can read: from which risk which word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from cds.audit.models import AuditEvent
from cds.errors import Unavailable
from cds.registry import policies
from cds.risk import policing, thresholds
from cds.risk.models import PolicyInUse

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
    for outcome in policies.SHIPPED:
        at = thresholds.threshold_of(outcome)
        assert thresholds.category_of(outcome, at) == thresholds.Category.HIGH
        assert f"{at * 100:.0f} %" in thresholds.policy_text(outcome, "high")
        assert thresholds.policy_text(outcome, "very-high") == thresholds.policy_text(outcome, "high")
        assert not thresholds.policy_text(outcome, "moderate")
        assert thresholds.policy_ahead(outcome, "low") == thresholds.policy_text(outcome, "high")


SITE = {
    "icu-admission": {
        "moderate": 0.05,
        "high": 0.2,
        "very-high": 0.4,
        "texts": {"moderate": "Look again in 8 h.", "very-high": "Call the <ICU>."},
        "link": "https://intranet.example.org/policy",
    }
}


@pytest.fixture
def site(tmp_path: Path, settings: Any) -> Callable[[Any], None]:
    """Say the site's table."""

    def write(table: Any) -> None:
        settings.RISK_POLICIES = tmp_path / f"{uuid4()}.json"
        settings.RISK_POLICIES.write_text(table if isinstance(table, str) else json.dumps(table))

    return write


def test_the_sites_own_table(site: Callable[[Any], None]) -> None:
    site(SITE)
    assert policies.check_policies(None) == []
    assert [thresholds.category_of("icu-admission", risk).value for risk in (0.04, 0.05, 0.2, 0.4)] == [
        "low",
        "moderate",
        "high",
        "very-high",
    ]
    assert thresholds.policy_text("icu-admission", "low") == ""
    assert thresholds.policy_text("icu-admission", "high") == "Look again in 8 h."
    assert thresholds.policy_text("icu-admission", "very-high") == "Call the <ICU>."
    assert thresholds.policy_link("icu-admission") == "https://intranet.example.org/policy"
    assert thresholds.category_of("death", 0.15) == thresholds.Category.HIGH  # left out: as it is shipped


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("{", "Invalid JSON"),
        ({"icu": SITE["icu-admission"]}, "no outcome is called icu; there are icu-admission, death"),
        ({"death": {"moderate": 0.2, "high": 0.2, "very-high": 0.4}}, "moderate must be below high"),
        ({"death": {"moderate": 5, "high": 15, "very-high": 35}}, "death › moderate: Input should be less"),
        ({"death": SITE["icu-admission"] | {"text": "x"}}, "death › text: Extra inputs"),
        ({"death": SITE["icu-admission"] | {"texts": {"low": "x"}}}, "death › texts › low"),
        ({"death": SITE["icu-admission"] | {"link": "javascript:alert(1)"}}, "death › link"),
    ],
)
def test_a_table_that_cannot_be_used_stops_the_start(
    site: Callable[[Any], None], table: Any, said: str
) -> None:
    site(table)
    (error,) = policies.check_policies(None)
    assert said in error.msg
    with pytest.raises(Unavailable):
        thresholds.category_of("death", 0.5)


def test_a_table_that_is_not_there_stops_the_start(settings: Any) -> None:
    settings.RISK_POLICIES = Path("/nowhere/policies.json")
    (error,) = policies.check_policies(None)
    assert "cannot be read (No such file or directory)" in error.msg


@pytest.mark.django_db
def test_which_table_was_in_use_is_kept_and_audited(site: Callable[[Any], None]) -> None:
    now = timezone.now()
    for table in ({}, {}, SITE, SITE, {}):  # the first again at the end is a change too
        site(table)
        policing.note(now=now)
    assert [row.content["icu-admission"]["high"] for row in PolicyInUse.objects.order_by("pk")] == [
        0.25,
        0.2,
        0.25,
    ]
    kept = AuditEvent.objects.filter(action="policy.change").order_by("pk")
    assert [event.detail["bounds"]["icu-admission"][1] for event in kept] == ["0.25", "0.2", "0.25"]
