"""Cards as JSON, against golden files; and what may stand in them. INTEROP 4, 11, 13-16.

After a deliberate change of wording, run this file with TESSERA_REWRITE_GOLDEN=1, and read the difference as
a clinician would.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cds.hooks import cards, replies, wording
from cds.hooks.alerting import Alert
from cds.hooks.cards import Setting, card_for
from cds.hooks.contexts import Context
from cds.hooks.replies import Indicator
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk.standing import DataState, Standing
from tests.cds.hooks.conftest import make_score
from tests.factories import make_patient

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def patient(db: None) -> Patient:
    """A patient of an ordinary source."""
    return make_patient("p1")


def setting_for(patient: Patient, outcome: str = "icu-admission", **changes: Any) -> Setting:
    """A card shown to a practitioner who opens the chart."""
    known: dict[str, Any] = {
        "outcome": outcome,
        "patient": patient,
        "context": Context("Practitioner/example", patient.resource_id),
        "now": NOW,
        "alert": Alert(Indicator.WARNING),
        "may_suggest": True,
        "may_launch": True,
    }
    return Setting(**{**known, **changes})


def standing_as(
    state: DataState, patient: Patient, version: ModelVersion, *, reason: str = "", risk: float | None = 0.31
) -> Standing:
    at = NOW - timedelta(minutes=5)
    assessment = make_score(patient, version, risk=risk, as_of=at) if risk is not None else None
    return Standing(version, assessment, state, reason)


CASES: dict[str, tuple[DataState, str, float | None]] = {
    "risk-high": (DataState.CURRENT, "", 0.31),
    "risk-low": (DataState.CURRENT, "", 0.004),
    "partial": (DataState.PARTIAL, "still being read: image", 0.31),
    "stale": (DataState.STALE, "newer data have arrived; a fresh score is being computed", 0.31),
    "not-yet-known": (
        DataState.UPDATING,
        "not yet known: the first score of this model is being computed",
        None,
    ),
    "abstained": (DataState.ABSTAINED, "no vital signs of the last 7 days", None),
    "not-eligible": (DataState.NOT_ELIGIBLE, "already in intensive care", None),
    "failed": (DataState.FAILED, "the worker stopped while working on it (tried 3 times)", None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_card_is_the_golden_one(name: str, patient: Patient, version: ModelVersion) -> None:
    state, reason, risk = CASES[name]
    standing = standing_as(state, patient, version, reason=reason, risk=risk)
    severe = risk is not None and risk > 0.25
    shown = card_for(
        standing,
        setting_for(
            patient,
            not_supplied=("labs",) * (risk is None),
            alert=Alert(Indicator.WARNING if severe else Indicator.INFO),
        ),
    )
    check_golden(name, shown, patient, version)


def check_golden(name: str, shown: cards.Shown, patient: Patient, version: ModelVersion) -> None:
    """The card is the one in the file, fresh ids aside."""
    said = json.dumps(shown.card.to_json(), indent=2, ensure_ascii=False) + "\n"
    said = said.replace(str(patient.pk), "PATIENT").replace(str(version.pk), "VERSION")
    said = re.sub(r'"uuid": "[0-9a-f-]{36}"', '"uuid": "a fresh one"', said)
    said = re.sub(r'assessment\\":\\"[0-9a-f-]{36}', r'assessment\\":\\"ASSESSMENT', said)
    file = GOLDEN / f"{name}.json"
    if os.environ.get("TESSERA_REWRITE_GOLDEN"):
        file.write_text(said)
    assert said == file.read_text()
    assert len(shown.card.detail.splitlines()) <= 6, "UI 7"


@pytest.mark.parametrize(
    "state", [state for state in DataState if state not in (DataState.CURRENT, DataState.PARTIAL)]
)
def test_without_a_fresh_number_no_card_calls_the_risk_low(
    state: DataState, patient: Patient, version: ModelVersion
) -> None:
    standing = standing_as(state, patient, version, reason="because", risk=None)
    shown = card_for(standing, setting_for(patient))
    assert shown.kind is not cards.CardKind.RISK
    assert "This is not a low risk" in shown.card.detail
    assert "%" not in shown.card.summary


def test_an_outcome_the_patient_is_not_at_risk_of_is_out_of_scope(
    patient: Patient, version: ModelVersion
) -> None:
    standing = standing_as(DataState.CURRENT, patient, version)
    shown = card_for(standing, setting_for(patient, outcome="death"))
    assert shown.kind is cards.CardKind.OUT_OF_SCOPE


@given(st.text(max_size=400))
def test_a_summary_is_never_140_characters(text: str) -> None:
    assert len(wording.shortened("x" + text)) <= 139


@pytest.mark.parametrize(
    "make",
    [
        lambda: replies.Card(uuid.uuid4(), "x" * 140, replies.Indicator.INFO, replies.Source("s")),
        lambda: replies.Card(uuid.uuid4(), "", replies.Indicator.INFO, replies.Source("s")),
        lambda: replies.Card(
            uuid.uuid4(), "x", replies.Indicator.INFO, replies.Source("s"), selection_behavior="any"
        ),
        lambda: replies.Link("l", "u", type="relative"),
        lambda: replies.Link("l", "u", app_context="x"),
        lambda: replies.Action("delete", "d", resource={"resourceType": "Task"}),
        lambda: replies.Action("create", "d"),
    ],
)
def test_what_the_specification_forbids_cannot_be_made(make: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        make()


def test_unset_fields_are_left_out() -> None:
    card = replies.Card(uuid.UUID(int=0), "x", replies.Indicator.INFO, replies.Source("s"))
    assert set(card.to_json()) == {"uuid", "summary", "indicator", "source"}
    suggestion = replies.Suggestion(
        "Order lactate",
        uuid.UUID(int=1),
        is_recommended=False,
        actions=(replies.Action("delete", "d", resource_id="1"),),
    )
    assert suggestion.to_json()["isRecommended"] is False
    assert suggestion.to_json()["actions"] == [{"type": "delete", "description": "d", "resourceId": "1"}]


def test_the_sites_own_policy_is_on_the_card_as_text(
    patient: Patient, version: ModelVersion, tmp_path: Path, settings: Any
) -> None:
    settings.RISK_POLICIES = tmp_path / "policies.json"
    texts = {"moderate": "Look again in [8 h](https://evil.example).", "very-high": "Call the registrar."}
    bounds = {"moderate": 0.05, "high": 0.2, "very-high": 0.4, "texts": texts}
    settings.RISK_POLICIES.write_text(json.dumps({"icu-admission": bounds}))
    for risk, expected in (
        (0.02, ""),
        (0.1, "Look again"),
        (0.31, "Look again"),
        (0.5, "Call the registrar"),
    ):
        standing = standing_as(DataState.CURRENT, patient, version, risk=risk)
        said = " ".join(cards.said_of(standing, setting_for(patient)).lines)
        assert expected in said
        assert "senior clinician" not in said
        assert ("Look again" in said) == (expected == "Look again")
        assert "[8 h](" not in said  # not a link
