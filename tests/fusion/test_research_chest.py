"""The chest collection: as of the picture, nothing that tells the end, doubled patients together."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion.errors import BadInput
from fusion.research import read_collection, recognise
from fusion.research.leak_free import leak_free
from tests.shared import shared

IMAGES = (
    "image_file", "patient_id", "view", "offset_days", "in_icu_at_image", "temperature", "pO2_saturation",
    "leukocyte_count", "neutrophil_count", "lymphocyte_count", "clinical_notes", "finding",
)  # fmt: skip
PATIENTS = (
    "patient_id", "age", "sex", "went_icu", "intubated", "survival", "severe_outcome", "location", "url",
)  # fmt: skip


def lay_out(folder: Path, patients: int = 6, *, name: str = "P") -> Path:
    """A tiny folder: two pictures a patient, the second later, in intensive care, with a low saturation."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    people, pictures = [], []
    for i in range(patients):
        ill = i % 2
        people.append(
            {
                "patient_id": f"{name}{i}", "age": str(30 + i), "sex": "FM"[i % 2], "went_icu": "NY"[ill],
                "intubated": "", "survival": "YN"[ill], "severe_outcome": f"{ill}.0",
                "location": f"Ward, Town {i % 2}, Country {i % 3}", "url": f"https://example.org/{name}{i}",
            }
        )  # fmt: skip
        for later in (1, 0):
            file_name = f"{name}{i}_{later}.jpg"
            grey = rng.integers(0, 200, (40, 36)) + 50 * ill
            Image.fromarray(grey.astype(np.uint8)).save(folder / "images" / file_name)
            pictures.append(
                {
                    "image_file": file_name, "patient_id": f"{name}{i}", "view": ("PA", "AP Supine")[later],
                    "offset_days": str(3.0 + 4 * later), "in_icu_at_image": "NY"[ill and later],
                    "pO2_saturation": "71" if later else "", "temperature": "" if later else "38.5",
                    "clinical_notes": "Cough and fever. Died on day 9.",
                    "finding": "COVID-19" if ill else "Legionella",
                }
            )  # fmt: skip
    for table, columns, rows in (("patients.csv", PATIENTS, people), ("images.csv", IMAGES, pictures)):
        with (folder / table).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.mark.parametrize(
    "sentence",
    [
        "He was admitted to the ICU.",
        "She was transferred to intensive care on day 3.",
        "The patient was intubated and ventilated.",
        "Endotracheal tube in place.",
        "The patient died two days later.",
        "He passed away.",
        "She was discharged home in good health.",
        "He made a full recovery.",
        "Treatment with hydroxychloroquine was started.",
        "Lopinavir/ritonavir was given.",
        "Non-invasive ventilation with CPAP failed.",
        "ECMO was considered.",
        "His condition deteriorated rapidly.",
        "Follow-up radiograph on day 12 shows resolution.",
        "INTUBATED IN THE EMERGENCY ROOM.",
    ],
)
def test_sentences_that_tell_the_end_go(sentence: str) -> None:
    before, after = "A 60-year-old man with cough and fever.", "Bilateral opacities in both bases."
    assert leak_free(f"{before} {sentence} {after}") == f"{before} {after}"
    assert leak_free(sentence) == ""


def test_what_was_seen_at_presentation_stays() -> None:
    note = (
        "A 54-year-old woman presented with dyspnea. Oxygen saturation was 90%. Lymphopenia. Both lungs hazy."
    )
    assert leak_free(note) == note


@pytest.mark.real_data
def test_the_rule_takes_what_the_collections_own_mask_takes() -> None:
    kept = []
    with (shared("data/cxr_covid") / "patients.csv").open() as file:
        for row in csv.DictReader(file):
            masked = row["clinical_notes_masked"]
            ours = leak_free(row["clinical_notes"])
            kept += [s for s in ours.split(". ") if s not in masked and s in row["clinical_notes"]]
    assert len(kept) <= 2, "a credit line that the mask took with its neighbour"


def test_rows_are_as_of_the_picture(tmp_path: Path) -> None:
    collection = read_collection(lay_out(tmp_path / "chest"))
    rows = {e.inputs.key: e for e in collection.tasks["icu"].examples}
    assert len(rows) == 12
    first, second = rows["P1_0.jpg"], rows["P1_1.jpg"]
    assert first.inputs.fields["pO2_saturation"] is None, "measured later"
    assert second.inputs.fields["pO2_saturation"] == 71
    assert second.inputs.fields["temperature"] == 38.5, "known since the earlier picture"
    assert first.group == second.group
    assert first.inputs.notes[0].text == "Cough and fever."
    assert first.attributes == {"view": "PA", "location": "Country 1", "sex": "male", "age": "under 50"}
    before = {e.inputs.key for e in collection.tasks["icu_before"].examples}
    assert "P1_1.jpg" not in before, "taken in intensive care"
    assert "P1_0.jpg" in before
    assert [e.inputs.key for e in collection.tasks["severe_outcome"].examples] == [
        f"P{i}_0.jpg" for i in range(6)
    ]
    assert not any(e.inputs.notes for e in collection.tasks["covid"].examples), "notes name the diagnosis"
    assert not collection.tasks["intubation"].examples


def test_two_numbers_of_one_case_are_one_group(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "chest")
    text = (folder / "patients.csv").read_text().replace("P2,32,F", "P2,30,F")
    (folder / "patients.csv").write_text(text.replace("https://example.org/P2", "https://example.org/P0"))
    groups = {e.inputs.key[:2]: e.group for e in read_collection(folder).tasks["icu"].examples}
    assert groups["P0"] == groups["P2"]
    assert len(set(groups.values())) == 5


def test_pictures_are_read_when_asked_for(tmp_path: Path) -> None:
    example = read_collection(lay_out(tmp_path / "chest")).tasks["icu"].examples[0]
    frames = example.inputs.images[0].read()
    assert frames.values.shape == (1, 40, 36)
    assert frames.values.dtype == np.float32
    assert 0 <= frames.values.min() < frames.values.max() <= 1


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="laid out like none"):
        recognise(tmp_path)
    folder = lay_out(tmp_path / "chest")
    (folder / "images" / "P0_0.jpg").unlink()
    with pytest.raises(BadInput, match=r"P0_0\.jpg"):
        read_collection(folder)
    text = (folder / "images.csv").read_text()
    (folder / "images.csv").write_text(text.replace("offset_days", "offset"))
    with pytest.raises(BadInput, match=r"images\.csv lacks the columns offset_days"):
        read_collection(folder)


@pytest.mark.real_data
def test_the_real_tasks_have_the_counts_of_their_provenance() -> None:
    collection = read_collection(shared("data/cxr_covid"))
    told = {
        name: (len(task.examples), sum(e.labels[name] for e in task.examples))
        for name, task in collection.tasks.items()
    }
    assert told["severe_outcome"] == (123, 61)
    assert told["icu_patient"] == (82, 47)
    assert told["icu"] == (168, 108)
    assert told["death"] == (146, 34)
    groups = {e.group for e in collection.tasks["severe_outcome"].examples}
    assert len(groups) < 123, "one case stands under two numbers"
