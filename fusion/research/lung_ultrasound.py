"""Lung ultrasound clips → diagnosis and signs (POCUS data set, Born et al. 2021, doi 10.3390/app11020672).

Read from clips.csv (a row a clip) and clips/ (MPEG-4). One row a clip; the split unit is the patient group.
Tasks: `abnormal` (any pneumonia against regular), `covid` (COVID-19 against other pneumonia), and signs that
a physician saw: `b_lines`, `consolidations`.

Only the clip is an input: age, machine and source go together with the label here, so they are left out.
Reading clips needs OpenCV (the extra `studies`).
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from fusion.errors import BadInput
from fusion.examples import Example
from fusion.inputs import Frames, Modality, PatientInputs, PixelInput
from fusion.research import Collection, Task

Row = Mapping[str, str]
REGULAR, COVID = "regular", "COVID-19"
TASKS = {
    "abnormal": "Pneumonia of any kind",
    "covid": "COVID-19 against other pneumonia",
    "b_lines": "B lines",
    "consolidations": "Consolidation",
}
NEEDED = ("clip", "patient_group", "label", "probe", "frames", "fps", "b_lines", "consolidations")


def read(folder: Path) -> Collection:
    """The folder → four tasks. Raises BadInput for a missing table, column or clip."""
    examples: dict[str, list[Example]] = {name: [] for name in TASKS}
    for row in _rows(folder / "clips.csv"):
        inputs = PatientInputs(key=row["clip"], cines=(_pixels(folder / "clips" / row["clip"], row),))
        attributes = {
            "probe": row["probe"],
            "sex": {"F": "female", "M": "male"}.get(row.get("sex", ""), "unknown"),
        }
        for name in TASKS:
            label = _label(name, row)
            if label is not None:
                examples[name].append(Example(inputs, {name: label}, row["patient_group"], attributes))
    return Collection(
        name="lung_ultrasound",
        tasks={
            name: Task(name=name, label=TASKS[name], examples=tuple(found))
            for name, found in examples.items()
        },
        settings={
            "modalities": (Modality.CINE,),
            "cine_backbone": "efficientnet_lite0",
            "cine_size": 112,
            "cine_frames": 16,
        },
        caveats=(
            "Source and label go together (most healthy clips are young volunteers of one site): this shows "
            "that the clip model runs and learns, no more.",
            "One modality: the stack is components of the mean frame and logistic regression.",
        ),
    )


def _rows(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except OSError as fault:
        raise BadInput(f"{path.name} cannot be read: {fault.strerror}") from fault
    if missing := [column for column in NEEDED if not rows or column not in rows[0]]:
        raise BadInput(f"{path.name} lacks the columns {', '.join(missing)}")
    return rows


def _label(name: str, row: Row) -> int | None:
    if name == "abnormal":
        return int(row["label"] != REGULAR)
    if name == "covid":
        return None if row["label"] == REGULAR else int(row["label"] == COVID)
    return int(float(row[name])) if row[name] else None


def _pixels(path: Path, row: Row) -> PixelInput:
    if not path.is_file():
        raise BadInput(f"clips/{path.name} is named in clips.csv and is not there")
    key = hashlib.sha256(path.read_bytes()).hexdigest()
    return PixelInput(
        key, partial(_read, path, float(row["fps"])), _times(int(row["frames"]), float(row["fps"]))
    )


def _read(path: Path, fps: float) -> Frames:
    """float32 [T, H, W]. Raises BadInput where OpenCV is missing or reads no frame."""
    try:
        import cv2
    except ImportError as fault:
        raise BadInput("clips are read with OpenCV: pip install 'tessera[studies]'") from fault
    clip = cv2.VideoCapture(str(path))
    frames = []
    while (got := clip.read())[0]:
        frames.append(cv2.cvtColor(got[1], cv2.COLOR_BGR2GRAY).astype(np.float32) / np.float32(255))
    clip.release()
    if not frames:
        raise BadInput(f"clips/{path.name} holds no frame that OpenCV can read")
    return Frames(np.stack(frames), _times(len(frames), fps))


def _times(frames: int, fps: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Milliseconds from the first frame, float32 [T]."""
    return (np.arange(frames) * 1000 / fps).astype(np.float32)
