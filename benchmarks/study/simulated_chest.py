"""Sizes of simulated radiographs against their known truth: how far the demo's measuring network is off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cds.demo import outlining
from fusion import Segmenter, area, cardiothoracic_ratio, largest
from fusion.imaging.overlap import dice

Floats = NDArray[np.float64]
HELD, QUICK, DRAWS = 120, 20, 1000
PIXEL_MM = 1.6  # of a 256-pixel picture of a chest 41 cm wide; only its square enters, as a scale
NOISE = 0.08


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """Markdown. Nothing of `folder` is read: all pictures are simulated."""
    segmenter = outlining.teach_chest(epochs=8 if quick else 50)
    rows = [
        _measured(segmenter, np.random.default_rng((seed, 99, k))) for k in range(QUICK if quick else HELD)
    ]
    table = np.array(rows)  # [patients, (dice heart, dice lungs, true, said, said under noise, area error %)]
    true = table[:, 2]
    rng = np.random.default_rng(seed)

    def interval(figure: Callable[[Floats], float]) -> str:
        drawn = [figure(table[rng.integers(0, len(table), len(table))]) for _ in range(DRAWS)]
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        return f"{figure(table):.3f} [{low:.3f}, {high:.3f}]"

    lines = [
        "## Cardiothoracic ratio in simulated radiographs",
        "",
        "    python -m benchmarks.study cxr_covid DIR --part simulated_chest" + (" --quick" if quick else ""),
        "",
        f"**Simulated.** A U-Net taught on {outlining.CHESTS} simulated radiographs whose outlines are "
        f"known, as the demo teaches it; {len(table)} others, 95 % bootstrap interval over pictures. Truth: "
        "the same measurement on the true outlines. Noise: Gaussian, standard deviation "
        f"{NOISE} of the full range, on pictures it was not taught on.",
        "",
        "| | mean absolute error of the ratio |",
        "| --- | --- |",
        f"| a constant (the mean of these) | {np.abs(true - true.mean()).mean():.3f} |",
        f"| measured | {interval(lambda t: float(np.nanmean(np.abs(t[:, 3] - t[:, 2]))))} |",
        f"| measured, with noise | {interval(lambda t: float(np.nanmean(np.abs(t[:, 4] - t[:, 2]))))} |",
        "",
        f"Bias {interval(lambda t: float(np.nanmean(t[:, 3] - t[:, 2])))}; not found: {_lost(table[:, 3])}, "
        f"with noise {_lost(table[:, 4])}. Dice of the heart {interval(lambda t: float(t[:, 0].mean()))}, of "
        f"the lungs {interval(lambda t: float(t[:, 1].mean()))}; error of the lung area "
        f"{interval(lambda t: float(t[:, 5].mean()))} %. Real hearts have no such outline: this tells "
        "that the path from pixels to a ratio is right, not how well it does on patients.",
    ]
    return "\n".join(lines)


def _measured(segmenter: Segmenter, rng: np.random.Generator) -> tuple[float, ...]:
    drawn, _ = outlining.draw_one_chest(rng)
    noisy = np.clip(drawn.values + rng.normal(0, NOISE, drawn.values.shape), 0, 1).astype(np.float32)
    heart, lungs = drawn.masks
    seen, worse = (_tidy(segmenter.masks(values)) for values in (drawn.values, noisy))
    spacing = (PIXEL_MM, PIXEL_MM)
    true_area, said_area = area(lungs, spacing).value or 1.0, area(seen[1], spacing).value or 0.0
    return (
        dice(seen[0], heart),
        dice(seen[1], lungs),
        _ratio(heart, lungs),
        _ratio(*seen),
        _ratio(*worse),
        100 * abs(said_area - true_area) / true_area,
    )


def _tidy(masks: dict[str, NDArray[np.bool_]]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return largest(masks["heart"]), largest(masks["lungs"], 2)


def _ratio(heart: NDArray[np.bool_], lungs: NDArray[np.bool_]) -> float:
    value = cardiothoracic_ratio(heart, lungs).value
    return np.nan if value is None else value


def _lost(said: Floats) -> str:
    return f"{int(np.isnan(said).sum())} of {len(said)}"
