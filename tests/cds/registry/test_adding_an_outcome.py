"""A third outcome, added as the developer's guide says, is labelled by its own rule at moments of its own."""

from __future__ import annotations

import re
import textwrap
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

import fusion
from cds.errors import Invalid
from cds.jobs import leases
from cds.registry import cohorts, describing, outcomes, runs, training
from cds.registry.models import ModelVersion, TrainingRun
from cds.risk import standing
from tests.cds.registry import ward
from tests.cds.registry.rows import make_patient, make_series, make_stay
from tests.factories import NOW, TESTS

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)
GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "developer.md"


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's own lines, as if they stood at the end of the module."""
    recipe = GUIDE.read_text().partition("**A new outcome**")[2]
    block = re.search(r"```python\n(.*?)```", recipe, re.S)
    assert block is not None
    names: dict[str, Any] = {**vars(outcomes), "OUTCOMES": {}}
    exec(textwrap.dedent(block[1]), names)
    for name, outcome in names["OUTCOMES"].items():
        monkeypatch.setitem(outcomes.OUTCOMES, name, outcome)


def _patients(count: int) -> None:
    """Home after eight days, no image study; every second is back ten days later, not in intensive care."""
    for number in range(count):
        patient = make_patient(f"home{number}")
        make_stay(patient, "inpatient", NOW - 8 * DAY, NOW)
        if number % 2:
            make_stay(patient, "emergency", NOW + 10 * DAY, NOW + 11 * DAY)
        else:
            make_stay(patient, "ambulatory", NOW + 60 * DAY, NOW + 60 * DAY)


def test_training_gets_its_own_labels_at_its_own_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    _patients(40)
    given: dict[str, Any] = {}

    def look(train: Any, tuning: Any, config: fusion.FusionConfig, **_: Any) -> fusion.Bundle:
        given.update(train=train, config=config)
        raise fusion.Cancelled("seen enough")

    monkeypatch.setattr(fusion, "train", look)
    run = runs.start(outcomes=["readmission"], config=ward.TINY, by=TESTS, user=None, now=timezone.now())
    training.execute(run.pk)
    assert set(run.cohort.members.values_list("as_of", flat=True)) == {NOW}
    labels = [example.labels for example in given["train"]]
    assert sorted(label["readmission"] for label in labels) == [0] * 12 + [1] * 12
    [spec] = given["config"].outcomes
    assert (spec.name, spec.horizon_hours) == ("readmission", 720.0)
    assert TrainingRun.objects.get().work_state == "cancelled"


def test_beside_others_each_is_asked_at_its_own_moments() -> None:
    _patients(1)
    make_series(make_patient(), NOW - 40 * DAY)
    patient = make_patient("both")
    make_stay(patient, "inpatient", NOW - DAY, NOW + 9 * DAY)
    make_series(patient, NOW)
    cohort = cohorts.freeze(
        cohorts.draw(outcomes=["readmission", "icu-admission"], now=NOW + 100 * DAY), now=timezone.now()
    )
    labels = {
        (member.patient.resource_id, (member.as_of - NOW).days): member.labels
        for member in cohort.members.select_related("patient")
    }
    assert labels == {("home0", 0): {"readmission": 0}, ("both", 0): {"icu-admission": 0}}
    excluded = {name: counts["excluded"] for name, counts in cohort.counts["outcomes"].items()}
    assert excluded == {name: {"follow-up too short": 1} for name in ("readmission", "icu-admission")}


def test_its_model_card_names_its_moments() -> None:
    counts = {"patients": 3, "moments": 3, "outcomes": {}}
    version = ModelVersion(outcomes=["readmission"], metadata={"cohort_counts": counts})
    assert "a moment is a discharge." in describing.describe(version)["development.criteria"]


def test_who_is_past_it_is_neither_scored_nor_learned_from_by_its_own_word() -> None:
    patient, both = make_patient(), ["readmission", "icu-admission"]
    make_stay(patient, "inpatient", NOW - DAY, NOW + DAY)
    version = ModelVersion(outcomes=["readmission"])
    assert standing.scored_outcomes(patient, both, NOW) == ["icu-admission"]
    assert standing.not_eligible(patient, version, NOW) == "in hospital at present"
    history = outcomes.read_history(patient, cutoff=NOW + 100 * DAY)
    asked = outcomes.label_all(both, history, as_of=NOW)
    assert asked["readmission"] == outcomes.Label(None, "in hospital at present")
    make_stay(patient, "intensive-care", NOW - DAY, NOW + DAY)
    assert standing.scored_outcomes(patient, both, NOW) == []
    assert standing.scored_outcomes(patient, [*both, "death", "unknown"], NOW) == ["death", "unknown"]
    assert standing.scored_outcomes(patient, both, NOW + 2 * DAY) == both
    assert "Readmission within 30 days: patients who are in hospital" in str(
        describing.describe(version)["caution.out_of_scope"]
    )


def test_a_rule_that_does_not_say_when_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _patients(2)
    timeless = replace(outcomes.OUTCOMES["readmission"], rule=lambda *_: outcomes.Label(1))
    monkeypatch.setitem(outcomes.OUTCOMES, "readmission", timeless)
    with pytest.raises(Invalid, match="not how long after"):
        cohorts.preview(outcomes=["readmission"], now=NOW + 100 * DAY)


def test_an_outcome_without_a_rule_cannot_be_written() -> None:
    with pytest.raises(TypeError, match=r"rule.*moments.*at_risk"):
        outcomes.Outcome("rain", "Rain", "get wet", timedelta(days=1))  # type: ignore[call-arg]
