"""Severity told from a picture: no patient on both sides, scores on their scales, figures as known."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from benchmarks.study import comparing, severity
from benchmarks.study.comparing import Floats
from benchmarks.study.folds import Rows
from fusion import BadInput, Example, PatientInputs
from fusion.research import Collection, read_collection
from tests.fusion.test_research_chest import lay_out

NAMES = [score.column for score in severity.SCORES]


def with_scores(folder: Path, **changed: str) -> Path:
    """The tiny chest folder with scores: the ill, whose pictures are brighter, are scored high."""
    lay_out(folder, 12)
    path = folder / "images.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        is_ill = int(row["patient_id"][1:]) % 2
        row.update(dict.fromkeys(NAMES, "5.5" if is_ill else "1") | changed)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def small(folder: Path) -> Collection:
    """The folder, embedded by a small network."""
    collection = read_collection(folder)
    settings = {**collection.settings, "image_backbone": "small_cnn", "image_size": 32}
    return replace(collection, settings=settings)


def test_what_shows_in_the_picture_is_told_better_than_by_a_constant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(severity, "read_collection", small)
    folder = with_scores(tmp_path / "chest")
    said = severity.run(folder, repeats=1, seed=0, quick=True, keep=tmp_path / "kept")
    assert said.count("### ") == 4
    assert "24 pictures of 12 patients, mean 3.2" in said
    found = re.findall(
        r"^\| (.+) \| (\d\.\d{3}) \[.*\] \| (?:-|[+-]\d.*\]) \| (-?\d\.\d{3})", said, re.MULTILINE
    )
    errors = {name: (float(error), float(share)) for name, error, share in found}
    assert errors[severity.RIDGE][0] < 0.5 * errors[severity.CONSTANT][0]
    assert errors[severity.RIDGE][1] > 0.5 > errors[severity.CONSTANT][1]
    assert errors["the other reader"] == (0.0, 1.0)


def test_nobody_is_judged_by_what_was_learned_from_them() -> None:
    examples = [Example(PatientInputs(key=str(i)), {}, f"g{i // 3}") for i in range(60)]

    def judge(seen: Rows, held: Rows) -> Floats:
        assert not {examples[i].group for i in seen} & {examples[i].group for i in held}
        return held.astype(float)

    values = np.arange(60.0)
    said = severity.listen(examples, values, {"one": judge}, 40.0, repeats=2, folds=5, seed=0)
    for told in said["one"]:
        assert np.array_equal(told, np.minimum(values, 40)), "every row once, cut to the scale"


def test_error_and_variance_told_are_those_of_the_rows_drawn() -> None:
    rng = np.random.default_rng(0)
    true, groups = rng.random(50), [f"g{i // 2}" for i in range(50)]
    said, weights = true + 0.3 * rng.normal(size=50), comparing.draw(groups, 0, draws=10)
    errors, shares = (f(said, true, weights) for f in (severity.absolute_error, severity.explained))
    for weight, error, share in zip(weights, errors, shares, strict=True):
        assert error == pytest.approx(mean_absolute_error(true, said, sample_weight=weight))
        assert share == pytest.approx(r2_score(true, said, sample_weight=weight))


@pytest.mark.parametrize("wrong", ["7", "-1", "severe", "nan"])
def test_a_score_off_its_scale_is_named(tmp_path: Path, wrong: str) -> None:
    folder = with_scores(tmp_path / "chest", opacity_mean=wrong)
    with pytest.raises(BadInput, match=rf"opacity_mean of P0_1.jpg is '{wrong}'; expected .* 0 to 6"):
        severity.read_scores(folder / "images.csv")


def test_a_table_without_scores_is_refused_by_column(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "chest")
    with pytest.raises(BadInput, match="lacks the column geographic_extent_mean"):
        severity.read_scores(folder / "images.csv")
