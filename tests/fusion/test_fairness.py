"""Groups are counted as by hand, gaps are called when they are there and not when chance explains them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fusion import Modality, evaluate, train
from fusion.fairness import DRAWS, Limits, compare_groups
from tests.fusion.simulated import examples, make_config

LIMITS = Limits(0.1, 0.1)


def compared(
    count: int, seed: int, *, shift: float = 0.0, noise: float = 0.0, limits: Limits = LIMITS, **more: Any
) -> dict[str, Any]:
    """Two groups of patients; of the second, the risk is told `shift` too low and with `noise` on its
    logit."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=count) * 1.5
    labels = (draw.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    second = draw.random(count) < 0.5
    told = 1 / (1 + np.exp(-(logits + second * noise * draw.normal(size=count)))) - shift * second
    groups = np.where(second, "second", "first")
    return compare_groups(
        np.clip(told, 0.001, 0.999),
        labels,
        [f"p{i // 2}" for i in range(count)],
        {"group": groups.tolist()},
        threshold=0.5,
        limits=limits,
        seed=seed,
        **{"draws": 150, **more},
    )


def test_figures_are_those_counted_by_hand() -> None:
    risks = np.array([0.9, 0.8, 0.3, 0.6, 0.2, 0.1] * 10)
    labels = np.array([1.0, 1, 1, 0, 0, 0] * 10)
    found = compare_groups(
        risks,
        labels,
        [str(i) for i in range(60)],
        {"sex": ["female"] * 60},
        threshold=0.5,
        limits=LIMITS,
        draws=20,
    )
    (group,) = found["groups"]
    assert (group["n"], group["events"]) == (60, 30)
    assert group["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert group["ppv"]["value"] == pytest.approx(2 / 3)
    assert group["calibration"]["value"] == pytest.approx(0.5 - 2.9 / 6)
    assert group["auroc"]["value"] == pytest.approx(
        8 / 9
    )  # of nine pairs, 0.3 against 0.6 is the wrong way round
    assert (found["verdict"], found["gaps"]) == ("not judged", [])
    assert all(group[name]["low"] <= group[name]["value"] <= group[name]["high"] for name in ("auroc", "ppv"))


def test_ties_count_half_and_weights_count_as_copies() -> None:
    risks = np.array([0.5, 0.5, 0.7, 0.2] * 10)
    labels = np.array([1.0, 0, 1, 0] * 10)
    weights = np.array([2.0, 1, 1, 3] * 10)
    asked = {"threshold": 0.5, "limits": LIMITS, "draws": 10}
    copies = np.repeat(np.arange(40), weights.astype(int))
    one = compare_groups(risks, labels, ["p"] * 40, {"a": ["x"] * 40}, weights=weights, **asked)["groups"][0]
    two = compare_groups(
        risks[copies], labels[copies], ["p"] * len(copies), {"a": ["x"] * len(copies)}, **asked
    )
    for name in ("auroc", "sensitivity", "ppv", "calibration"):
        assert one[name]["value"] == pytest.approx(two["groups"][0][name]["value"])
    alone = compare_groups(risks, labels, ["p"] * 40, {"a": ["x"] * 40}, **asked)["groups"][0]
    assert alone["auroc"]["value"] == pytest.approx((0.5 + 1 + 1 + 1) / 4)


def test_few_events_are_said_and_not_judged() -> None:
    risks, labels = np.linspace(0.01, 0.99, 60), np.array([0.0, 1.0] * 30)
    groups = np.where(np.arange(60) < 18, "few", "many").tolist()
    found = compare_groups(
        risks, labels, [str(i) for i in range(60)], {"site": groups}, threshold=0.5, limits=LIMITS, draws=20
    )
    few, many = found["groups"]
    assert (few["note"], few["auroc"], few["sensitivity"], few["events"]) == ("too few", None, None, 9)
    assert many["note"] == ""
    assert found["verdict"] == "not judged"


def test_a_wrong_calibration_of_one_group_is_called() -> None:
    found = compared(1200, 1, shift=0.25)
    assert found["verdict"] == "over the limit"
    (gap,) = [g for g in found["gaps"] if g["figure"] == "calibration"]
    assert gap["over"]
    assert gap["value"] < -0.15  # first minus second: the second is told too low a risk
    assert gap["low"] <= gap["value"] <= gap["high"] < 0
    assert "observed minus expected of first minus second" in found["reasons"][0]
    assert "limit 0.10" in found["reasons"][0]


def test_a_worse_ranking_of_one_group_is_called() -> None:
    found = compared(1500, 2, noise=4.0)
    (gap,) = [g for g in found["gaps"] if g["figure"] == "auroc"]
    assert gap["over"]
    assert gap["value"] > 0.1


def test_chance_alone_is_hardly_ever_called() -> None:
    """Fair models on few patients: gaps over 0.1 are common, gaps that chance does not explain are not."""
    found = [compared(120, seed) for seed in range(60)]
    large = sum(any(abs(g["value"]) > 0.1 for g in one["gaps"]) for one in found)
    called = sum(one["verdict"] == "over the limit" for one in found)
    assert large > 15
    assert called <= 6  # 5 % of 60 are 3


def test_limits_decide_and_none_is_no_limit() -> None:
    assert compared(1200, 1, shift=0.25, limits=Limits(0.1, 0.6))["verdict"] == "within the limits"
    free = compared(1200, 1, shift=0.25, limits=Limits(None, None))
    assert free["verdict"] == "within the limits"
    assert all("no limit is set" in gap["said"] for gap in free["gaps"])


def test_the_unknown_are_shown_and_never_compared() -> None:
    draw = np.random.default_rng(0)
    labels = (draw.random(300) < 0.5).astype(np.float64)
    groups = np.array(["female", "male", "unknown"])[np.arange(300) % 3]
    risks = np.where(groups == "unknown", 0.9, 0.5)
    found = compare_groups(
        risks,
        labels,
        [str(i) for i in range(300)],
        {"sex": groups.tolist()},
        threshold=0.6,
        limits=LIMITS,
        draws=50,
    )
    assert [g["value"] for g in found["groups"]] == ["female", "male", "unknown"]
    assert all("unknown" not in gap["between"] for gap in found["gaps"])
    assert found["verdict"] == "within the limits"


def test_a_report_says_how_fair_a_bundle_is() -> None:
    config = make_config(modalities=(Modality.TABULAR,), epochs=2, most_calibration_gap=0.2)
    bundle = train(examples(80, 1), examples(30, 2), config)
    held = examples(90, 3)
    report = evaluate(bundle, held, thresholds={"icu": 0.3}).to_json()
    said = report["fairness"]["icu"]
    assert said["threshold"] == 0.3
    assert said["limits"] == {"auroc": 0.1, "calibration": 0.2}
    assert {g["value"] for g in said["groups"]} == {"female", "male"}
    assert said["verdict"] in ("within the limits", "over the limit")
    assert report["fairness"]["death"]["threshold"] == pytest.approx(bundle.base_rates[1])
    none = [replace(e, attributes={}) for e in held]
    assert evaluate(bundle, none).fairness["icu"]["verdict"] == "not judged"
    assert DRAWS >= 200
