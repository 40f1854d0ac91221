"""Four maps and the choice between them: each mends what it is made for, rises, and survives a bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from fusion.calibrate import Calibration, fit_calibration, sigmoid
from fusion.metrics import calibration
from fusion.monotone import KINDS, Map, choose_map

BASE = -1.0


def _world(count: int, seed: int, bend: str) -> tuple[np.ndarray, np.ndarray]:
    """What a model says and what happened, its logits bent in a known way."""
    rng = np.random.default_rng(seed)
    true = BASE + rng.normal(0, 1.5, size=count)
    said = {
        "temperature": BASE + 2.5 * (true - BASE),
        "scale and shift": BASE + 2.0 * (true - BASE) + 1.5,
        "beta": np.where(true > BASE, BASE + 4 * (true - BASE), BASE + 0.8 * (true - BASE)),
        "isotonic": BASE + np.where(true > 0.5, 6, 0) + np.where(true < -2.5, -6, 0) + 0.3 * (true - BASE),
    }[bend]
    return said, (rng.random(count) < sigmoid(true)).astype(float)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_map_mends_what_it_is_made_for(kind: str) -> None:
    fitted = KINDS[kind](*_world(4000, 1, kind), BASE)
    said, labels = _world(20_000, 2, kind)
    after = sigmoid(fitted(said, BASE))
    before = calibration(sigmoid(said), labels)["ece"]
    assert calibration(after, labels)["ece"] < 0.03
    assert calibration(after, labels)["ece"] < before / 2


@pytest.mark.parametrize("bend", ["temperature", "scale and shift", "isotonic"])
def test_the_simplest_that_serves_is_chosen(bend: str) -> None:
    chosen, scores = choose_map(*_world(4000, 3, bend), BASE)
    assert chosen.kind == bend
    assert set(scores) == set(KINDS)
    best = min(scores.values())
    assert scores[bend] < best + 0.01


def test_a_bend_of_one_side_is_not_left_to_a_straight_line() -> None:
    chosen, _ = choose_map(*_world(4000, 3, "beta"), BASE)
    assert chosen.kind in ("beta", "isotonic")
    few, scores = choose_map(*_world(24, 3, "beta"), BASE)
    assert few.kind in ("temperature", "scale and shift")
    assert scores == {} or "isotonic" not in scores


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(list(KINDS)), st.integers(20, 300))
def test_every_map_rises(seed: int, kind: str, count: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.4).astype(float)
    labels[:2] = 0, 1
    fitted = KINDS[kind](rng.normal(size=count) * rng.uniform(0.1, 8), labels, BASE)
    at = np.sort(rng.normal(size=200) * 20)
    said = fitted(at, BASE)
    assert np.isfinite(said).all()
    assert (np.diff(said) >= -1e-9).all()
    again = Map.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted


@pytest.mark.parametrize(
    "said",
    [
        {"kind": "magic", "scale": 1, "shift": 0, "points": []},
        {"kind": "temperature", "scale": -1, "shift": 0, "points": []},
        {"kind": "beta", "scale": 1, "shift": 0, "points": [-1, 1, 0]},
        {"kind": "isotonic", "scale": 1, "shift": 0, "points": [0, 1, 2, 1]},
    ],
)
def test_a_map_that_does_not_rise_is_not_read(said: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rising|beta|rise"):
        Map.from_json(said)


def test_older_bundles_are_read_as_they_were() -> None:
    """A scale and a shift per outcome, a shift per pattern."""
    old = {
        "base_logit": [-1.0],
        "scale": [0.5],
        "shift": [0.2],
        "trust": [1.0],
        "patterns": {"a": [0.3]},
        "fitted_on": "tuning split",
    }
    read = Calibration.from_json(old)
    present = np.array([[True, False], [True, True], [False, False]])
    said = read.logits(np.array([[1.0], [1.0], [1.0]]), present, ("a", "b"))[:, 0]
    assert said == pytest.approx([-1 + 0.5 * 2 + 0.2 + 0.3, -1 + 0.5 * 2 + 0.2, -1.0])
    assert Calibration.from_json(json.loads(json.dumps(read.to_json()))) == read


def test_each_pattern_is_mended_and_rare_ones_by_patients_with_more() -> None:
    """Pattern a is overconfident; few patients truly have it, but many can be asked with b hidden."""
    rng = np.random.default_rng(0)

    def world(count: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        true = BASE + rng.normal(size=count)
        alone = rng.random(count) < share
        said = np.where(alone, BASE + 3 * (true - BASE) + 1, true)
        present = np.stack([np.ones(count, bool), ~alone], axis=1)
        return said[:, None], (rng.random(count) < sigmoid(true)).astype(float)[:, None], present

    said, labels, present = world(800, 0.03)
    more, known, masks = world(800, 1.0)
    asked, truth, shown = world(6000, 1.0)

    def error(*, is_helped: bool) -> float:
        rows = len(more) if is_helped else 0
        fitted = fit_calibration(
            np.concatenate([said, more[:rows]]),
            np.concatenate([labels, known[:rows]]),
            np.concatenate([present, masks[:rows]]),
            base=np.array([BASE]),
            modalities=("a", "b"),
            fitted_on="tuning split",
            real=len(said),
        )
        assert ("a" in fitted.patterns) == is_helped
        risks = sigmoid(fitted.logits(asked, shown, ("a", "b")))[:, 0]
        return float(log_loss(truth[:, 0], risks))

    assert error(is_helped=True) < error(is_helped=False) - 0.05
