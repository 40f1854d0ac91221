"""What the tables of a study rest on: folds by group and shared by arms, paired draws, embeddings kept."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import fusion
from benchmarks.study import arms, comparing, comparison, generalisation, pages, patterns, summary
from benchmarks.study.__main__ import PARTS
from benchmarks.study.folds import Heard, Rows, Said, listen
from benchmarks.study.keeping import Keeper
from fusion import Example, Frames, Modality, PatientInputs, PixelInput, SeriesPoint
from fusion.baselines import blocks, counted_once
from fusion.batch import collate
from fusion.embedding import Embedder
from fusion.research import SIGNS, Collection, Task
from tests.fusion import simulated


def rows(count: int, groups: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(PatientInputs(key=str(i)), {"icu": int(rng.random() < 0.4)}, f"g{i % groups}")
        for i in range(count)
    ]


def test_folds_never_split_a_group_and_are_the_same_for_every_arm() -> None:
    examples, seen_by = rows(120, 30), {}

    def arm(name: str) -> arms.Arm:
        def judge(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
            assert not {examples[i].group for i in seen} & {examples[i].group for i in held}
            assert len(seen) + len(held) == 120
            seen_by.setdefault(name, []).append((seed, tuple(held)))
            return {name: Said(held.astype(float))}

        return judge

    heard = listen(
        examples, "icu", {"one": arm("one"), "two": arm("two")}, repeats={"one": 3, "two": 3}, folds=5, seed=0
    )
    assert seen_by["one"] == seen_by["two"]
    assert len({held for _, held in seen_by["one"]}) == 15, "another partition each repeat"
    for told in heard.risks.values():
        assert len(told) == 3
        for risks in told:
            assert np.array_equal(risks, np.arange(120)), "every row is judged once a repeat"


def test_weighted_scores_are_those_of_the_rows_drawn() -> None:
    rng = np.random.default_rng(1)
    risks, labels = rng.random(80).round(1), (rng.random(80) < 0.4).astype(float)
    weights = comparing.draw([f"g{i // 2}" for i in range(80)], 0, draws=20)
    assert (weights[0] == 1).all()
    assert np.array_equal(weights[:, ::2], weights[:, 1::2]), "both rows of a group are drawn together"
    for weight, area, precision, error in zip(
        weights,
        comparing.auroc(risks, labels, weights),
        comparing.auprc(risks, labels, weights),
        comparing.brier(risks, labels, weights),
        strict=True,
    ):
        drawn = np.repeat(np.arange(80), weight.astype(int))
        assert area == pytest.approx(roc_auc_score(labels[drawn], risks[drawn]))
        assert precision == pytest.approx(average_precision_score(labels[drawn], risks[drawn]))
        assert error == pytest.approx(((risks[drawn] - labels[drawn]) ** 2).mean())


def test_paired_differences_are_tighter_than_unpaired_ones() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random(300) < 0.4).astype(float)
    one = labels + rng.normal(size=300)
    other = one + 0.1 * rng.normal(size=300)
    weights = comparing.draw([str(i) for i in range(300)], 0)
    first, second = (comparing.scored(comparing.auroc, [r], labels, weights) for r in (one, other))
    gap, alone = comparing.difference(first, second), comparing.interval(first)
    assert gap.high - gap.low < (alone.high - alone.low) / 3
    assert comparing.difference(first, first).high == 0


def test_the_quick_part_of_a_study_keeps_groups_whole() -> None:
    examples = rows(4000, 1000)
    some = comparison._some(examples, quick=True)
    assert 600 < len(some) <= 800
    chosen = {e.group for e in some}
    assert len(some) == sum(e.group in chosen for e in examples)


def test_tuning_is_split_off_by_group_where_rows_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "SMALL", 1000)
    examples = rows(1200, 400)
    config = simulated.make_config(modalities=(Modality.TABULAR,), outcomes=simulated.OUTCOMES[:1])
    train, tuning = arms.split(examples, config)
    assert not {e.group for e in train} & {e.group for e in tuning}
    assert len(train) + len(tuning) == 1200
    assert 150 <= len(tuning) <= 250
    assert arms.split(examples[:120], config) == (examples[:120], [])


def test_a_kept_embedding_is_not_made_again(tmp_path: Path) -> None:
    config = simulated.make_config(modalities=(Modality.IMAGE,))
    asked = []

    def read() -> Frames:
        asked.append(1)
        return Frames(np.linspace(0, 1, 1600, dtype=np.float32).reshape(1, 40, 40), np.zeros(1, np.float32))

    pixels = PixelInput("digest", read, np.zeros(1, np.float32))
    example = Example(PatientInputs(key="a", images=(pixels,)), {"icu": 1}, "a")
    first = Keeper(tmp_path).filled([example], config)[0].inputs.images[0].embeddings
    again = Keeper(tmp_path).filled([example], config)[0].inputs.images[0].embeddings
    assert len(asked) == 1
    assert np.array_equal(first[simulated.IMAGE.version], again[simulated.IMAGE.version])
    Keeper(tmp_path).filled([example], replace(config, image_size=48))
    assert len(asked) == 2, "another size is another embedding"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> comparison.Outcome:
    """A whole study on simulated patients."""
    config = simulated.make_config()
    names = ("fields", "channels", "image_backbone", "image_size", "folds", "epochs")
    examples = tuple(
        replace(e, attributes={**e.attributes, "view": "AP" if e.labels["icu"] else "PA"})
        for e in simulated.examples(150, 3, missing=0.1)
    )
    task = Task(name="icu", label="Intensive care", examples=examples)
    collection = Collection(
        name="simulated",
        tasks={"icu": task},
        settings={
            **{name: getattr(config, name) for name in names},
            "modalities": (Modality.TABULAR, Modality.IMAGE, Modality.SERIES),
        },
        caveats=("Simulated patients.",),
    )
    keeper = Keeper(tmp_path_factory.mktemp("kept"))
    found = comparison.measure(collection, task, keeper, repeats=1, seed=0, quick=False)
    said = comparison.page(collection, [found], repeats=1, seed=0, quick=False)
    (line,) = summary.read("simulated", said)
    assert line.task == "Intensive care"
    assert "By sex and age, *fused*" in said
    assert "| sex: female | " in said
    assert line.over_stack.said == found.over("fused", "stack: sum of logits").signed
    assert line.alone == found.best_alone
    assert line.made == "no date (× 1)"
    assert line.over_boosting is not None
    assert line.over_boosting.said == found.over("fused", "gradient boosting, one row of all").signed
    assert line.over_picked is not None
    assert line.over_picked.said == found.over_picked.signed
    assert len(summary.PATTERNS.findall(said)) == len(summary.PICKED_PATTERNS.findall(said)) == 1
    return found


def test_a_study_holds_every_arm_and_says_where_fusion_helps(outcome: comparison.Outcome) -> None:
    arms_found = set(outcome.found)
    assert {"fused", "fused, gated", "fused, attention", "stack: sum of logits", "stack: image"} <= arms_found
    assert {"fused: image only", "gradient boosting, one row of all", "view only"} <= arms_found
    assert outcome.auroc("view only").value == 1.0, "the view was made to tell the outcome"
    assert outcome.auroc("fused").value > outcome.auroc("fused: image only").value
    assert outcome.best_alone not in ("fused", "stack: sum of logits")
    collection = Collection(name="simulated", tasks={}, settings={"outcomes": ()}, caveats=("Simulated.",))
    said = "\n".join(comparison._shows(collection, [outcome]))
    assert "Better than the simple stack" in said
    assert "Worse than the simple stack, the interval excluding 0: no task." in said
    assert "**not** shown to help" in said
    assert "best arm is *view only*" in said
    assert "; fused − *gradient boosting, one row of all* " in said


def test_the_best_arm_is_one_that_ran_in_every_repeat() -> None:
    steady, once = np.full((3, 5), 0.7), np.full((1, 5), 0.9)
    found = {"fused": steady, "stack: image": steady - 0.1, "fused, gated": once}
    heard = Heard(np.zeros(4), [], {arm: list(said) for arm, said in found.items()})
    task = Task(name="icu", label="Intensive care", examples=())
    outcome = comparison.Outcome(task, (), heard, found, np.ones((5, 4)))
    assert outcome.best == "fused"


def test_every_pattern_of_three_modalities_stands_beside_the_best_in_it(outcome: comparison.Outcome) -> None:
    table = patterns.table(outcome.heard, outcome.found, outcome.weights, "fused")
    rows = [line.split(" | ") for line in table if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == [
        "| tabular + image",
        "| tabular + series",
        "| image + series",
        "| tabular + image + series",
    ]
    for row in rows:
        best = row[2].removeprefix("fused: ").removeprefix("stack: ").removesuffix(" only")
        assert best in row[0], "the best of those present"
        assert f"fused: {row[0][2:]}" in {*outcome.found, "fused: tabular + image + series"}
    assert rows[-1][5] == f"{outcome.over_picked.signed} |", "of the whole model, as in the first table"
    whole = outcome.over("fused", rows[-1][2]).signed
    assert rows[-1][3] == whole
    pair = outcome.over("fused: tabular + image", rows[0][2]).signed
    assert rows[0][3] == pair
    assert re.search(r"Worse than .* excluding 0: (none|\d) of 4", "\n".join(table))
    shown = "\n".join(comparison._table(outcome))
    assert "| fused: image only |" in shown
    assert "| fused: tabular + image |" not in shown, "patterns have a table of their own"
    two = {arm: said for arm, said in outcome.found.items() if "series" not in arm}
    assert patterns.table(outcome.heard, two, outcome.weights, "fused") == []


def test_other_fusions_keep_groups_together_and_hear_of_subgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    config = simulated.make_config(
        modalities=(Modality.TABULAR, Modality.IMAGE), outcomes=simulated.OUTCOMES[:1]
    )
    examples = [replace(e, group=f"g{i // 2}") for i, e in enumerate(simulated.examples(80, 4))]
    bundle = fusion.train(examples, [], config)
    asked: dict[str, dict[str, Any]] = {}

    def spy(name: str) -> None:
        real = getattr(arms, name)

        def called(*told: Any, **how: Any) -> Any:
            asked[name] = how
            return real(*told, **how)

        monkeypatch.setattr(arms, name, called)

    spy("fit_fusion")
    spy("calibrate_bundle")
    arms.fused_by(fusion.FusionKind.GATED, bundle, [])
    for name in ("fit_fusion", "calibrate_bundle"):
        groups = asked[name]["groups"]
        assert len(set(groups)) == 40
        assert (groups[::2] == groups[1::2]).all()
    assert asked["calibrate_bundle"]["subgroups"] == ([e.attributes for e in examples], [])
    again = arms.fused_by(config.fusion, bundle, [])
    assert torch.equal(again.model.heard, bundle.model.heard), "the same fusion is the same"
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, bundle.model.state_dict()[name]), name
    assert again.calibration.to_json() == bundle.calibration.to_json()


def test_a_stack_of_as_many_components_stands_beside_the_usual_one() -> None:
    config = simulated.make_config(
        modalities=(Modality.TABULAR, Modality.IMAGE), outcomes=simulated.OUTCOMES[:1]
    )
    examples = simulated.examples(60, 4)
    assert "wide stack" not in arms.simple(examples, config)
    wide = arms.simple(examples, replace(config, image_components=40))["wide stack"]
    (name,) = wide(np.arange(40), np.arange(40, 60), 0)
    assert name == "stack of 40 image components"


def test_whom_a_left_out_source_holds_is_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [
        replace(e, group=f"g{i // 2}", attributes={"view": "AP" if i % 3 else "PA"})
        for i, e in enumerate(simulated.examples(60, 3))
    ]
    task = Task(name="icu", label="Intensive care", examples=tuple(examples))
    collection = Collection(
        name="simulated", tasks={"icu": task}, settings={"modalities": (Modality.TABULAR,)}
    )

    def spy(name: str) -> arms.Arm:
        def judge(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
            assert not {examples[i].group for i in seen} & {examples[i].group for i in held}
            assert len({examples[i].attributes["view"] for i in held}) == 1
            return {name: Said(np.full(len(held), 0.5))}

        return judge

    monkeypatch.setattr(arms, "simple", lambda *_: {"simple stack": spy(generalisation.STACK)})
    monkeypatch.setattr(arms, "fused", lambda *_, **__: spy(generalisation.FUSED))
    found = generalisation.leave_out(collection, task, "view", Keeper(), seed=0, quick=True)
    assert all(not np.isnan(risks).any() for risks in found.risks.values())
    assert "pooled" in "\n".join(generalisation._table(found, 0))


def test_small_sources_are_left_out_together() -> None:
    examples = [
        Example(PatientInputs(key=str(i)), {"icu": 1}, str(i), {"site": "big" if i < 40 else f"small{i}"})
        for i in range(60)
    ]
    assert set(generalisation.sources_of(examples, "site")) == {"big", generalisation.TOGETHER}


def test_every_part_can_be_found() -> None:
    assert set(PARTS) == set(SIGNS)
    for parts in PARTS.values():
        for module in parts.values():
            assert importlib.util.find_spec(module) is not None, module


def test_a_table_replaces_only_its_own_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", tmp_path / "experiments.md")
    pages.keep("one", "## One\n\nfirst")
    pages.keep("two", "## Two")
    pages.keep("one", "## One\n\nagain")
    text = pages.PAGE.read_text()
    assert text.count("## One") == 1
    assert "again" in text
    assert "first" not in text
    assert "## Two" in text


def test_within_folds_no_calibration_of_a_fold_matters() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random(100) < 0.4).astype(float)
    risks, folds = rng.random(100) * 0.5 + 0.3 * labels, np.arange(100) % 5
    groups = [f"g{i}" for i in range(100)]
    calibrated = risks * (0.2 + 0.2 * folds) + 0.1 * folds
    weights = comparing.draw(groups, 0, draws=20)
    heard = Heard(labels, groups, {"plain": [risks], "by fold": [calibrated]}, folds=[folds])
    plain, by_fold = (comparing.within_folds(heard, arm, weights) for arm in ("plain", "by fold"))
    assert plain.shape == (1, 21)
    assert by_fold == pytest.approx(plain)
    one = comparing.auroc_within(risks, labels, weights, np.zeros(100, np.int64))
    assert one == pytest.approx(comparing.auroc(risks, labels, weights)), "one fold is the whole"
    pooled = [
        comparing.scored(comparing.auroc, heard.risks[arm], labels, weights)[0, 0] for arm in heard.risks
    ]
    assert pooled[1] < pooled[0] - 0.05


def test_what_is_picked_beforehand_is_picked_without_the_fold_it_is_scored_on() -> None:
    labels = np.tile([0.0, 1.0], 40)
    folds = np.repeat(np.arange(4), 20)
    right, wrong = 0.4 + 0.2 * labels, 0.6 - 0.2 * labels
    lucky = np.where(folds == 3, right, wrong)  # right where it is asked last, and nowhere else
    steady = np.where(folds == 3, 0.5, right)
    weights = comparing.draw([f"g{i}" for i in range(80)], 0, draws=20)
    risks = {"lucky": [lucky, lucky], "steady": [steady]}
    heard = Heard(labels, [], risks, folds=[folds, folds])
    found = comparing.picked(heard, ["lucky", "steady"], weights)
    assert found.shape == (1, 21), "the repeats that both ran in"
    assert found[0, 0] == pytest.approx(0.875), "the steady one in every fold, as good as a guess in the last"
    at_once = max(comparing.auroc_within(r[0], labels, weights, folds)[0] for r in risks.values())
    assert at_once == pytest.approx(0.875)
    noise = {f"noise {n}": [np.random.default_rng(n).random(80)] for n in range(20)}
    heard = Heard(labels, [], noise, folds=[folds])
    best = max(comparing.within_folds(heard, arm, weights)[0, 0] for arm in noise)
    assert best > comparing.picked(heard, list(noise), weights)[0, 0] + 0.05, "the luckiest of them"


def test_fields_that_stand_in_the_series_are_seen_in_reports_and_in_studies() -> None:
    """Summaries of a series begin with its last value in both."""
    config = simulated.make_config(modalities=(Modality.TABULAR, Modality.SERIES))
    config = replace(config, channels=config.channels + config.fields, outcomes=simulated.OUTCOMES[:1])

    def in_both(example: Example) -> Example:
        fields = example.inputs.fields
        points = [SeriesPoint(name, 1.0, value) for name, value in fields.items() if value is not None]
        return replace(example, inputs=replace(example.inputs, series=(*example.inputs.series, *points)))

    examples = [in_both(e) for e in simulated.examples(40, 3)]
    batch = collate([e.inputs for e in examples], config, Embedder(config))
    rows = blocks(batch, config.modalities)
    assert set(counted_once(rows, rows, config)) == {Modality.SERIES}
    stack = arms.simple(examples, config)["simple stack"]
    found = stack(np.arange(30), np.arange(30, 40), 0)
    assert np.array_equal(found["stack: sum of logits"].risks, found["stack: series"].risks)
    assert not np.array_equal(found["stack: tabular"].risks, found["stack: series"].risks)
