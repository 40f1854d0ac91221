"""Risks mean what they say: calibration and conformal coverage on simulated, exchangeable patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from fusion.calibrate import Calibration, fit_calibration, sigmoid
from fusion.conformal import Interval, fit_interval, grouped
from fusion.metrics import calibration
from fusion.monotone import PLAIN

NAMES = ("a", "b")


def _overconfident(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits three times too large and shifted; the pattern "b alone" is shifted further."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1, 1.2, size=count)
    present = np.ones((count, 2), bool)
    present[: count // 2, 0] = False
    said = -1 + 3 * (true + 1) + 0.8 + np.where(present[:, 0], 0, 2.0)
    return said[:, None], (rng.random(count) < sigmoid(true)).astype(float)[:, None], present


def _fit(said: np.ndarray, labels: np.ndarray, present: np.ndarray) -> Calibration:
    return fit_calibration(
        said, labels, present, base=np.array([-1.0]), modalities=NAMES, fitted_on="tuning split"
    )


def test_calibration_mends_held_out_risks() -> None:
    fitted = _fit(*_overconfident(400, 1))
    said, labels, present = _overconfident(4000, 2)
    before, after = sigmoid(said)[:, 0], sigmoid(fitted.logits(said, present, NAMES))[:, 0]
    y = labels[:, 0]
    assert log_loss(y, after) < log_loss(y, before) - 0.1
    assert calibration(after, y)["ece"] < 0.04 < calibration(before, y)["ece"]
    assert 0.75 < calibration(after, y)["slope"] < 1.3
    for pattern in (True, False):  # each pattern of present modalities by itself, too
        rows = present[:, 0] == pattern
        assert abs(after[rows].mean() - y[rows].mean()) < 0.05


def test_little_data_change_little_and_one_class_changes_nothing() -> None:
    said, labels, present = _overconfident(12, 3)
    few = _fit(said, labels, present)
    assert 0.2 < few.scale[0] < 1.5
    assert not few.patterns
    none = _fit(said, np.zeros_like(labels), present)
    assert (none.scale, none.shift) == ((1.0,), (0.0,))


def test_nothing_present_is_the_base_rate_whatever_was_fitted() -> None:
    fitted = _fit(*_overconfident(400, 1))
    at = fitted.logits(np.array([[5.0]]), np.zeros((1, 2), bool), NAMES)
    assert at.tolist() == [[-1.0]]
    assert Calibration.from_json(fitted.to_json()) == fitted


@pytest.mark.parametrize(("patients", "events"), [(20, 5), (60, 20), (2000, 700)])
def test_nobody_is_surer_than_the_patients_seen_allow(patients: int, events: int) -> None:
    """Perfect separation of few patients: the risk stays as far from certain as Laplace's rule asks."""
    labels = (np.arange(patients) < events).astype(float)[:, None]
    said, present = np.where(labels == 1, 30.0, -30.0), np.ones((patients, 2), bool)
    risks = sigmoid(_fit(said, labels, present).logits(said, present, NAMES))[:, 0]
    base, trust = float(sigmoid(-1.0)), (events + 1) / (events + 2)
    assert risks.max() <= base + trust * (1 - base) + 1e-9
    assert risks.min() >= base * (1 - trust) - 1e-9
    assert risks.max() > 0.5 > risks.min()


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_intervals_cover_as_often_as_they_say(level: float) -> None:
    """Against new exchangeable patients, over 60 draws; also when the risks themselves are off."""
    for bias in (0.0, 0.5):
        inside, total = 0, 0
        for seed in range(60):
            rng = np.random.default_rng(seed)
            true = rng.normal(-0.5, 1, size=1000)
            labels = (rng.random(1000) < sigmoid(true)).astype(float)
            said = sigmoid(true + bias)
            interval = fit_interval(said[:500], labels[:500], level=level)
            for mean, rate in grouped(said[500:], labels[500:], interval.group_size):
                low, high = interval.around(mean)
                inside += low <= rate <= high
                total += 1
        assert inside / total >= level - 0.02, (bias, inside / total)
        if bias == 0:
            assert inside / total <= level + 0.09, "intervals wider than they need be"


def test_an_interval_always_holds_its_risk_and_few_patients_give_the_widest() -> None:
    few = fit_interval(np.array([0.1, 0.4, 0.7]), np.array([0.0, 1.0, 1.0]), level=0.9)
    assert math.isinf(few.q)
    assert few.around(0.3) == (0.0, 1.0)
    assert Interval.from_json(few.to_json()) == few
    for risk in (0.0, 1e-9, 0.3, 1.0):
        low, high = Interval(0.9, 0.5, 10, 20).around(risk)
        assert 0 <= low <= risk <= high <= 1


def test_each_pattern_gets_its_own_scale_and_shift_and_no_other() -> None:
    """Against working it out patient by patient; names of modalities that the model lacks mean nothing."""
    own = {
        "b": ((2.0, 0.5), (1.0, 0.0)),
        "a+b": ((0.5, -1.0), (3.0, 0.25)),
        "a+gone": ((1.5, 0.1), (1.0, 0.2)),
    }
    made = Calibration((-1.0, 0.5), (PLAIN, PLAIN), (1.0, 1.0), own)
    said = np.random.default_rng(3).normal(size=(4, 2))
    present = np.array([[False, False], [True, False], [False, True], [True, True]])
    found = made.logits(said, present, NAMES)
    for row, pattern in enumerate(("", "a+gone", "b", "a+b")):
        for r, base in enumerate(made.base):
            scale, shift = own[pattern][r] if pattern else (0.0, 0.0)
            assert found[row, r] == pytest.approx(base + scale * (said[row, r] - base) + shift, abs=1e-12)
    assert made == Calibration.from_json(made.to_json())  # what was worked out on the way is not part of it
