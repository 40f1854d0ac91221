"""Glioma slices and ultrasound clips: rows, split units, what is left out, clear refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion import Modality
from fusion.errors import BadInput
from fusion.research import read_collection
from fusion.research.brain_lgg import CLUSTERS
from tests.shared import shared


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def glioma(tmp_path: Path) -> Path:
    """Three patients with four slices each; the second's clusters are unknown, the third's death is."""
    folder = tmp_path / "glioma"
    people, slices = [], []
    for i, patient in enumerate(("TCGA_A", "TCGA_B", "TCGA_C")):
        people.append(
            {
                "Patient": patient, **dict.fromkeys(CLUSTERS, "" if i == 1 else "2.0"),
                "histological_type": "1.0", "neoplasm_histologic_grade": str(1 + i % 2) + ".0",
                "laterality": "3.0", "tumor_location": "2.0", "gender": "1.0",
                "age_at_initial_pathologic": str(40 + 10 * i), "death01": ("1.0", "0.0", "")[i],
                "site": "AB"[i % 2],
            }
        )  # fmt: skip
        (folder / "slices" / patient).mkdir(parents=True)
        for number in (10, 3, 7, 1):
            name = f"{patient}/{number:03}.jpg"
            picture = np.full((24, 20, 3), (number * 5, 0, 200), np.uint8)
            Image.fromarray(picture).save(folder / "slices" / name)
            slices.append({"patient": patient, "slice": str(number), "file": name})
    write(folder / "patients.csv", people)
    write(folder / "slices.csv", slices)
    return folder


def test_glioma_rows_are_patients_with_slices_in_order(glioma: Path) -> None:
    collection = read_collection(glioma)
    assert [e.group for e in collection.tasks["death"].examples] == ["TCGA_A", "TCGA_B"]
    assert [e.labels["grade"] for e in collection.tasks["grade"].examples] == [0, 1, 0]
    first, second = (e.inputs for e in collection.tasks["death"].examples)
    assert first.genomics["RNASeqCluster_2"] == 1
    assert first.genomics["RNASeqCluster_1"] == 0
    assert second.genomics["RNASeqCluster_2"] is None, "unknown stays unknown"
    assert Modality.GENOMICS not in second.present()
    levels = [float(pixels.read().values[0, 0].mean()) for pixels in first.images]
    assert levels == sorted(levels), "from the lowest slice to the highest"
    assert first.images[0].read().values.shape == (1, 3, 24, 20)
    assert collection.tasks["death"].examples[0].attributes["site"] == "A"


def test_the_histological_type_does_not_tell_the_grade(glioma: Path) -> None:
    tasks = read_collection(glioma).tasks
    assert "type_1" in tasks["death"].examples[0].inputs.fields
    assert not any(name.startswith("type_") for name in tasks["grade"].examples[0].inputs.fields)


def test_a_glioma_folder_without_its_slices_is_refused(glioma: Path) -> None:
    (glioma / "slices" / "TCGA_A" / "003.jpg").unlink()
    with pytest.raises(BadInput, match=r"TCGA_A/003\.jpg"):
        read_collection(glioma)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Four clips of two groups, nine frames each at ten a second."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path / "ultrasound"
    (folder / "clips").mkdir(parents=True)
    rows = []
    for i, label in enumerate(("regular", "COVID-19", "Bacterial pneumonia", "regular")):
        writer = cv2.VideoWriter(
            str(folder / "clips" / f"{i}.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (32, 24)
        )
        for frame in range(9):
            writer.write(np.full((24, 32, 3), 20 * frame + 20, np.uint8))
        writer.release()
        rows.append(
            {
                "clip": f"{i}.mp4", "patient_group": f"LU{i // 2}", "label": label, "probe": "convex",
                "frames": "9", "fps": "10.0", "b_lines": str(float(i == 1)), "consolidations": "0.0",
                "age": "30",
            }
        )  # fmt: skip
    write(folder / "clips.csv", rows)
    return folder


def test_clips_are_read_with_their_times(clips: Path) -> None:
    collection = read_collection(clips)
    abnormal = collection.tasks["abnormal"].examples
    assert [e.labels["abnormal"] for e in abnormal] == [0, 1, 1, 0]
    assert [e.labels["covid"] for e in collection.tasks["covid"].examples] == [1, 0]
    assert [e.group for e in abnormal] == ["LU0", "LU0", "LU1", "LU1"]
    assert not abnormal[0].inputs.fields, "age goes with the label here"
    cine = abnormal[0].inputs.cines[0]
    frames = cine.read()
    assert frames.values.shape == (9, 24, 32)
    assert np.allclose(frames.times_ms, np.arange(9) * 100)
    assert np.allclose(cine.times_ms, frames.times_ms)
    brightness = frames.values.mean(axis=(1, 2))
    assert (np.diff(brightness) > 0).all()


def test_a_clip_that_cannot_be_decoded_says_so(clips: Path) -> None:
    example = read_collection(clips).tasks["abnormal"].examples[0]
    (clips / "clips" / "0.mp4").write_bytes(b"no clip")
    with pytest.raises(BadInput, match=r"0\.mp4 holds no frame"):
        example.inputs.cines[0].read()


@pytest.mark.real_data
def test_the_real_counts_are_those_of_their_provenance() -> None:
    glioma = read_collection(shared("data/brain_lgg")).tasks
    assert [sum(e.labels["death"] for e in glioma["death"].examples), len(glioma["death"].examples)] == [
        19,
        76,
    ]
    lungs = read_collection(shared("data/lung_ultrasound")).tasks
    assert len(lungs["abnormal"].examples) == 86
    assert len({e.group for e in lungs["abnormal"].examples}) == 39
    assert sum(e.labels["abnormal"] for e in lungs["abnormal"].examples) == 46
