"""Sex and age in a comparison: a worse served group shows, with its interval, in every figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fusion
from benchmarks.study import arms, subgroups
from benchmarks.study.comparison import FUSED
from benchmarks.study.folds import Heard, labels_of, listen
from fusion import Example, Modality, PatientInputs
from tests.fusion import simulated


def test_a_group_that_is_ranked_at_random_is_called() -> None:
    rng = np.random.default_rng(0)
    examples = [
        Example(PatientInputs(key=str(i)), {"icu": i % 2}, str(i), {"sex": ("female", "male")[i // 2 % 2]})
        for i in range(400)
    ]
    labels = labels_of(examples, "icu")
    is_male = np.array([e.attributes["sex"] == "male" for e in examples])
    risks = np.where(is_male, rng.random(400), 0.25 + 0.5 * labels)
    heard = Heard(labels, [e.group for e in examples], {FUSED: [risks]})
    heard.subgroups[FUSED] = {("sex", "female"): (9, 10), ("sex", "male"): (3, 10)}
    said = "\n".join(subgroups.table(examples, heard, FUSED, 0))
    assert "| sex: female | 200 / 100 | 1.000 [1.000, 1.000] | +0.000 [" in said
    assert "| sex: male | 200 / 100 | 0." in said
    assert "| 0.30 [0.11, 0.60] of 10 groups |" in said
    assert "clear of chance: sex: AUROC of female minus male is +0." in said
    assert "| age: " not in said, "nobody's age is known"


def test_without_known_groups_there_is_no_table() -> None:
    examples = [Example(PatientInputs(key=str(i)), {"icu": i % 2}, str(i)) for i in range(40)]
    heard = Heard(labels_of(examples, "icu"), [e.group for e in examples], {FUSED: [np.full(40, 0.5)]})
    assert subgroups.table(examples, heard, FUSED, 0) == []


@pytest.mark.parametrize("repeats", [1, 2])
def test_coverage_of_subgroups_is_counted_once_a_patient(repeats: int) -> None:
    config = replace(
        simulated.make_config(modalities=(Modality.TABULAR,), outcomes=simulated.OUTCOMES[:1]), folds=3
    )
    examples = simulated.examples(240, 5)
    name = config.outcomes[0].name
    arm = arms.fused(examples, config, FUSED, alone=False)
    heard = listen(examples, name, {FUSED: arm}, repeats={FUSED: repeats}, folds=3, seed=0)
    by_sex = {value: told for (of, value), told in heard.subgroups[FUSED].items() if of == "sex"}
    assert set(by_sex) == {e.attributes["sex"] for e in examples}
    assert all(0 <= inside <= groups for inside, groups in by_sex.values())
    bundle = fusion.train(examples[:160], [], config)
    size = bundle.intervals[0].group_size
    assert 240 // size - 2 * 3 <= sum(groups for _, groups in by_sex.values()) <= 240 // size + 6
