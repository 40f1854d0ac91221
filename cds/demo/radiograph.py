"""A simulated frontal chest radiograph: drawn anatomy with a chosen heart size, lung opacity and effusion.

It looks like one and is labelled as simulated in its pixels and its header; it is of nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cds.demo.drawing import Picture, Point, blur, cloud, fill, spline, strokes, write_mark

SIDE = 512  # pixels
Place = Callable[[list[Point]], list[Point]]

INNER_WIDTH = 0.70  # of the chest between the ribs, as a fraction of the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class ChestFindings:
    """What is to be seen.

    cardiothoracic_ratio  heart width / inner chest width, about 0.4 to 0.7
    opacity               extent of lung opacities, 0 to 1
    effusion              height of the pleural fluid on each side (right, left), 0 to 1
    """

    cardiothoracic_ratio: float
    opacity: float
    effusion: tuple[float, float] = (0.0, 0.0)
    female: bool = False
    portable: bool = False  # AP in bed: rotated a little, shallower breath, less contrast


def draw_chest(findings: ChestFindings, rng: np.random.Generator) -> Picture:
    """Draw it: float32 [SIDE, SIDE], 0 (air) to 1 (dense), dense tissue bright."""
    place, breath = _pose(findings, rng)

    def shape(points: list[Point], soft: float) -> Picture:
        return fill(spline(place(points), closed=True), SIDE, soft=soft)

    y_grid, x_grid = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    body = shape(_trunk(), 4)
    right, left = shape(_lung(breath), 2.2), shape(_mirror(_lung(breath + 0.018)), 2.2)
    lungs = np.clip(right + left, 0, 1)
    heart = shape(_heart(findings.cardiothoracic_ratio, breath), 3.0)
    mediastinum = shape(_mediastinum(), 3.5)
    air = lungs * (1 - 0.93 * heart) * (1 - 0.85 * mediastinum)

    density = 0.60 * body * (1 - 0.73 * air)
    density += 0.05 * body * (y_grid - 0.5) + 0.10 * body * _below_diaphragm(lungs, y_grid)
    density += 0.10 * heart * body + 0.05 * mediastinum
    density += 0.16 * air * _vessels(rng, place)
    density += 0.12 * lungs * np.clip((y_grid - 0.45) * 1.6, 0, 1) * (1.0 if findings.female else 0.35)
    density += _bones(rng, place)
    trachea = place([(0.5, -0.02), (0.502, 0.2), (0.497, 0.34)])
    density -= 0.10 * strokes([(trachea, 0.034, 1.0)], SIDE, soft=3)
    density -= 0.22 * shape(_stomach_bubble(breath), 4) * (1 - lungs)
    density += _opacities(findings.opacity, air, rng, y_grid, x_grid)
    for side, level in zip((right, left), findings.effusion, strict=True):
        fluid = _fluid(side, level, x_grid, y_grid)
        density = density * (1 - fluid) + (0.72 + 0.1 * (density - 0.6)) * fluid
    return _expose(density, findings, rng)


def draw_masks(findings: ChestFindings, rng: np.random.Generator) -> dict[str, NDArray[np.bool_]]:
    """Where heart and lungs truly are, bool [SIDE, SIDE] each. With the rng that `draw_chest` gets."""
    place, breath = _pose(findings, rng)
    outlines = {
        "heart": [_heart(findings.cardiothoracic_ratio, breath)],
        "lungs": [_lung(breath), _mirror(_lung(breath + 0.018))],
    }

    def inside(points: list[Point]) -> NDArray[np.bool_]:
        return fill(spline(place(points), closed=True), SIDE, soft=0) > 0.5

    return {name: np.logical_or.reduce([inside(part) for part in parts]) for name, parts in outlines.items()}


def _pose(findings: ChestFindings, rng: np.random.Generator) -> tuple[Place, float]:
    """How the patient stands: where the anatomy's points lie in this picture, and how deep the breath is."""
    tilt, breath = rng.normal(0, 0.008), rng.normal(0.0, 0.012) - (0.03 if findings.portable else 0.0)
    shift = (float(rng.normal(0, 0.01)), float(rng.normal(0, 0.012)))

    def place(points: list[Point]) -> list[Point]:
        """Shifted, tilted."""
        return [(x + shift[0] + tilt * (y - 0.5), y + shift[1]) for x, y in points]

    return place, float(breath)


def _trunk() -> list[Point]:
    half = [(0.60, -0.1), (0.62, 0.03), (0.78, 0.075), (0.96, 0.12), (1.08, 0.25), (0.99, 0.36), (0.93, 0.5)]
    half += [(0.93, 0.75), (0.95, 1.1)]
    return half + [(1 - x, y) for x, y in reversed(half)]


