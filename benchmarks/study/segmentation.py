"""Lungs in radiographs and tumours in MR: segmented and measured, patients held out."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fusion.examples import assign_folds
from fusion.imaging.overlap import dice, surface_distances, volume_error
from fusion.imaging.segment import Drawn, Segmenter, SegmenterConfig, SegmenterKind, train_segmenter
from fusion.research import recognise

SIDE = 256
Case = tuple[str, Drawn]  # patient, picture with masks


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """The part of the collection that `folder` holds."""
    name = recognise(folder)
    if name == "cxr_covid":
        return _lungs(folder, seed=seed, epochs=3 if quick else 14)
    return _tumours(folder, seed=seed, epochs=2 if quick else 10)


def _lungs(folder: Path, *, seed: int, epochs: int) -> str:
    cases = []
    with (folder / "images.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            mask = folder / "lung_masks" / f"{Path(row['image_file']).stem}.png"
            if mask.is_file():
                values = _grey(folder / "images" / row["image_file"])[None]
                drawn = np.asarray(Image.open(mask).convert("L").resize((SIDE, SIDE)), np.uint8) > 127
                cases.append((row["patient_id"], Drawn(values, drawn[None])))
    train, tuning, held = _split(cases, seed)
    lines = [
        "### Lungs in real radiographs (machine-made masks of lungVAE)",
        "",
        "`python -m benchmarks.study cxr_covid DIR --part segmentation`",
        "",
        f"{len(cases)} pictures of {len({p for p, _ in cases})} patients; {len(held)} pictures of others "
        f"held out. 128 x 128, at most {epochs} epochs. Distances in pixels of a 256 x 256 picture, "
        "as no spacing is known. 95 % bootstrap interval over patients.",
        "",
        "| network | Dice | mean surface distance | area error (absolute) | seconds to train |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind in (SegmenterKind.UNET, SegmenterKind.ATTENTION_UNET):
        config = SegmenterConfig(structures=("lungs",), kind=kind, epochs=epochs, seed=seed)
        segmenter, seconds = _trained(train, tuning, config)
        lines.append(f"| {kind.value} | {_scores(segmenter, held, (1.0, 1.0))} | {seconds:.0f} |")
    lines += [
        "",
        "The masks are another network's: agreement with it, not with a radiologist, is what is shown.",
    ]
    return "\n".join(lines)


def tumours(folder: Path) -> list[Case]:
    """The glioma set: every patient's slices as one volume [3, D, H, W], and what people drew in it."""
    volumes: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    with (folder / "slices.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values = np.asarray(Image.open(_in(folder, row["file"])).convert("RGB"), np.float32) / 255
            mask = np.asarray(Image.open(_in(folder, row["mask"])).convert("L"), np.uint8) > 127
            volumes.setdefault(row["patient"], []).append(
                (int(row["slice"]), values.transpose(2, 0, 1), mask)
            )
    whole = []
    for patient, slices in volumes.items():
        slices.sort(key=lambda one: one[0])
        values = np.stack([one[1] for one in slices], axis=1)
        whole.append((patient, Drawn(values, np.stack([one[2] for one in slices])[None])))
    return whole


def tumour_config(kind: SegmenterKind, *, seed: int, epochs: int) -> SegmenterConfig:
    """Of the networks that find it; the 3D one looks at few volumes, and so twice as often."""
    if kind == SegmenterKind.UNET_3D:
        shape: dict[str, int] = {"size": 80, "epochs": 2 * epochs, "batch_size": 2}
    else:
        shape = {"size": 96, "epochs": epochs, "batch_size": 16}
    return SegmenterConfig(structures=("tumour",), channels=3, seed=seed, kind=kind, **shape)  # type: ignore[arg-type]


def _tumours(folder: Path, *, seed: int, epochs: int) -> str:
    whole = tumours(folder)
    train, tuning, held = _split(whole, seed)
    lines = [
        "### Tumour in real MR slices (FLAIR abnormality drawn by people)",
        "",
        "`python -m benchmarks.study brain_lgg DIR --part segmentation`",
        "",
        f"{len(whole)} patients, {len(held)} held out. Each score is over a patient's whole volume. 2D: "
        f"every second slice, 96 x 96; 3D: 16 x 80 x 80; at most {epochs} epochs (3D: {2 * epochs}). "
        "Distances in pixels of 256 x 256: no spacing is published. 95 % bootstrap interval over patients.",
        "",
        "| network | Dice | mean surface distance | volume error (absolute) | seconds to train |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind in SegmenterKind:
        config = tumour_config(kind, seed=seed, epochs=epochs)
        seen = (train, tuning) if config.is_3d else (_slices(train), _slices(tuning))
        segmenter, seconds = _trained(*seen, config)
        lines.append(f"| {kind.value} | {_scores(segmenter, held, (1.0, 1.0, 1.0))} | {seconds:.0f} |")
    return "\n".join(lines)


def _in(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else folder / "slices" / name


def _slices(cases: Sequence[Case]) -> list[Case]:
    return [
        (patient, Drawn(drawn.values[:, place], drawn.masks[:, place]))
        for patient, drawn in cases
        for place in range(0, drawn.values.shape[1], 2)
    ]


def _trained(
    train: Sequence[Case], tuning: Sequence[Case], config: SegmenterConfig
) -> tuple[Segmenter, float]:
    began = time.perf_counter()

    def tell(epoch: int, epochs: int, training: float, watched: float | None) -> None:
        print(f"{config.kind.value} {epoch + 1}/{epochs} {training:.3f} {watched or 0:.3f}", file=sys.stderr)

    segmenter = train_segmenter([d for _, d in train], [d for _, d in tuning], config, tell=tell)
    return segmenter, time.perf_counter() - began


def _scores(segmenter: Segmenter, held: Sequence[Case], spacing: tuple[float, ...]) -> str:
    found: dict[str, list[tuple[float, float, float]]] = {}
    for patient, drawn in held:
        if drawn.values.ndim == 4 and segmenter.config.kind != SegmenterKind.UNET_3D:
            slices = [segmenter.probabilities(drawn.values[:, d])[0] for d in range(drawn.values.shape[1])]
            said = np.stack(slices) >= 0.5
        else:
            said = segmenter.probabilities(drawn.values)[0] >= 0.5
        true = drawn.masks[0]
        distance = surface_distances(said, true, spacing)[0]
        found.setdefault(patient, []).append((dice(said, true), distance, abs(volume_error(said, true))))
    patients = np.array([np.nanmean(rows, axis=0) for rows in found.values()])
    rng = np.random.default_rng(0)
    draws = [np.nanmean(patients[rng.integers(0, len(patients), len(patients))], axis=0) for _ in range(1000)]
    low, high = np.nanpercentile(draws, (2.5, 97.5), axis=0)
    middle = np.nanmean(patients, axis=0)
    return " | ".join(f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(middle, low, high, strict=True))


def _split(cases: Sequence[Case], seed: int) -> tuple[list[Case], list[Case], list[Case]]:
    """(train, tuning, held out), by patient: three fifths, a fifth, a fifth."""
    folds = assign_folds([p for p, _ in cases], np.zeros((len(cases), 1), np.float32), 5, seed)
    parts: tuple[list[Case], list[Case], list[Case]] = ([], [], [])
    for case, fold in zip(cases, folds, strict=True):
        parts[2 if fold == 0 else 1 if fold == 1 else 0].append(case)
    return parts


def _grey(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return (
            np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) / 255
        )
