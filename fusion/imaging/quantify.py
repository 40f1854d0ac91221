"""Masks → sizes in physical units. What spacing or mask do not allow is unknown (None), never guessed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.errors import BadInput

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Size:
    """One measurement. unit in UCUM; value None where it cannot be known, and `why` then says so."""

    name: str
    value: float | None
    unit: str
    why: str = ""


def largest(mask: Mask, parts: int = 1) -> Mask:
    """The mask's `parts` largest connected pieces (two for a pair of lungs): specks elsewhere are errors."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count <= parts:
        return mask
    sizes = np.bincount(labels.ravel())[1:]
    kept = 1 + np.argsort(sizes, kind="stable")[-parts:]
    return np.isin(labels, kept)


def area(mask: Mask, spacing_mm: tuple[float, float] | None, *, name: str = "area") -> Size:
    """Area of a mask [H, W], mm²."""
    _check(mask, 2)
    if spacing_mm is None:
        return Size(name, None, "mm2", "the pixel spacing is not known")
    return Size(name, float(mask.sum()) * _positive(spacing_mm), "mm2")


def volume(mask: Mask, spacing_mm: tuple[float, float, float] | None, *, name: str = "volume") -> Size:
    """Volume of a mask [D, H, W], mL; spacing_mm (between slices, rows, columns)."""
    _check(mask, 3)
    if spacing_mm is None:
        return Size(name, None, "mL", "the spacing of slices or pixels is not known")
    return Size(name, float(mask.sum()) * _positive(spacing_mm) / 1000, "mL")


def cardiothoracic_ratio(heart: Mask, lungs: Mask) -> Size:
    """Widest transverse diameter of the heart over the widest inner diameter of the chest (Danzer 1919).

    heart, lungs  bool [H, W] of one upright frontal radiograph. The chest's inner diameter is taken from the
    outer borders of both lungs. A ratio: it needs no spacing.
    """
    _check(heart, 2)
    _check(lungs, 2)
    if heart.shape != lungs.shape:
        raise BadInput(f"heart and lungs must be masks of one picture, not {heart.shape} and {lungs.shape}")
    name = "cardiothoracic ratio"
    if not heart.any() or not lungs.any():
        return Size(name, None, "1", "the heart or the lungs were not found")
    columns = np.flatnonzero(heart.any(axis=0))
    widest = max(_width(row) for row in lungs if row.any())
    middle = (columns[0] + columns[-1]) / 2
    sides = np.flatnonzero(lungs.any(axis=0))
    if not sides[0] < middle < sides[-1]:
        return Size(name, None, "1", "the heart does not lie between the lungs")
    return Size(name, (columns[-1] - columns[0] + 1) / widest, "1")


def ejection_fraction(cavity: Mask, *, spacing_mm: tuple[float, float] | None = None) -> Size:
    """Share of the full ventricle that a beat throws out, %, by area and length (Folland 1979).

    cavity      bool [T, H, W]: the ventricle's cavity in each frame of at least one beat
    spacing_mm  (row, column); only their ratio matters, square pixels when it is not known
    """
    _check(cavity, 3)
    name = "ejection fraction"
    volumes = [v for mask in cavity if (v := area_length_volume(mask, spacing_mm or (1.0, 1.0))) > 0]
    if len(volumes) < 2:
        return Size(name, None, "%", "the cavity was found in fewer than two frames")
    return Size(name, 100 * (1 - min(volumes) / max(volumes)), "%")


def area_length_volume(mask: Mask, spacing_mm: tuple[float, float]) -> float:
    """Volume of one cavity [H, W] by area and length, mm³; 0 when the mask is empty."""
    rows, columns = np.nonzero(mask)
    if len(rows) < 3:
        return 0.0
    points = np.stack([rows * spacing_mm[0], columns * spacing_mm[1]], axis=1)
    axis = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][0]
    along = points @ axis
    length = float(along.max() - along.min()) + math.sqrt(_positive(spacing_mm))
    return 8 * (len(rows) * _positive(spacing_mm)) ** 2 / (3 * math.pi * length)


def change(earlier: Size, later: Size) -> Size:
    """How much a measurement changed between two dates, % of the earlier. Raises BadInput for unlike ones."""
    if (earlier.name, earlier.unit) != (later.name, later.unit):
        raise BadInput(f"{earlier.name} ({earlier.unit}) and {later.name} ({later.unit}) cannot be compared")
    name = f"change of {later.name}"
    if earlier.value is None or later.value is None or earlier.value == 0:
        return Size(name, None, "%", "one of the two is not known, or the earlier one is 0")
    return Size(name, 100 * (later.value - earlier.value) / earlier.value, "%")


def _width(row: NDArray[np.bool_]) -> int:
    columns = np.flatnonzero(row)
    return int(columns[-1] - columns[0] + 1)


def _positive(spacing: tuple[float, ...]) -> float:
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise BadInput(f"spacing must be positive numbers of mm, not {spacing}")
    return math.prod(spacing)


def _check(mask: Mask, axes: int) -> None:
    if mask.dtype != bool or mask.ndim != axes:
        raise BadInput(f"a mask must be bool with {axes} axes, not {mask.dtype} with {mask.ndim}")
