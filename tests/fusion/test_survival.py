"""Several horizons of one event: censoring is no cause of error, risks never fall, the whole path runs."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion
from fusion import Modality, OutcomeSpec
from fusion.calibrate import fit_calibration, sigmoid
from fusion.examples import labels_of
from fusion.heat_maps import logit_of
from fusion.losses import masked_bce
from fusion.metrics import auroc, brier
from fusion.survival import (
    FollowUp,
    accumulated,
    by_horizon,
    curves_of,
    intervals_from_labels,
    intervals_of,
)
from tests.fusion import simulated

HORIZONS = (24.0, 48.0, 96.0, 192.0)
OUTCOMES = tuple(OutcomeSpec(f"death_{int(h)}h", f"Death within {int(h)} h", h, "death") for h in HORIZONS)
CURVES = curves_of(OUTCOMES)
NAN = float("nan")


@pytest.mark.parametrize(
    ("hours", "observed", "said"),
    [
        (10, True, [1, NAN, NAN, NAN]),
        (24, True, [1, NAN, NAN, NAN]),
        (25, True, [0, 1, NAN, NAN]),
        (500, True, [0, 0, 0, 0]),
        (30, False, [0, NAN, NAN, NAN]),  # lost before the middle of the second interval
        (40, False, [0, 0, NAN, NAN]),  # … after it
        (0, False, [NAN, NAN, NAN, NAN]),
        (192, False, [0, 0, 0, 0]),
    ],
)
def test_only_intervals_at_risk_are_told(hours: float, observed: bool, said: list[float]) -> None:
    assert np.array_equal(intervals_of(FollowUp(hours, observed), HORIZONS), said, equal_nan=True)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"a": 0, "b": 1, "c": 1}, [0, 1, NAN]),
        ({"c": 0}, [0, 0, 0]),
        ({"a": 1}, [1, NAN, NAN]),
        ({"c": 1}, [NAN, NAN, NAN]),  # happened, but not known when
        ({"b": 0, "c": 1}, [0, 0, 1]),
        ({}, [NAN, NAN, NAN]),
    ],
)
def test_binary_labels_by_horizon_go_on_working(labels: dict[str, int], said: list[float]) -> None:
    assert np.array_equal(intervals_from_labels(labels, ("a", "b", "c")), said, equal_nan=True)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(fusion.BadInput, match="b is 0 although the event happened by an earlier horizon"):
        intervals_from_labels({"a": 1, "b": 0}, ("a", "b"))
    with pytest.raises(fusion.BadInput, match="hours from as_of, 0 or more"):
        FollowUp(-3, True)
    with pytest.raises(fusion.BadInput, match="horizons of death must be different"):
        curves_of((OUTCOMES[0], dataclasses.replace(OUTCOMES[1], horizon_hours=24.0)))


def _follow_ups(count: int, seed: int) -> tuple[list[FollowUp], np.ndarray]:
    """Exponential deaths (mean 150 h), half of the patients censored at an independent exponential time."""
    rng = np.random.default_rng(seed)
    death, lost = rng.exponential(150, count), rng.exponential(150, count)
    return [FollowUp(float(min(d, c)), bool(d <= c)) for d, c in zip(death, lost, strict=True)], death


def test_censoring_recovers_the_true_curve() -> None:
    """Fitting one logit per interval by the training loss gives the true chance of death by each horizon;
    counting the censored as survivors, or leaving them out, does not."""
    hours = np.arange(16, 193, 16.0)
    outcomes = tuple(OutcomeSpec(f"d{int(h)}", "Death", float(h), "death") for h in hours)
    follow_ups, _ = _follow_ups(20_000, 0)
    labels = torch.tensor([intervals_of(f, hours.tolist()) for f in follow_ups], dtype=torch.float32)
    logits = torch.zeros(len(hours), requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        masked_bce(logits.expand(len(labels), -1), labels).backward()
        optimiser.step()
    learned = accumulated(torch.sigmoid(logits).detach().double().numpy()[None], curves_of(outcomes))[0]
    true = 1 - np.exp(-hours / 150)
    assert np.abs(learned - true).max() < 0.02
    seen = np.array([[f.observed and f.hours <= h for h in hours] for f in follow_ups])
    assert np.abs(seen.mean(axis=0) - true).max() > 0.1, "the censored are not survivors"
    happened, weights = by_horizon(labels.double().numpy(), curves_of(outcomes))
    for r in range(len(hours)):
        known = ~np.isnan(happened[:, r])
        rate = np.average(happened[known, r], weights=weights[known, r])
        assert rate == pytest.approx(true[r], abs=0.025)


def test_weighted_scores_are_those_without_censoring() -> None:
    """AUROC and Brier by 96 h, weighted, against the same patients had nobody been lost."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=30_000)
    death, lost = rng.exponential(150 * np.exp(-z)), rng.exponential(120, size=len(z))
    follow_ups = [FollowUp(float(min(d, c)), bool(d <= c)) for d, c in zip(death, lost, strict=True)]
    hours = [12.0 * step for step in range(1, 9)]
    outcomes = tuple(OutcomeSpec(f"d{int(h)}", "Death", h, "death") for h in hours)
    happened, weights = by_horizon(
        np.array([intervals_of(f, hours) for f in follow_ups]), curves_of(outcomes)
    )
    risk, truth = 1 - np.exp(-96 / (150 * np.exp(-z))), (death <= 96).astype(float)
    known = ~np.isnan(happened[:, -1])
    given = risk[known], happened[known, -1], weights[known, -1]
    assert auroc(*given) == pytest.approx(auroc(risk, truth), abs=0.012)
    assert brier(*given) == pytest.approx(brier(risk, truth), abs=0.006)
    assert auroc(*given[:2], np.ones(known.sum())) == pytest.approx(auroc(*given[:2]), abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.floats(-40, 40), min_size=4, max_size=4), min_size=1, max_size=5), st.data())
