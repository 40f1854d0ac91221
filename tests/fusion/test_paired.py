"""Two bundles on the same patients: the difference is paired, and of nobody that either has learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fusion
from fusion import Modality, metrics
from fusion.batch import collate
from fusion.predict import risks as predict_risks
from tests.fusion import simulated

HELD = simulated.examples(80, 41)


@pytest.fixture(scope="module")
def lesser() -> fusion.Bundle:
    """Of one modality, and of one outcome."""
    config = simulated.make_config(modalities=(Modality.TABULAR,), outcomes=simulated.OUTCOMES[:1])
    return fusion.train(simulated.examples(90, 1), simulated.examples(40, 2), config)


def test_the_difference_is_of_the_two_scores_and_surer_than_either(
    bundle: fusion.Bundle, lesser: fusion.Bundle
) -> None:
    found = fusion.evaluate_beside(bundle, HELD, lesser, HELD)
    assert list(found) == ["icu"], "the other outcome is not the other's"
    labels = np.array([e.labels["icu"] for e in HELD], float)
    alone = [
        predict_risks(one, collate([e.inputs for e in HELD], one.config, one.embedder))[:, 0]
        for one in (bundle, lesser)
    ]
    assert found["icu"]["n"] == found["icu"]["patients"] == 80
    assert found["icu"]["events"] == labels.sum()
    for name, score in (("auroc", metrics.auroc), ("brier", metrics.brier)):
        ours, theirs = (score(risks, labels) for risks in alone)
        said = found["icu"][name]
        assert said["value"] == pytest.approx(ours - theirs)
        assert said["low"] <= said["value"] <= said["high"]
    same = fusion.evaluate_beside(bundle, HELD, bundle, HELD)["icu"]
    assert same["auroc"] == same["brier"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_other_way_round_is_the_opposite(bundle: fusion.Bundle, lesser: fusion.Bundle) -> None:
    one, other = (
        fusion.evaluate_beside(*pair)["icu"]["auroc"]
        for pair in ((bundle, HELD, lesser, HELD), (lesser, HELD, bundle, HELD))
    )
    assert one["value"] == pytest.approx(-other["value"])
    assert [one["low"], one["high"]] == pytest.approx([-other["high"], -other["low"]])


def test_of_one_answer_alone_there_is_no_auroc(bundle: fusion.Bundle, lesser: fusion.Bundle) -> None:
    well = [e for e in HELD if not e.labels["icu"]]
    found = fusion.evaluate_beside(bundle, well, lesser, well)["icu"]
    assert found["auroc"]["value"] is None
    assert found["brier"]["value"] is not None
    assert found["events"] == 0


def test_another_horizon_is_another_outcome(bundle: fusion.Bundle, lesser: fusion.Bundle) -> None:
    later = replace(lesser.config.outcomes[0], horizon_hours=1.0)
    elsewhere = replace(lesser, config=replace(lesser.config, outcomes=(later,)))
    assert fusion.evaluate_beside(bundle, HELD, elsewhere, HELD) == {}


def test_what_cannot_be_compared_is_said(bundle: fusion.Bundle, lesser: fusion.Bundle) -> None:
    with pytest.raises(fusion.NotEnoughData, match="no held-out"):
        fusion.evaluate_beside(bundle, [], lesser, [])
    with pytest.raises(fusion.BadInput, match="same patients in the same order"):
        fusion.evaluate_beside(bundle, HELD, lesser, HELD[::-1])
    seen = simulated.examples(90, 1)
    with pytest.raises(fusion.BadInput, match="both the training and the held-out"):
        fusion.evaluate_beside(bundle, seen, lesser, seen)
