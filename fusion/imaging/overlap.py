"""How well a mask agrees with the truth: Dice, surface distances in mm, relative volume error."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from fusion.errors import BadInput

Mask = NDArray[np.bool_]


def dice(said: Mask, true: Mask) -> float:
    """2 |A and B| / (|A| + |B|), in [0, 1]; 1 when both are empty (Dice 1945). Raises BadInput."""
    _check(said, true)
    total = int(said.sum()) + int(true.sum())
    return 1.0 if total == 0 else 2 * int((said & true).sum()) / total


def volume_error(said: Mask, true: Mask) -> float:
    """(said - true) / true, signed; infinite where the truth is empty and the mask is not, else 0."""
    _check(said, true)
    size = int(true.sum())
    if size == 0:
        return math.inf if said.any() else 0.0
    return (int(said.sum()) - size) / size


def surface_distances(said: Mask, true: Mask, spacing_mm: tuple[float, ...]) -> tuple[float, float]:
    """(mean symmetric distance, 95th percentile Hausdorff distance) of the two surfaces, mm.

    spacing_mm  of each axis. NaN when either mask is empty: a distance to nothing is not zero.
    """
    _check(said, true)
    if len(spacing_mm) != said.ndim:
        raise BadInput(f"spacing_mm must have one number (mm) for each of the {said.ndim} axes")
    if not said.any() or not true.any():
        return math.nan, math.nan
    edges = [mask & ~binary_erosion(mask, border_value=0) for mask in (said, true)]
    there = [distance_transform_edt(~edge, sampling=spacing_mm) for edge in edges]
    distances = np.concatenate([there[1][edges[0]], there[0][edges[1]]])
    return float(distances.mean()), float(np.percentile(distances, 95))


def _check(said: Mask, true: Mask) -> None:
    if said.shape != true.shape or said.dtype != bool or true.dtype != bool:
        raise BadInput(f"masks must be bool and of one shape, not {said.dtype} {said.shape}, {true.shape}")
