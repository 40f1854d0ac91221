"""The report: its shape, what it compares with, and what it says of outcomes that cannot be judged."""

from __future__ import annotations

import dataclasses
import json

import pytest

import fusion
from tests.fusion import simulated


@pytest.fixture(scope="module")
def report(bundle: fusion.Bundle) -> dict[str, object]:
    return fusion.evaluate(bundle, simulated.examples(80, 41)).to_json()


def test_the_report_has_the_agreed_shape(report: dict, bundle: fusion.Bundle) -> None:
    json.dumps(report, allow_nan=False)
    assert report["held_out"] == {"n": 80, "patients": 80}
    assert list(report["outcomes"]) == ["icu", "death"]
    icu = report["outcomes"]["icu"]
    assert icu["n"] == 80
    assert icu["base_rate"] == pytest.approx(icu["events"] / 80)
    for score in ("auroc", "auprc", "brier"):
        assert icu[score]["low"] <= icu[score]["value"] <= icu[score]["high"]
    assert set(icu["calibration"]) == {"slope", "intercept", "ece", "bins"}
    assert set(icu["calibration"]["bins"][0]) == {"mean", "observed", "n"}
    assert icu["coverage"]["level"] == 0.9
    assert icu["coverage"]["groups"] > 0
    assert icu["roc"][0] == [0, 0]
    assert icu["roc"][-1] == [1, 1]
    assert icu["pr"]
    assert report["outcomes"]["death"]["n"] < 80, "unknown labels are left out, not counted as no"
    assert bundle.metadata["metrics"]["icu"]["auroc"] == icu["auroc"]


def test_ablation_and_baselines_are_there(report: dict) -> None:
    rows = {row["name"]: row for row in report["ablation"]["icu"]}
    assert rows["all"]["auroc"]["value"] == report["outcomes"]["icu"]["auroc"]["value"]
    assert rows["image only"]["modalities"] == ["image"]
    assert "without image" in rows
    baselines = {row["name"]: row["auroc"]["value"] for row in report["baselines"]["icu"]}
    assert set(baselines) == {"simple stack", "logistic regression", "gradient boosting"}
    assert all(0.4 < value <= 1 for value in baselines.values())


def test_small_subgroups_say_too_few(bundle: fusion.Bundle, report: dict) -> None:
    rows = {row["value"]: row for row in report["subgroups"]["icu"]}
    assert set(rows) == {"female", "male"}
    assert rows["female"]["n"] + rows["male"]["n"] == 80
    assert rows["female"]["auroc"]["value"] is not None
    assert rows["female"]["note"] == ""
    few = [
        dataclasses.replace(e, attributes={"site": "small" if i < 12 else "large"})
        for i, e in enumerate(simulated.examples(80, 41))
    ]
    told = {row["value"]: row for row in fusion.evaluate(bundle, few).to_json()["subgroups"]["icu"]}
    assert told["small"]["auroc"] is None
    assert told["small"]["note"] == "too few"
    assert 0 < told["small"]["mean_risk"] < 1


def test_an_outcome_without_events_gives_nulls_and_a_note(bundle: fusion.Bundle) -> None:
    held = [dataclasses.replace(e, labels={"icu": 0}) for e in simulated.examples(30, 42)]
    report = fusion.evaluate(bundle, held).to_json()
    json.dumps(report, allow_nan=False)
    icu, death = report["outcomes"]["icu"], report["outcomes"]["death"]
    assert icu["auroc"] == {"value": None, "low": None, "high": None}
    assert icu["roc"] == []
    assert icu["note"] == "0 events among 30: no AUROC"
    assert icu["brier"]["value"] is not None
    assert death["n"] == 0
    assert death["base_rate"] is None
    assert death["brier"]["value"] is None


def test_patients_trained_on_are_not_held_out(bundle: fusion.Bundle) -> None:
    with pytest.raises(fusion.BadInput, match="both the training and the held-out"):
        fusion.evaluate(bundle, simulated.examples(90, 1)[:5])
    with pytest.raises(fusion.NotEnoughData):
        fusion.evaluate(bundle, [])


def test_a_loaded_bundle_says_why_baselines_are_missing(bundle: fusion.Bundle, tmp_path) -> None:
    bundle.save(tmp_path / "model")
    loaded = fusion.Bundle.load(tmp_path / "model")
    report = fusion.evaluate(loaded, simulated.examples(40, 43)).to_json()
    assert report["baselines"] == {"icu": [], "death": []}
    assert "loaded, not trained here" in report["notes"][0]
