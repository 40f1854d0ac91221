"""Scores against scikit-learn, and what they say when they cannot be computed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from fusion import metrics


def test_scores_agree_with_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.3).astype(float)
    risks = np.round(np.clip(0.3 * labels + rng.random(300) * 0.7, 0, 1), 1)
    assert metrics.auroc(risks, labels) == pytest.approx(roc_auc_score(labels, risks))
    assert metrics.auprc(risks, labels) == pytest.approx(average_precision_score(labels, risks))
    assert metrics.brier(risks, labels) == pytest.approx(brier_score_loss(labels, risks))
    roc = np.array(metrics.roc_curve(risks, labels))
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(roc_auc_score(labels, risks))
    assert roc[0].tolist() == [0, 0]
    assert roc[-1].tolist() == [1, 1]


def test_calibration_of_true_risks_is_near_ideal() -> None:
    rng = np.random.default_rng(1)
    risks = rng.beta(2, 5, size=20_000)
    labels = (rng.random(20_000) < risks).astype(float)
    found = metrics.calibration(risks, labels)
    assert found["slope"] == pytest.approx(1, abs=0.1)
    assert found["intercept"] == pytest.approx(0, abs=0.1)
    assert found["ece"] < 0.02
    assert sum(b["n"] for b in found["bins"]) == 20_000


def test_one_class_gives_none_not_a_crash() -> None:
    risks, labels = np.array([0.1, 0.2, 0.3]), np.zeros(3)
    assert metrics.auroc(risks, labels) is None
    assert metrics.auprc(risks, labels) is None
    assert metrics.roc_curve(risks, labels) == [] == metrics.pr_curve(risks, labels)
    assert metrics.bootstrap(metrics.auroc, risks, labels, ["a", "b", "c"]) == {
        "value": None,
        "low": None,
        "high": None,
    }
    assert metrics.calibration(risks, labels)["slope"] is None
    assert metrics.brier(np.zeros(0), np.zeros(0)) is None


def test_bootstrap_draws_whole_patients() -> None:
    """Ten copies of each patient must not make the interval narrower."""
    rng = np.random.default_rng(2)
    labels = (rng.random(40) < 0.5).astype(float)
    risks = np.clip(0.3 * labels + rng.random(40) * 0.7, 0, 1)
    once = metrics.bootstrap(metrics.auroc, risks, labels, [f"p{i}" for i in range(40)])
    groups = [f"p{i}" for i in range(40)] * 10
    copied = metrics.bootstrap(metrics.auroc, np.tile(risks, 10), np.tile(labels, 10), groups)
    assert copied["value"] == pytest.approx(once["value"])
    assert copied["high"] - copied["low"] == pytest.approx(once["high"] - once["low"], abs=0.05)  # type: ignore[operator]
    assert once["low"] < once["value"] < once["high"]  # type: ignore[operator]
