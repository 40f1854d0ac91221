"""A collection of one's own: tables like those of MIMIC-IV become tasks, and what does not fit is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fusion
from fusion import Modality
from fusion.evaluate.unseen import score
from fusion.research import read_collection, recognise

ABOUT: dict[str, Any] = {
    "name": "ours",
    "tasks": {"death": "Death in hospital", "icu": "Intensive care"},
    "fields": [
        {"name": "age", "label": "Age", "unit": "a", "low": 0, "high": 120},
        {"name": "male", "kind": "binary"},
    ],
    "channels": [{"name": "HR", "label": "Heart rate", "unit": "/min", "low": 15, "high": 300}],
    "attributes": ["sex"],
    "settings": {"image_backbone": "small_cnn", "text_backbone": "hashing", "image_size": 32},
}
STAYS = """stay_id,subject_id,death,icu,age,male,sex
1,a,1,0,72,1,male
2,a,0,,44,,
"""
EVENTS = """stay_id,hours_before,channel,value
1,3.5,HR,110
1,47,HR,90
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "collection.json").write_text(json.dumps(ABOUT))
    (tmp_path / "stays.csv").write_text(STAYS)
    (tmp_path / "events.csv").write_text(EVENTS)
    (tmp_path / "notes.csv").write_text('stay_id,hours_before,text\n2,5,"Well, no fever."\n')
    (tmp_path / "images.csv").write_text("stay_id,file,view\n1,deep.png,PA\n2,colour.png,\n")
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((8, 6), 65535, np.uint16)).save(tmp_path / "images" / "deep.png")
    Image.fromarray(np.full((8, 6, 3), (255, 0, 51), np.uint8)).save(tmp_path / "images" / "colour.png")
    return tmp_path


def test_a_row_is_a_stay_as_of_its_moment(folder: Path) -> None:
    assert recognise(folder) == "own_tables"
    collection = read_collection(folder)
    first, second = collection.tasks["death"].examples
    assert (first.labels, second.labels) == ({"death": 1, "icu": 0}, {"death": 0})
    assert first.group == second.group == "a", "stays of one person are on one side of every split"
    assert second.inputs.fields == {"age": 44.0, "male": None}
    assert [(p.hours_before, p.value) for p in first.inputs.series] == [(3.5, 110.0), (47.0, 90.0)]
    assert (first.attributes, second.attributes) == ({"sex": "male"}, {"sex": "unknown"})
    assert second.inputs.notes[0].text == "Well, no fever."
    assert len(collection.tasks["icu"].examples) == 1, "an unknown outcome is no row of its task"
    deep, colour = first.inputs.images[0].read().values, second.inputs.images[0].read().values
    assert (deep.shape, float(deep.min())) == ((1, 8, 6), 1.0)
    assert colour.shape == (1, 3, 8, 6)
    assert colour[0, :, 0, 0] == pytest.approx([1, 0, 0.2])
    assert collection.settings["modalities"] == (
        Modality.TABULAR, Modality.SERIES, Modality.TEXT, Modality.IMAGE,
    )  # fmt: skip


def test_it_is_trained_on_and_scored_like_any_other(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{i},p{i},{i % 2},,{60 + 6 * (i % 2) + 3 * rng.normal()},{i % 3 > 0:d},male" for i in range(60)]
    (folder / "stays.csv").write_text("\n".join([STAYS.splitlines()[0], *rows]))
    for name in ("events.csv", "notes.csv", "images.csv"):
        (folder / name).unlink()
    collection = read_collection(folder)
    task = collection.tasks["death"]
    outcome = fusion.OutcomeSpec("death", task.label, 720.0)
    config = fusion.FusionConfig(outcomes=(outcome,), **{**collection.settings, "folds": 3, "epochs": 2})
    bundle = fusion.train(task.examples[:40], [], config)
    asked = replace(task, examples=task.examples[40:])
    assert (score(bundle, collection, asked).figures["AUROC"]["value"] or 0) > 0.75


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("collection.json", "{}", "must name its tasks"),
        ("collection.json", json.dumps({**ABOUT, "seed": 1}), "says seed; known are"),
        ("collection.json", json.dumps({**ABOUT, "settings": {"depth": 1}}), "says depth"),
        (
            "collection.json",
            json.dumps({**ABOUT, "fields": [{"label": "Age"}]}),
            "each of the fields has a name",
        ),
        ("stays.csv", "stay_id,subject_id,death\n", "stays.csv lacks the columns icu, age, male, sex"),
        ("stays.csv", STAYS.replace("1,a,1", "1,a,2"), "death must be 0, 1 or empty"),
        ("stays.csv", STAYS.replace("72", "old"), "no number stands in age"),
        ("events.csv", EVENTS.replace("3.5", "-2"), "hours_before must be 0 or more"),
        ("events.csv", EVENTS.replace("HR", "pulse"), "channel 'pulse' is not among"),
        ("events.csv", EVENTS.replace("110", ""), "a row without a value"),
        ("images.csv", "stay_id,file,view\n1,../stays.csv,PA\n", "which is not in images/"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, file: str, text: str, words: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(fusion.BadInput, match=words):
        read_collection(folder)
