"""Intensive-care stays and skin lesions: rows, times, what is unknown or left out, clear refusals."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion import Modality
from fusion.errors import BadInput
from fusion.research import read_collection
from fusion.research.icu_physionet2012 import TASK
from fusion.research.skin_ham10000 import SITES
from tests.shared import shared

RECORDS = """RecordID,Time,Parameter,Value
7,00:00,Age,72
7,00:00,Gender,1
7,00:00,Height,-1
7,00:00,ICUType,3
7,00:00,Weight,80.5
7,01:30,HR,90
7,47:59,HR,110
7,12:00,Lactate,-1
7,49:00,HR,300
8,00:00,Age,44
8,00:00,Gender,-1
8,06:00,pH,735
99,00:00,Age,50
"""
OUTCOMES = """RecordID,SAPS_I,SOFA,Length_of_stay,Survival,In_hospital_death
7,14,-1,9,5,1
8,6,2,4,-1,0
"""


@pytest.fixture
def stays(tmp_path: Path) -> Path:
    """Two stays with outcomes, one row of a stay that has none."""
    with gzip.open(tmp_path / "records.csv.gz", "wt") as file:
        file.write(RECORDS)
    (tmp_path / "outcomes.csv").write_text(OUTCOMES)
    return tmp_path


def test_a_stay_is_judged_48_hours_after_admission(stays: Path) -> None:
    collection = read_collection(stays)
    first, second = collection.tasks[TASK].examples
    assert (first.group, first.labels, second.labels) == ("7", {TASK: 1}, {TASK: 0})
    rates = {round(p.hours_before * 60): p.value for p in first.inputs.series if p.channel == "HR"}
    assert rates == {46 * 60 + 30: 90.0, 1: 110.0}, "nothing after 48 h"
    assert [(p.value, p.hours_before) for p in first.inputs.series if p.channel == "Weight"] == [(80.5, 48.0)]
    assert first.inputs.fields["height"] is None, "-1 is unknown"
    assert "Lactate" not in {p.channel for p in first.inputs.series}
    assert first.inputs.fields["unit_medical"] == 1.0
    assert second.inputs.fields["male"] is None
    assert second.inputs.fields["unit_medical"] is None, "an unknown unit is not four times no"
    assert first.attributes == {"age": "70 and over", "sex": "male", "unit": "medical"}


def test_others_scores_and_the_end_are_no_inputs(stays: Path) -> None:
    collection = read_collection(stays)
    assert collection.extra["severity"] == {"7": (14.0, None), "8": (6.0, 2.0)}
    assert collection.extra["survival"] == {"7": (5.0, 9.0), "8": (None, 4.0)}
    told = {
        *collection.tasks[TASK].examples[0].inputs.fields,
        *(c.name for c in collection.settings["channels"]),
    }
    assert not {
        name for name in told if name.lower() in ("saps_i", "saps", "sofa", "survival", "length_of_stay")
    }


def test_a_slip_of_the_decimal_point_is_out_of_range(stays: Path) -> None:
    collection = read_collection(stays)
    limits = {c.name: (c.low, c.high) for c in collection.settings["channels"]}
    (point,) = (p for p in collection.tasks[TASK].examples[1].inputs.series if p.channel == "pH")
    assert point.value > limits["pH"][1]


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("outcomes.csv", "RecordID,SOFA\n7,1\n", "outcomes.csv lacks the columns SAPS_I"),
        ("records.csv.gz", "RecordID,When,Parameter,Value\n", "records.csv.gz must have the columns"),
        (
            "records.csv.gz",
            "RecordID,Time,Parameter,Value\n7,00:00,Age,old\n",
            "records.csv.gz cannot be read",
        ),
    ],
)
def test_a_table_of_another_kind_is_refused_by_name(stays: Path, file: str, text: str, named: str) -> None:
    if file.endswith(".gz"):
        (stays / file).write_bytes(gzip.compress(text.encode()))
    else:
        (stays / file).write_text(text)
    with pytest.raises(BadInput, match=named):
        read_collection(stays)


ROWS = [
    # lesion, image, dx, proof, age, sex, site
    ("L1", "I2", "mel", "histo", "60.0", "male", "back"),
    ("L1", "I1", "mel", "histo", "60.0", "male", "back"),
    ("L2", "I3", "nv", "follow_up", "", "unknown", "unknown"),
    ("L3", "I4", "bcc", "histo", "45.0", "female", "face"),
]


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    with (tmp_path / "lesions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = (
            "lesion_id",
            "image_id",
            "dx",
            "dx_type",
            "age",
            "sex",
            "localization",
            "malignant",
            "image_file",
        )
        writer.writerow(names)
        for number, row in enumerate(ROWS):
            writer.writerow((*row, int(row[2] in ("mel", "bcc", "akiec")), f"{row[1]}.png"))
            picture = np.full((8, 12, 3), (200, 100, number), np.uint8)
            Image.fromarray(picture).save(tmp_path / "images" / f"{row[1]}.png")
    return tmp_path


def test_a_row_is_a_lesion_with_its_first_picture_in_colour(lesions: Path) -> None:
    collection = read_collection(lesions)
    examples = collection.tasks["malignant"].examples
    assert [(e.group, e.labels["malignant"]) for e in examples] == [("L1", 1), ("L2", 0), ("L3", 1)]
    (picture,) = examples[0].inputs.images
    values = picture.read().values
    assert values.shape == (1, 3, 8, 12)
    assert values.dtype == np.float32
    assert values[0, :, 0, 0] * 255 == pytest.approx([200, 100, 1]), "I1 comes before I2"
    assert collection.extra["dx"] == {"L1": "mel", "L2": "nv", "L3": "bcc"}


def test_unknown_age_sex_and_site_stay_unknown(lesions: Path) -> None:
    first, second, _ = read_collection(lesions).tasks["malignant"].examples
    assert first.inputs.fields["site_back"] == 1.0
    assert sum(first.inputs.fields[f"site_{s.replace(' ', '_')}"] or 0 for s in SITES) == 1.0
    assert Modality.TABULAR not in second.inputs.present()
    assert second.attributes["age"] == second.attributes["sex"] == "unknown"


def test_only_lesions_with_histology_are_asked_in_the_second_task(lesions: Path) -> None:
    examples = read_collection(lesions).tasks["malignant_histology"].examples
    assert [(e.group, e.labels) for e in examples] == [
        ("L1", {"malignant_histology": 1}),
        ("L3", {"malignant_histology": 1}),
    ]
    assert not {"proof", "dx", "dx_type"} & set(examples[0].inputs.fields), "how it was proved is no input"


def test_a_diagnosis_or_picture_that_is_not_there_is_named(lesions: Path) -> None:
    (lesions / "images" / "I4.png").unlink()
    with pytest.raises(BadInput, match=r"images/I4\.png is named in lesions\.csv"):
        read_collection(lesions)
    table = lesions / "lesions.csv"
    table.write_text(table.read_text().replace("mel", "wart"))
    with pytest.raises(BadInput, match="dx wart is none of akiec"):
        read_collection(lesions)


@pytest.mark.real_data
def test_the_real_stays_are_all_there() -> None:
    collection = read_collection(shared("data/icu_physionet2012"))
    examples = collection.tasks[TASK].examples
    assert (len(examples), sum(e.labels[TASK] for e in examples)) == (4000, 554)
    assert max(p.hours_before for p in examples[0].inputs.series) <= 48


@pytest.mark.real_data
def test_the_real_lesions_are_all_there() -> None:
    collection = read_collection(shared("data/skin_ham10000"))
    examples = collection.tasks["malignant"].examples
    assert (len(examples), sum(e.labels["malignant"] for e in examples)) == (5230, 819)
    assert len({e.group for e in examples}) == 5230