def _lung(breath: float) -> list[Point]:
    """The right lung, on the left of the picture; `breath` lowers the diaphragm."""
    down = breath
    return [
        (0.375, 0.105), (0.29, 0.15), (0.215, 0.28), (0.172, 0.45), (0.152, 0.62), (0.15, 0.765 + down),
        (0.175, 0.755 + down), (0.235, 0.705 + down), (0.31, 0.685 + down), (0.385, 0.705 + down),
        (0.455, 0.745 + down), (0.468, 0.6), (0.462, 0.42), (0.468, 0.26), (0.452, 0.15), (0.42, 0.105),
    ]  # fmt: skip


def _mirror(points: list[Point]) -> list[Point]:
    return [(1 - x, y) for x, y in points]


def _heart(ratio: float, breath: float) -> list[Point]:
    """The heart's outline; its width is `ratio` times the inner chest."""
    wide, base = ratio * INNER_WIDTH, 0.755 + breath
    right, apex = 0.5 - 0.33 * wide, 0.5 + 0.67 * wide
    tall = 0.22 + 0.20 * ratio
    return [
        (right + 0.02, base - 0.02), (right, base - 0.42 * tall), (right + 0.035, base - 0.8 * tall),
        (0.475, base - tall), (0.545, base - tall), (0.5 + 0.30 * wide, base - 0.82 * tall),
        (apex - 0.10 * wide, base - 0.48 * tall), (apex, base - 0.15 * tall), (apex - 0.05, base + 0.02),
        (0.52, base + 0.04),
    ]  # fmt: skip


def _mediastinum() -> list[Point]:
    return [
        (0.455, -0.05), (0.452, 0.2), (0.44, 0.32), (0.425, 0.42), (0.43, 0.6), (0.45, 0.9), (0.55, 0.9),
        (0.565, 0.6), (0.565, 0.44), (0.572, 0.36), (0.59, 0.3), (0.578, 0.255), (0.548, 0.22),
        (0.545, -0.05),
    ]  # fmt: skip


def _stomach_bubble(breath: float) -> list[Point]:
    return [(0.66, 0.80 + breath), (0.72, 0.775 + breath), (0.78, 0.81 + breath), (0.72, 0.845 + breath)]


def _below_diaphragm(lungs: Picture, y_grid: Picture) -> Picture:
    """1 under the lungs (the abdomen's organs)."""
    return np.asarray(np.clip((y_grid - 0.72) * 14, 0, 1) * (1 - lungs), dtype=np.float32)


def _vessels(rng: np.random.Generator, place: Place) -> Picture:
    """Pulmonary vessels: branching from both hila, thinner outwards."""
    around = np.linspace(0, 2 * np.pi, 16)
    lines: list[tuple[list[Point], float, float]] = []
    hila = np.zeros((SIDE, SIDE), dtype=np.float32)
    for sign in (-1.0, 1.0):
        hilum = (0.5 + sign * 0.075, 0.43 if sign < 0 else 0.415)
        ring = [(hilum[0] + 0.028 * float(np.cos(a)), hilum[1] + 0.05 * float(np.sin(a))) for a in around]
        hila += fill(place(ring), SIDE, soft=6)
        for _ in range(17):
            angle = rng.uniform(-1.25, 1.25)
            at, heading, width = (
                hilum,
                np.array([sign * np.cos(angle), np.sin(angle)]),
                rng.uniform(0.008, 0.014),
            )
            for _ in range(6):
                bend = rng.normal(0, 0.25)
                turn = np.array([[np.cos(bend), -np.sin(bend)], [np.sin(bend), np.cos(bend)]])
                heading = turn @ heading
                to = (float(at[0] + 0.042 * heading[0]), float(at[1] + 0.042 * heading[1]))
                lines.append((place([at, to]), width, float(rng.uniform(0.35, 0.75))))
                at, width = to, width * 0.76
    return np.asarray(np.clip(0.8 * hila + strokes(lines, SIDE, soft=1.4), 0, 1.5), dtype=np.float32)


def _thick(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.008, 0.014))


