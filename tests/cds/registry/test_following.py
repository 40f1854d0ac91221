"""Patients lost from sight: used until then, and the served risk is that of the whole horizon, unbiased."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusion
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.registry import following, queries, training
from cds.registry.models import CohortMember
from cds.risk import assessing, scoring
from fusion import Example, FieldSpec, FollowUp, FusionConfig, Modality, PatientInputs
from fusion.examples import labels_of
from tests.cds.registry import ward
from tests.cds.registry.rows import make_patient, make_series, make_stay
from tests.factories import NOW, TESTS, make_source, observation

DAY = timedelta(days=1)
HORIZON = 720.0  # hours, of death


def _members(count: int, *, seed: int = 0, mean_lost: float = 200.0) -> list[CohortMember]:
    """Simulated: deaths at a constant rate (four in ten within 30 days), each lost at a time of its own."""
    rng = np.random.default_rng(seed)
    deaths, lost = rng.exponential(1400, count), rng.exponential(mean_lost, count)
    made = []
    for death, until in zip(deaths, lost, strict=True):
        hours, died = min(death, until, HORIZON), death <= min(until, HORIZON)
        labels = {"death": int(died)} if died or hours == HORIZON else {}
        made.append(CohortMember(labels=labels, follow_up={"death": [float(hours), bool(died)]}))
    return made


def test_the_risk_is_unbiased_where_most_are_lost() -> None:
    members = {"train": _members(3000, seed=1), "tuning": _members(1500, seed=2)}
    specs = following.specs_of(["death"], members["train"])
    assert [spec.name for spec in specs] == ["death", "death@3.75d", "death@7.5d", "death@15d"]
    assert {spec.event for spec in specs} == {"death"}
    rng = np.random.default_rng(3)

    def told(split: str, specs: Any) -> list[Example]:
        return [
            Example(
                PatientInputs(key=f"{split}{i}", fields={"noise": float(rng.normal())}),
                member.labels,
                group=f"{split}{i}",
                follow_up=following.follow_up_of(member, specs),
            )
            for i, member in enumerate(members[split])
        ]

    def risk(specs: Any) -> float:
        config = FusionConfig(
            outcomes=specs, fields=(FieldSpec("noise", "Noise"),), modalities=(Modality.TABULAR,),
            folds=2, epochs=3, width=4,
        )  # fmt: skip
        bundle = fusion.train(told("train", specs), told("tuning", specs), config)
        asked = [PatientInputs(key=f"{x}", fields={"noise": x}) for x in (-1.0, 0.0, 1.0)]
        said = fusion.predict(bundle, asked, explain=False)
        return float(np.mean([one.outcomes[0].risk for one in said]))

    truth = 1 - np.exp(-HORIZON / 1400)
    assert risk(specs) == pytest.approx(truth, abs=0.05)
    left_out = (fusion.OutcomeSpec("death", "Death", HORIZON),)
    assert risk(left_out) > truth + 0.3  # what dropping the lost says of the same patients


def test_steps_only_where_the_lost_are_many_and_each_step_has_enough() -> None:
    nobody = _members(400, mean_lost=1e9)
    assert [(spec.name, spec.event) for spec in following.specs_of(["death"], nobody)] == [("death", "")]
    few = [*nobody[:-1], CohortMember(follow_up={"death": [30.0, False]})]
    assert [(spec.name, spec.event) for spec in following.specs_of(["death"], few)] == [("death", "death")]
    assert len(following.specs_of(["death"], _members(30))) < 4
    assert len(following.specs_of(["death"], _members(3000), steps=False)) == 1
    older = [CohortMember(labels={"death": 1}), CohortMember(labels={"death": 0})]
    assert [(spec.name, spec.event) for spec in following.specs_of(["death"], older)] == [("death", "")]


def test_each_step_can_be_learned() -> None:
    for count in (150, 200, 400, 1000):
        members = _members(count, seed=count)
        specs = following.specs_of(["death"], members)
        assert len(specs) > 1
        examples = [
            Example(PatientInputs(key=str(i)), {}, str(i), follow_up=following.follow_up_of(member, specs))
            for i, member in enumerate(members)
        ]
        labels = labels_of(examples, FusionConfig(outcomes=specs)).numpy()
        assert ((labels == 1).sum(0) >= following.LEAST).all()
        assert ((labels == 0).sum(0) >= following.LEAST).all()


@pytest.mark.django_db
def test_a_run_learns_from_the_lost_and_serves_the_outcome_alone(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    settings.STUDY_STORE, settings.BUNDLE_STORE = tmp_path / "studies", tmp_path / "bundles"
    for number in range(70):
        patient = make_patient(
            f"lost{number}",
            source=make_source("simulated-ward", simulated=True),
            observations=[observation("2524-7", 1.0 + number % 2, "mmol/L", at=NOW)],
        )
        make_series(patient, NOW)
        make_stay(patient, "inpatient", NOW - DAY, None)
        if number % 2:
            make_stay(patient, "intensive-care", NOW + (1 + number % 5 * 2) * DAY, None)
        else:
            seen = NOW + (5 if number % 4 else 30) * DAY
            make_stay(patient, "ambulatory", seen, seen)
    run = ward.retrain(modalities=["tabular"])
    assert (run.work_state, run.failure) == (WorkState.DONE, "")
    assert run.cohort.counts["outcomes"]["icu-admission"]["lost"] == 17
    version = run.version
    assert (version.name, version.outcomes) == ("icu-admission", ["icu-admission"])
    assert version.report["outcomes"].keys() == version.report["fairness"].keys() == {"icu-admission"}
    bundle = fusion.Bundle.load(queries.bundle_folder(version), digest=version.digest)
    names = [spec.name for spec in bundle.config.outcomes]
    assert names[0] == "icu-admission"
    assert len(names) > 1
    [said] = fusion.predict(bundle, [PatientInputs(key="x", fields={"lactate": 2.0})])
    by_hours = sorted(said.outcomes, key=lambda one: one.horizon_hours)
    assert by_hours[-1].outcome == "icu-admission"
    assert [one.risk for one in by_hours] == sorted(one.risk for one in by_hours)
    asked = assessing.request(Patient.objects.all()[0], version, by=TESTS, now=NOW + DAY / 2)
    scoring.score(asked.pk)
    asked.refresh_from_db()
    assert (asked.work_state, asked.failure) == (WorkState.DONE, "")
    assert [one.outcome for one in asked.predictions.all()] == ["icu-admission"]
    monkeypatch.setattr(training.Progress, "step", lambda *_: None)
    still = training.Progress(run, threading.Event())
    examples = training.build_examples(run.cohort, bundle.config, {}, still, low=0, high=0)
    lost = [e for part in examples.values() for e in part if not e.labels]
    assert [e.follow_up["icu-admission"] for e in lost] == [FollowUp(120.0, False)] * 17


def test_a_modality_that_only_a_step_uses_is_used() -> None:
    metadata = {
        "left_out": {"cine, death": "few", "image, death": "few", "image, death@15d": "few"},
        "outputs": [{"name": "death", "event": "death"}, {"name": "death@15d", "event": "death"}],
    }
    assert queries.unused_modalities(metadata, ["death"]) == {"image"}
    assert queries.unused_modalities({"left_out": metadata["left_out"]}, ["death"]) == {"cine", "image"}
