"""Cividis, the colour map of heat maps: readable with every common colour vision (Nuñez et al. 2018)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ANCHORS = np.array(
    [
        (0, 34, 78),
        (0, 40, 91),
        (0, 46, 106),
        (5, 51, 113),
        (26, 56, 111),
        (39, 62, 110),
        (50, 67, 109),
        (59, 73, 108),
        (67, 78, 108),
        (75, 84, 108),
        (83, 90, 109),
        (90, 95, 110),
        (97, 101, 111),
        (104, 106, 113),
        (111, 112, 115),
        (118, 118, 118),
        (125, 124, 120),
        (132, 130, 121),
        (140, 136, 120),
        (147, 142, 120),
        (155, 148, 118),
        (163, 154, 116),
        (171, 160, 114),
        (180, 167, 111),
        (188, 174, 108),
        (196, 180, 104),
        (205, 187, 99),
        (213, 194, 94),
        (222, 201, 88),
        (231, 209, 80),
        (240, 216, 70),
        (249, 224, 58),
        (254, 232, 56),
    ],
    dtype=np.float64,
)


def cividis(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[h, w] in [0, 1] → uint8 RGBA [h, w, 4], opaque."""
    places = np.linspace(0.0, 1.0, len(ANCHORS))
    picture = np.empty((*values.shape, 4), dtype=np.uint8)
    for channel in range(3):
        picture[..., channel] = np.round(np.interp(values, places, ANCHORS[:, channel])).astype(np.uint8)
    picture[..., 3] = 255
    return picture


def ramp(steps: int = 8) -> list[str]:
    """The colour map as hexadecimal colours, for legends."""
    colours = cividis(np.linspace(0.2, 1, steps, dtype=np.float32)[None])[0]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b, _ in colours.tolist()]