def test_risks_never_fall_from_one_horizon_to_the_next(rows: list[list[float]], data: st.DataObject) -> None:
    """Whatever the logits, whatever was calibrated on whatever labels."""
    fused = np.array(rows)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    said = rng.normal(size=(120, 4)) * 3
    labels = (rng.random((120, 4)) < data.draw(st.floats(0.02, 0.98))).astype(float)
    fitted = fit_calibration(
        said,
        labels,
        np.ones((120, 1), bool),
        base=rng.normal(size=4),
        modalities=("a",),
        fitted_on="tuning split",
        curves=CURVES,
    )
    for present in (np.ones((len(fused), 1), bool), np.zeros((len(fused), 1), bool)):
        risks = sigmoid(fitted.logits(fused, present, ("a",)))
        assert (np.diff(risks, axis=1) >= -1e-12).all()
        assert ((risks >= 0) & (risks <= 1)).all()
    assert (np.diff(fitted.base_risks()) >= 0).all()


def _examples(count: int, seed: int) -> list[fusion.Example]:
    """Deaths whose hazard follows field f0 and the image; a third of patients lost from sight."""
    rng = np.random.default_rng(seed)
    made = []
    for one in simulated.simulate(count, seed, missing=0.2):
        odds = np.log(one.chance / (1 - one.chance))
        death, lost = rng.exponential(300 * np.exp(-0.6 * odds)), rng.exponential(300)
        follow_up = FollowUp(float(min(death, lost)), bool(death <= lost))
        made.append(dataclasses.replace(one.example, follow_up={"death": follow_up}))
    return made


def test_from_training_to_a_saved_bundle(tmp_path) -> None:
    """Beside a plain binary outcome: trained, evaluated, predicted, saved and loaded."""
    config = simulated.make_config(
        outcomes=(simulated.OUTCOMES[0], *OUTCOMES[::-1]),
        modalities=(Modality.TABULAR, Modality.IMAGE, Modality.SERIES),
        epochs=4,
        folds=2,
    )
    bundle = fusion.train(_examples(200, 1), _examples(60, 2), config)
    held = _examples(200, 3)
    report = fusion.evaluate(bundle, held, comparison=False).to_json()
    json.dumps(report, allow_nan=False)
    last = report["outcomes"]["death_192h"]
    assert last["n"] < 200, "those censored before are not counted, only stood for"
    assert last["auroc"]["value"] > 0.65
    assert last["coverage"]["groups"] > 0
    asked = [e.inputs for e in held[:20]]
    bundle.save(tmp_path / "model")
    loaded = fusion.Bundle.load(tmp_path / "model")
    assert fusion.predict(loaded, asked) == fusion.predict(bundle, asked)
    nothing = fusion.PatientInputs(key="nothing")
    for prediction in fusion.predict(bundle, [*asked, nothing]):
        risks = {o.horizon_hours: o.risk for o in prediction.outcomes if o.outcome.startswith("death")}
        assert all(risks[a] <= risks[b] for a, b in itertools.pairwise(sorted(risks)))
        for outcome in prediction.outcomes:
            assert outcome.low <= outcome.risk <= outcome.high
            if outcome.contributions:
                total = outcome.base_rate + sum(c.points for c in outcome.contributions)
                assert total == pytest.approx(outcome.risk, abs=1e-6)
    base = bundle.metadata["cohort"]["base_rate"]
    assert base["death_24h"] < base["death_48h"] < base["death_96h"] < base["death_192h"]
    assert prediction.outcomes[1].risk == pytest.approx(base["death_192h"])


def test_a_heat_map_is_of_the_risk_by_its_horizon() -> None:
    outcomes = (simulated.OUTCOMES[0], *OUTCOMES[::-1])
    fused = torch.randn(5, len(outcomes), generator=torch.Generator().manual_seed(0))
    hazards = torch.sigmoid(fused.double()).numpy()
    risks = accumulated(hazards, curves_of(outcomes))
    for r in range(len(outcomes)):
        said = torch.sigmoid(logit_of(fused, r, outcomes)).numpy()
        np.testing.assert_allclose(said, risks[:, r], atol=1e-5)


def test_labels_of_mixes_both_kinds() -> None:
    config = simulated.make_config(outcomes=(simulated.OUTCOMES[0], *OUTCOMES))
    one = dataclasses.replace(
        simulated.examples(1, 1)[0], labels={"icu": 1}, follow_up={"death": FollowUp(60, True)}
    )
    other = dataclasses.replace(one, follow_up={}, labels={"icu": 0, "death_24h": 0, "death_192h": 0})
    said = labels_of([one, other], config).numpy()
    assert np.array_equal(said, [[1, 0, 0, 1, NAN], [0, 0, 0, 0, 0]], equal_nan=True)
