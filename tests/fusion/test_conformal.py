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
    for seed in range(40):
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
    assert observed[0] > without[0] + 0.08
    assert (np.abs(observed - 0.9) <= 0.02).all(), observed
    assert observed[0] > observed[1:].mean() - 0.02  # as often as everybody else


def test_what_is_not_known_of_a_patient_shifts_nothing_and_the_risk_stays_inside() -> None:
    interval = Interval(0.9, 0.2, 25, 60, shifts={"age=older": 0.4, "sex=f": 1.0})
    assert Interval.from_json(interval.to_json()) == interval
    assert interval.around(0.5, "", {}) == interval.around(0.5, "", {"age": "younger"})
    assert interval.around(0.5) == pytest.approx((0.4, 0.6))
    for risk, held, shift in ((0.5, {"age": "older"}, 0.4), (0.1, {"age": "older", "sex": "f"}, 1.4)):
        there = float(sigmoid(np.log(risk / (1 - risk)) + shift))  # as wide as a risk of that size is given
        low, high = there - 0.2 * math.sqrt(there * (1 - there)), there + 0.2 * math.sqrt(there * (1 - there))
        assert interval.around(risk, "", held) == pytest.approx((min(risk, low), high))
    assert interval.around(0.0, "", {"sex": "f"}) == (0, 0)
    assert Interval(0.9, math.inf, 5, 2, shifts={"sex=f": 0.4}).around(0.5, "", {"sex": "f"}) == (0, 1)


def test_an_older_bundle_keeps_the_intervals_it_had() -> None:
    """Its shifts are in units of the spread of the risk as it was said, and have no variance."""
    old = {"level": 0.9, "q": 0.2, "group_size": 25, "groups": 60, "patterns": {}}
    interval = Interval.from_json({**old, "shifts": {"age=older": 0.1, "sex=f": 0.4, "sex=f+text": 0.1}})
    assert interval.around(0.5, "", {"age": "older"}) == pytest.approx((0.45, 0.65))
    assert interval.around(0.5, "", {"age": "older", "sex": "f"}) == pytest.approx((0.5, 0.85))
    assert interval.around(0.2, "text", {"sex": "f"}) == pytest.approx((0.2, 0.48))
    assert Interval.from_json(interval.to_json()) == interval
    assert Interval.from_json(old).around(0.5, "", {"age": "older"}) == pytest.approx((0.4, 0.6))


def test_few_patients_of_a_subgroup_shift_little_and_are_less_sure() -> None:
    rng = np.random.default_rng(0)
    risks = rng.uniform(0.1, 0.6, size=1000)
    labels = (rng.random(1000) < sigmoid(np.log(risks / (1 - risks)) + 1.0)).astype(float)
    found = {}
    for count in (30, 500):
        held = [{"site": "a" if i < count else "b"} for i in range(1000)]
        told = np.where(np.arange(1000) < count, labels, (rng.random(1000) < risks).astype(float))
        found[count] = fit_interval(risks, told, level=0.9, attributes=held)
        assert abs(found[count].shifts["site=b"]) < 0.3
    assert 0.8 < found[500].shifts["site=a"] < 1.2
    assert found[30].shifts["site=a"] < 0.9 * found[500].shifts["site=a"]
    assert found[30].variances["site=a"] > 5 * found[500].variances["site=a"]
    one = found[500]
    wide = dataclasses.replace(one, variances={**one.variances, "site=a": one.variances["site=a"] + 0.1})
    assert np.diff(wide.around(0.3, "", {"site": "a"})) > 1.1 * np.diff(one.around(0.3, "", {"site": "a"}))
    assert wide.around(0.3, "", {"site": "b"}) == one.around(0.3, "", {"site": "b"})
    few = [{"site": "a" if i < 5 else "b"} for i in range(1000)]
    assert set(fit_interval(risks, labels, level=0.9, attributes=few).shifts) == {"site=b"}


def test_a_subgroup_where_everybody_had_the_event_ends_somewhere() -> None:
    risks, held = np.full(200, 0.02), [{"site": "ab"[i % 2]} for i in range(200)]
    interval = fit_interval(risks, np.tile([1.0, 0.0], 100), level=0.9, attributes=held)
    assert 2 < interval.shifts["site=a"] < 8
    assert 0.02 <= interval.around(0.02, "", {"site": "a"})[1] <= 1


def test_q_rests_on_many_groupings() -> None:
    """So it varies between draws half as much as that of one grouping, and is no smaller."""
    many, one = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        said = sigmoid(rng.normal(-0.7, 1.2, size=1500))
        happened = (rng.random(1500) < said).astype(float)
        many.append(fit_interval(said, happened, level=0.9).q)
        groups = grouped(said, happened, 25)
        scores = sorted(abs(rate - mean) / math.sqrt(mean * (1 - mean)) for mean, rate in groups)
        one.append(scores[math.ceil((len(groups) + 1) * 0.9) - 1])
    assert np.std(many) < 0.6 * np.std(one)
    assert np.mean(many) == pytest.approx(np.mean(one), rel=0.04)


def test_groups_that_shifts_were_fitted_on_are_not_taken_for_new_ones() -> None:
    """Sites that mean nothing, each of patients scored alike: what the shifts explain is chance. It makes the
    errors of these groups smaller, and those of further groups larger."""
    share, plain = np.zeros(2), np.zeros(2)
    for seed in range(12):
        rng = np.random.default_rng(seed)

        def draw(rng: np.random.Generator = rng) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]]]:
            said = np.sort(sigmoid(rng.normal(-0.7, 0.8, size=1200)))
            return (
                said,
                (rng.random(1200) < said).astype(float),
                [{"site": str(i // 60)} for i in range(1200)],
            )

        said, labels, held = draw()
        interval = fit_interval(said, labels, level=0.9, attributes=held)
        asked, happened, new = draw()
        share += covered(interval, asked, happened, attributes=new)
        plain += covered(dataclasses.replace(interval, variances={}), asked, happened, attributes=new)
    assert 0.91 < share[0] / share[1] < 0.94
    assert plain[0] / plain[1] < share[0] / share[1] - 0.03


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
