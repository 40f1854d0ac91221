"""Simulated echo with known truth: ejection fraction by a cine model, and by segmented ventricles."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cds.demo.echo import EchoFindings, draw_echo, draw_masks
from fusion.config import CinePooling
from fusion.imaging.ejection import train_ejection
from fusion.imaging.overlap import dice
from fusion.imaging.quantify import area, ejection_fraction
from fusion.imaging.segment import Drawn, SegmenterConfig, SegmenterKind, train_segmenter
from fusion.metrics import auroc

SIDE, FRAMES = 64, 16
REDUCED = 40.0  # %, below which an ejection fraction is called reduced


@dataclass(frozen=True, eq=False, slots=True)
class Simulated:
    """One simulated patient."""

    values: np.ndarray  # float32 [T, SIDE, SIDE]
    seconds: np.ndarray  # float32 [T]
    masks: np.ndarray  # bool [T, SIDE, SIDE]
    spacing_mm: float
    ejection: float  # %, known


def simulate(count: int, seed: int) -> list[Simulated]:
    """Heart rate, frame rate, depth, size, brightness and noise vary; nobody's."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        findings = EchoFindings(
            ejection_fraction=float(rng.uniform(0.15, 0.72)),
            diastolic_ml=float(rng.uniform(70, 190)),
            heart_rate=float(rng.uniform(50, 110)),
            frame_rate=float(rng.uniform(12, 20)),
            depth_mm=float(rng.uniform(140, 190)),
            frames=FRAMES,
            gain=float(rng.uniform(0.7, 1.3)),
            noise=float(rng.uniform(0.1, 0.4)),
        )
        frames = torch.from_numpy(draw_echo(findings, rng).astype(np.float32) / 255)[:, None]
        masks = torch.from_numpy(draw_masks(findings).astype(np.float32))[:, None]
        small, drawn = (
            nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)[:, 0].numpy()
            for x in (frames, masks)
        )
        scale = findings.mm_per_pixel * frames.shape[-1] / SIDE
        seconds = np.arange(FRAMES, dtype=np.float32) / np.float32(findings.frame_rate)
        made.append(Simulated(small, seconds, drawn >= 0.5, scale, 100 * findings.ejection_fraction))
    return made


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """The folder is not looked at: all of this is simulated."""
    count = 60 if quick else 360
    everyone = simulate(count, seed + 1)
    cut, held_from = int(0.65 * count), int(0.78 * count)
    train, tuning, held = everyone[:cut], everyone[cut:held_from], everyone[held_from:]
    lines = [
        "### Simulated echo: ejection fraction on held-out simulated patients",
        "",
        "`python -m benchmarks.study lung_ultrasound DIR --part simulated_echo`",
        "",
        f"{count} simulated patients, {len(held)} held out; {FRAMES} frames of {SIDE} x {SIDE}; heart rate, "
        "frame rate, depth, size, brightness and noise vary. True EF 15 to 72 %. Mean absolute "
        "error in EF points (95 % bootstrap interval over patients); AUROC of an EF below 40 %.",
        "",
        "| model | error, EF points | AUROC reduced EF |",
        "| --- | --- | --- |",
    ]
    true = np.array([one.ejection for one in held])
    notes = list[str]()
    constant = float(np.mean([one.ejection for one in train]))
    lines.append(_row("constant (mean of training)", np.full(len(held), constant), true))
    for pooling in (CinePooling.FRAME, CinePooling.GRU, CinePooling.LSTM, CinePooling.ATTENTION):
        model = train_ejection(
            [(o.values, o.seconds, o.ejection) for o in train],
            [(o.values, o.seconds, o.ejection) for o in tuning],
            pooling=pooling,
            epochs=3 if quick else 24,
            seed=seed,
        )
        said = np.array([model.predict(o.values, o.seconds)[0] for o in held])
        name = "CNN, single frame" if pooling == CinePooling.FRAME else f"CNN + {pooling.value}"
        lines.append(_row(name, said, true))
        print(lines[-1], file=sys.stderr, flush=True)
    for kind in (SegmenterKind.UNET, SegmenterKind.ATTENTION_UNET):
        row, told = _by_segmentation(kind, train, tuning, held, true, quick=quick, seed=seed)
        lines.append(row)
        notes.append(told)
    by_truth = np.array([ejection_fraction(one.masks).value or 0.0 for one in held])
    lines.append(_row("true masks, area and length (the method's own error)", by_truth, true))
    return "\n".join([*lines, "", *notes])


def _by_segmentation(
    kind: SegmenterKind,
    train: list[Simulated],
    tuning: list[Simulated],
    held: list[Simulated],
    true: np.ndarray,
    *,
    quick: bool,
    seed: int,
) -> tuple[str, str]:
    """The row of one network's masks, and how well it draws them."""

    def drawn(patients: list[Simulated]) -> list[Drawn]:
        return [Drawn(p.values[t][None], p.masks[t][None]) for p in patients for t in range(0, FRAMES, 4)]

    epochs = 2 if quick else 8
    config = SegmenterConfig(
        structures=("left ventricle",), kind=kind, size=SIDE, epochs=epochs, batch_size=16, seed=seed
    )
    segmenter = train_segmenter(drawn(train), drawn(tuning), config)
    said, dices, areas = [], [], []
    for one in held:
        found = np.stack([segmenter.probabilities(frame[None])[0] >= 0.5 for frame in one.values])
        said.append(ejection_fraction(found).value or 0.0)
        for mask, truth in zip(found, one.masks, strict=True):
            dices.append(dice(mask, truth))
            spacing = (one.spacing_mm, one.spacing_mm)
            is_, was = area(mask, spacing).value, area(truth, spacing).value
            if is_ is not None and was:
                areas.append(100 * abs(is_ - was) / was)
    name = "U-Net" if kind == SegmenterKind.UNET else "Attention U-Net"
    return (
        _row(f"{name} masks, area and length", np.array(said), true),
        f"- Ventricle masks of the {name}: Dice {np.mean(dices):.3f}, area off by {np.mean(areas):.1f} % on "
        f"average ({len(dices)} held-out frames).",
    )


def _row(name: str, said: np.ndarray, true: np.ndarray) -> str:
    errors = np.abs(said - true)
    rng = np.random.default_rng(0)
    draws = [errors[rng.integers(0, len(errors), len(errors))].mean() for _ in range(1000)]
    low, high = np.percentile(draws, (2.5, 97.5))
    score = auroc(-said.astype(float), (true < REDUCED).astype(float))
    told = "-" if score is None or np.ptp(said) == 0 else f"{score:.3f}"
    return f"| {name} | {errors.mean():.1f} ({low:.1f} to {high:.1f}) | {told} |"
