"""Intensity harmonisation: the same chest through another scanner should make nearly the same picture.

    crop   black borders and collimation are cut away
    clip   grey values are stretched from their 1st to their 99th percentile
    bend   a power curve brings the median to one half, whatever curve the film or the detector had

Nothing is looked up or learnt: a picture is harmonised by itself alone. What it does to risks under
simulated scanner shift is measured in docs/experiments.md ("Scanner shift").
"""

from __future__ import annotations

import numpy as np

from fusion.inputs import FloatArray

HARMONISED = "+harmonised"  # after a backbone's name: its frames are harmonised first
DARK = 0.04  # intensity of a border at most
FILLED = 0.05  # share of a row or column that is brighter, for it to belong to the picture
LEAST_KEPT = 0.4  # of a side; a crop that would keep less is not made
LOW, HIGH = 0.01, 0.99  # quantiles that become 0 and 1
MOST_BENT = 0.05  # medians below this, or above one minus it, bend no further


def harmonise(values: FloatArray) -> FloatArray:
    """Frames float32 [T, H, W] or [T, C, H, W] in [0, 1] → the same, harmonised; H and W may shrink.

    What is given is treated alike, from what it holds together; a constant picture stays as it is.
    """
    cropped = _crop(values)
    low, high = np.quantile(cropped, [LOW, HIGH])
    if high - low < 1e-3:
        return np.ascontiguousarray(values, dtype=np.float32)
    stretched = np.clip((cropped - low) / (high - low), 0, 1)
    median = float(np.clip(np.median(stretched), MOST_BENT, 1 - MOST_BENT))
    bent = np.power(np.maximum(stretched, 1e-3), np.log(0.5) / np.log(median))
    return np.ascontiguousarray(bent, dtype=np.float32)


def _crop(values: FloatArray) -> FloatArray:
    top, bottom, left, right = kept_box(values)
    return values[..., top:bottom, left:right]


def kept_box(values: FloatArray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) in pixels: without rows and columns at the edges that are always dark."""
    brightest = values.reshape(-1, *values.shape[-2:]).max(axis=0) > DARK
    rows = np.flatnonzero(brightest.mean(axis=1) > FILLED)
    columns = np.flatnonzero(brightest.mean(axis=0) > FILLED)
    height, width = brightest.shape
    if len(rows) < LEAST_KEPT * height or len(columns) < LEAST_KEPT * width:
        return 0, height, 0, width
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
