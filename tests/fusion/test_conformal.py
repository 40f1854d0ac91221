"""The interval's promise, overall, per pattern and per subgroup, on simulated exchangeable patients."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest

import fusion
from fusion.calibrate import sigmoid
from fusion.conformal import Interval, covered, fit_interval, grouped
from tests.fusion import simulated


def _world(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risks, labels, pattern; of pattern "a" the risks are off by more."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-0.7, 1.2, size=count)
    pattern = np.where(rng.random(count) < 0.5, "a", "a+b")
    said = sigmoid(true + np.where(pattern == "a", 0.8, 0.0))
    return said, (rng.random(count) < sigmoid(true)).astype(float), pattern


def test_patterns_get_widths_of_their_own_and_each_is_covered() -> None:
    share = {"a": [0, 0], "a+b": [0, 0]}
    for seed in range(25):
        said, labels, pattern = _world(3000, seed)
        interval = fit_interval(said, labels, level=0.9, patterns=pattern)
        assert interval.patterns["a"] > 1.3 * interval.patterns["a+b"]
        asked, happened, new = _world(3000, 1000 + seed)
        for name, count in share.items():
            here = new == name
            inside, groups = covered(interval, asked[here], happened[here], patterns=new[here])
            count[0] += inside
            count[1] += groups
    for inside, groups in share.values():
        assert 0.87 <= inside / groups <= 0.94
    assert Interval.from_json(interval.to_json()) == interval
    low, high = interval.around(0.4, "a")
    assert high - low > np.diff(interval.around(0.4, "a+b"))
    assert interval.around(0.4, "never seen") == interval.around(0.4)


def test_a_pattern_too_few_have_shares_the_common_width() -> None:
    said, labels, _ = _world(3000, 0)
    pattern = np.array(["rare" if i < 100 else "a" for i in range(3000)])
    interval = fit_interval(said, labels, level=0.9, patterns=pattern)
    assert set(interval.patterns) == {"a"}
    old = {"level": 0.9, "q": None, "group_size": 5, "groups": 2}
    assert Interval.from_json(old).around(0.3, "a") == (0.0, 1.0)


def test_every_subgroup_that_risks_are_fair_to_is_covered_as_stated() -> None:
    """Averaged over draws: 90 ± 2 % in each subgroup, though subgroups differ in how ill they are."""
    share = np.zeros((2, 2))
    for seed in range(60):
        rng = np.random.default_rng(seed)

        def draw(count: int, rng: np.random.Generator = rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            older = rng.random(count) < 0.4
            true = rng.normal(-1 + older, 1.0)
            return sigmoid(true), (rng.random(count) < sigmoid(true)).astype(float), older

        said, labels, _ = draw(1500)
        interval = fit_interval(said, labels, level=0.9)
        asked, happened, older = draw(3000)
        for place, here in enumerate((older, ~older)):
            share[place] += covered(interval, asked[here], happened[here])
    observed = share[:, 0] / share[:, 1]
    assert (np.abs(observed - 0.9) <= 0.02).all(), observed


def test_a_subgroup_that_risks_misjudge_is_covered_and_so_are_those_it_is_part_of() -> None:
    """Older patients have more events than a model that is told no age can say; sex does not matter."""
    values = (("age", "older"), ("age", "younger"), ("sex", "f"), ("sex", "m"))
    share, plain = np.zeros((4, 2)), np.zeros((4, 2))
    for seed in range(12):
        rng = np.random.default_rng(seed)

        def draw(
            count: int, rng: np.random.Generator = rng
        ) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]]]:
            older, logit = rng.random(count) < 0.3, rng.normal(-0.6, 1.0, size=count)
            true = sigmoid(logit + np.where(older, 0.49, -0.21))
            held = [{"age": "older" if o else "younger", "sex": "fm"[int(rng.random() < 0.5)]} for o in older]
            return sigmoid(logit), (rng.random(count) < true).astype(float), held

        said, labels, held = draw(1500)
        interval = fit_interval(said, labels, level=0.9, attributes=held)
        asked, happened, new = draw(4000)
        for place, (name, value) in enumerate(values):
            here = np.array([one[name] == value for one in new])
            known = [one for one in new if one[name] == value]
            share[place] += covered(interval, asked[here], happened[here], attributes=known)
            plain[place] += covered(interval, asked[here], happened[here])
    without, observed = plain[:, 0] / plain[:, 1], share[:, 0] / share[:, 1]
    assert without[0] < 0.82
    assert observed[0] > without[0] + 0.04
    assert (np.abs(observed - 0.9) <= 0.035).all(), observed


def test_what_is_not_known_of_a_patient_shifts_nothing_and_the_risk_stays_inside() -> None:
    interval = Interval(0.9, 0.2, 25, 60, shifts={"age=older": 0.1, "sex=f": 0.4})
    assert Interval.from_json(interval.to_json()) == interval
    assert interval.around(0.5, "", {}) == interval.around(0.5, "", {"age": "younger"})
    assert interval.around(0.5) == pytest.approx((0.4, 0.6))
    assert interval.around(0.5, "", {"age": "older"}) == pytest.approx((0.45, 0.65))
    assert interval.around(0.5, "", {"age": "older", "sex": "f"}) == pytest.approx((0.5, 0.85))
    assert Interval(0.9, math.inf, 5, 2, shifts={"sex=f": 0.4}).around(0.5, "", {"sex": "f"}) == (0, 1)


def test_few_patients_of_a_subgroup_shift_little() -> None:
    rng = np.random.default_rng(0)
    risks = rng.uniform(0.1, 0.6, size=1000)
    labels = (rng.random(1000) < risks).astype(float)
    for count, least, most in ((25, 0.0, 0.7), (400, 1.0, 1.5)):
        here = np.arange(1000) < count
        held = [{"site": "a" if one else "b"} for one in here]
        interval = fit_interval(risks, np.where(here, 1.0, labels), level=0.9, attributes=held)
        assert least <= interval.shifts["site=a"] <= most
    few = [{"site": "a" if i < 5 else "b"} for i in range(1000)]
    assert set(fit_interval(risks, labels, level=0.9, attributes=few).shifts) == {"site=b"}


def test_patients_weighted_for_the_censored_count_for_more() -> None:
    risks, labels = np.full(50, 0.5), np.tile([0.0, 1.0], 25)
    weights = np.where(labels == 1, 3.0, 1.0)
    assert grouped(risks, labels, 10, weights)[0] == pytest.approx((0.5, 0.75))
    assert math.isinf(fit_interval(risks[:20], labels[:20], level=0.9, weights=weights[:20]).q)


def test_the_report_counts_coverage_in_every_subgroup_and_pattern(bundle: fusion.Bundle) -> None:
    held = simulated.examples(300, 77)
    bundle = copy.copy(bundle)
    bundle.examples = ()  # no baselines: they take long and are not asked about
    report = fusion.evaluate(bundle, held).to_json()
    rows = {row["value"]: row["coverage"] for row in report["subgroups"]["icu"]}
    size = report["outcomes"]["icu"]["coverage"]["group_size"]
    for value, said in rows.items():
        count = sum(e.attributes["sex"] == value for e in held)
        assert said["groups"] == count // size
        assert 0 <= said["observed"] <= 1
    one = [dataclasses.replace(e, attributes={"site": "a" if i < 2 else "b"}) for i, e in enumerate(held)]
    few = {r["value"]: r["coverage"] for r in fusion.evaluate(bundle, one).to_json()["subgroups"]["icu"]}
    assert few["a"] == {"observed": None, "groups": 0}
    for pattern in report["outcomes"]["icu"]["coverage"]["patterns"]:
        assert pattern["groups"] >= 4
        assert "tabular" in pattern["pattern"]