def _bones(rng: np.random.Generator, place: Place) -> Picture:
    """Ribs behind (steep) and in front (flat), clavicles, spine, shoulder blades and upper arms."""
    behind: list[list[Point]] = []
    front: list[list[Point]] = []
    collar: list[list[Point]] = []
    arms: list[list[Point]] = []
    blades = np.zeros((SIDE, SIDE), dtype=np.float32)
    spread = rng.normal(1, 0.03)
    for sign in (-1.0, 1.0):
        for i in range(9):
            top = 0.12 + 0.072 * i * spread
            reach = 0.33 * float(np.sqrt(np.clip(1 - ((i - 7.2) / 9.2) ** 2, 0.1, 1)))
            far = (0.5 + sign * (reach + 0.012), top + 0.10)
            behind.append([(0.5 + sign * 0.045, top), (0.5 + sign * reach * 0.45, top - 0.012),
                           (0.5 + sign * reach * 0.85, top + 0.035), far])  # fmt: skip
            if 1 <= i <= 6:
                front.append(
                    [far, (0.5 + sign * reach * 0.8, top + 0.185), (0.5 + sign * reach * 0.45, top + 0.225)]
                )
        collar.append([(0.5 + sign * 0.03, 0.165), (0.5 + sign * 0.14, 0.14), (0.5 + sign * 0.27, 0.085)])
        arms.append([(0.5 + sign * 0.46, 0.12), (0.5 + sign * 0.475, 0.30), (0.5 + sign * 0.50, 0.5)])
        blade = [(0.34, 0.10), (0.43, 0.16), (0.40, 0.34), (0.355, 0.43), (0.335, 0.28)]
        blades += fill(spline(place([(0.5 + sign * x, y) for x, y in blade]), closed=True), SIDE, soft=3)
    bones = _tubes(behind, 0.021, place) * 0.105 + _tubes(front, 0.023, place) * 0.065
    bones += _tubes(collar, 0.026, place) * 0.13 + _tubes(arms, 0.06, place) * 0.14 + 0.05 * blades
    levels = [0.03 + 0.078 * i for i in range(13)]
    spine = [(place([(0.5, y), (0.5, y + 0.062)]), 0.074, 1.0) for y in levels]
    return np.asarray(bones + 0.075 * strokes(spine, SIDE, soft=2.5), dtype=np.float32)


def _tubes(bones: list[list[Point]], width: float, place: Place) -> Picture:
    """Hollow bones: denser at their edges, where the beam meets more cortex."""
    curves = [spline(place(points), closed=False) for points in bones]
    outer = strokes([(curve, width, 1.0) for curve in curves], SIDE, soft=1.3)
    return outer - 0.55 * strokes([(curve, width * 0.6, 1.0) for curve in curves], SIDE, soft=1.6)


def _opacities(
    extent: float, air: Picture, rng: np.random.Generator, y_grid: Picture, x_grid: Picture
) -> Picture:
    """Hazy and patchy whiteness, more at the bases and around the hila as `extent` rises."""
    patches = 0.65 * cloud(rng, air.shape, 26) + 0.35 * cloud(rng, air.shape, 9)
    hilar = np.exp(-(((np.abs(x_grid - 0.5) - 0.13) / 0.11) ** 2) - ((y_grid - 0.5) / 0.2) ** 2)
    where = 0.9 * np.clip((y_grid - 0.33) * 2.2, 0, 1) + 0.6 * hilar
    threshold = 1.6 - 2.6 * extent
    patchy = 1 / (1 + np.exp(-3.2 * (patches + where - 0.8 - threshold)))
    fine = 1 + 0.12 * cloud(rng, air.shape, 2.0)
    return np.asarray(air * (0.36 * extent**0.7 * patchy + 0.10 * extent * where) * fine, dtype=np.float32)


def _fluid(lung: Picture, level: float, x_grid: Picture, y_grid: Picture) -> Picture:
    """Pleural fluid: flat at the bottom, climbing along the outer wall (a meniscus)."""
    if level <= 0:
        return np.zeros_like(lung)
    columns = np.flatnonzero(lung.max(axis=0) > 0.5)
    rows = np.flatnonzero(lung.max(axis=1) > 0.5)
    if not columns.size or not rows.size:
        return np.zeros_like(lung)
    bottom = rows[-1] / SIDE
    outside_first = columns.mean() < SIDE / 2
    outer = columns[0] / SIDE if outside_first else columns[-1] / SIDE
    surface = bottom - 0.04 - 0.16 * level - 0.20 * level * np.exp(-np.abs(x_grid - outer) / 0.045)
    return np.asarray(lung / (1 + np.exp(-(y_grid - surface) * 90)), dtype=np.float32)


def _expose(density: Picture, findings: ChestFindings, rng: np.random.Generator) -> Picture:
    """Scatter, film curve and quantum noise; bedside pictures are flatter and noisier."""
    contrast = rng.normal(1.0, 0.05) - (0.10 if findings.portable else 0.0)
    scattered = 0.86 * density + 0.14 * blur(density, 28)
    curve = 1 / (1 + np.exp(-6.2 * contrast * (scattered - 0.43 + rng.normal(0, 0.012))))
    noise = rng.standard_normal(density.shape).astype(np.float32)
    grain = 0.6 * noise + 0.8 * blur(noise, 0.8)
    picture = blur(curve.astype(np.float32), 0.6) + (0.012 + 0.006 * findings.portable) * grain
    picture = np.clip(0.02 + 0.93 * picture, 0, 1).astype(np.float32)
    write_mark(picture, "SIMULATED", (0.02, 0.02), size=15, value=0.9)
    write_mark(picture, "L", (0.93, 0.06), size=26, value=0.97)
    if findings.portable:
        write_mark(picture, "PORTABLE", (0.02, 0.06), size=12, value=0.85)
    return picture
