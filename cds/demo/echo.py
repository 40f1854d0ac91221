"""A simulated echocardiogram: an apical view of a beating left ventricle, with speckle, in a sector.

The ventricle is half a prolate ellipsoid of length L and diameter D, volume (pi/6) * L * D^2; over a beat
both shorten so that 1 - V(systole)/V(diastole) is the chosen ejection fraction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cds.demo.drawing import Picture, blur, write_mark

SIDE = 160  # pixels
HALF_ANGLE = np.deg2rad(40)
LONG_AXIS_SHARE = 0.30  # share of the shortening (in logs of length) along the long axis


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoFindings:
    """What is to be seen.

    ejection_fraction  in (0.1, 0.8)
    diastolic_ml       volume of the ventricle when full, millilitres
    heart_rate         beats per minute
    frame_rate         frames per second
    depth_mm           from the probe to the bottom of the sector
    gain, noise        brightness (about 1) and share of noise (about 0.1 to 0.4)
    """

    ejection_fraction: float
    diastolic_ml: float = 110.0
    heart_rate: float = 75.0
    frame_rate: float = 30.0
    depth_mm: float = 160.0
    frames: int = 32
    gain: float = 1.0
    noise: float = 0.2

    @property
    def mm_per_pixel(self) -> float:
        """Side of a pixel, mm."""
        return self.depth_mm / (SIDE * 0.94)


def volume_curve(findings: EchoFindings) -> NDArray[np.float64]:
    """Fraction of the stroke still inside the ventricle at each frame: 1 full, 0 empty. [T]"""
    seconds = np.arange(findings.frames) / findings.frame_rate
    phase = (seconds * findings.heart_rate / 60) % 1.0
    systole = 0.36
    emptying = 0.5 * (1 + np.cos(np.pi * np.clip(phase / systole, 0, 1)))
    early = 0.72 * (1 - np.exp(-np.clip(phase - systole, 0, None) / 0.11))
    atrial = 0.28 / (1 + np.exp(-(phase - 0.86) / 0.03))
    return np.asarray(np.where(phase < systole, emptying, np.clip(early + atrial, 0, 1)), dtype=np.float64)


def axes_mm(findings: EchoFindings) -> NDArray[np.float64]:
    """Length and diameter of the ventricle at each frame, mm. [T, 2]"""
    fraction = volume_curve(findings)
    left = 1 - findings.ejection_fraction * (1 - fraction)  # volume over diastolic volume
    diameter_full = (findings.diastolic_ml * 1000 * 6 / (np.pi * 1.75)) ** (1 / 3)  # L = 1.75 D when full
    length = 1.75 * diameter_full * left**LONG_AXIS_SHARE
    diameter = diameter_full * left ** ((1 - LONG_AXIS_SHARE) / 2)
    return np.stack([length, diameter], axis=1)


def draw_masks(findings: EchoFindings) -> NDArray[np.bool_]:
    """The cavity of the left ventricle in each frame: bool [T, SIDE, SIDE]."""
    x, y = _grid_mm(findings)
    return np.stack([_ventricle(x, y, length, diameter) <= 1 for length, diameter in axes_mm(findings)])


def measure_ejection_fraction(masks: NDArray[np.bool_], mm_per_pixel: float) -> float:
    """Ejection fraction by the area-length method, V = 8 A^2 / (3 pi L), from masks [T, H, W]."""
    volumes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        points = np.stack([rows, columns], axis=1) * mm_per_pixel
        centred = points - points.mean(axis=0)
        axis = np.linalg.svd(centred, full_matrices=False)[2][0]
        along = centred @ axis
        length = along.max() - along.min() + mm_per_pixel
        volumes.append(8 * (mask.sum() * mm_per_pixel**2) ** 2 / (3 * np.pi * length))
    return float(1 - min(volumes) / max(volumes))


def draw_echo(findings: EchoFindings, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The clip: uint8 [T, SIDE, SIDE], MONOCHROME2."""
    x, y = _grid_mm(findings)
    radius, angle = np.hypot(x, y), np.arctan2(x, y)
    sector = (np.abs(angle) < HALF_ANGLE) & (radius < findings.depth_mm * 0.985) & (radius > 4)
    polar = _polar_index(radius / findings.depth_mm, angle)
    still = _speckle(rng)
    dropout = 1 - 0.45 * np.clip((np.abs(angle) / HALF_ANGLE - 0.72) / 0.28, 0, 1)  # weaker at the sides
    fade = np.exp(-1.1 * np.clip(radius / findings.depth_mm - 0.55, 0, None))
    axes = axes_mm(findings)
    full_length, full_diameter = axes.max(axis=0)
    frames = []
    for t, (length, diameter) in enumerate(axes):
        opening = float(volume_curve(findings)[t])
        tissue = _tissue(x, y, length, diameter, full_length, full_diameter, opening)
        grain = 0.72 * still + 0.28 * _speckle(rng)
        shifted = np.roll(grain, round(2.0 * (1 - opening)), axis=0)
        speckle = shifted.reshape(-1)[polar]
        echo = tissue * speckle + findings.noise * 0.16 * rng.rayleigh(1.0, x.shape) * (
            radius / findings.depth_mm
        )
        near_field = 0.5 * np.exp(-radius / 9.0) * speckle
        decibel = np.log1p(22 * findings.gain * (echo + near_field) * dropout * fade) / np.log1p(26)
        picture = (blur(np.clip(decibel, 0, 1).astype(np.float32), 0.55) * sector).astype(np.float32)
        _draw_trace(picture, findings, t)
        write_mark(picture, "SIMULATED", (0.015, 0.01), size=11, value=0.75)
        frames.append((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return np.stack(frames)


def _grid_mm(findings: EchoFindings) -> tuple[Picture, Picture]:
    """Where each pixel lies, mm right of and below the probe, which is at the top middle."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    scale = findings.mm_per_pixel
    return (columns - (SIDE - 1) / 2) * scale, (rows - 3) * scale


def _ventricle(x: Picture, y: Picture, length: float, diameter: float, wall: float = 0.0) -> Picture:
    """Below 1 inside the half ellipsoid (apex up), thickened by `wall` mm; infinite under its base."""
    apex_y, centre_x, lean = 26.0, 12.0, 0.10
    u = (x - centre_x) + lean * (y - apex_y)
    down = (y - apex_y) - length  # 0 at the base, negative above it
    inside = (u / (diameter / 2 + wall)) ** 2 + (down / (length + wall)) ** 2
    return np.where(down <= 0, inside, np.inf).astype(np.float32)


def _tissue(
    x: Picture,
    y: Picture,
    length: float,
    diameter: float,
    full_length: float,
    full_diameter: float,
    opening: float,
) -> Picture:
    """How strongly each place scatters: bright muscle and valves, dark blood."""
    scatter = np.full(x.shape, 0.13, dtype=np.float32)
    outside = _ventricle(x, y, full_length + 2, full_diameter, wall=13.0)
    muscle = outside <= 1
    scatter[muscle] = 0.42
    rim = np.abs(np.sqrt(np.where(np.isfinite(outside), outside, 9)) - 1) < 0.05
    scatter[rim] = 0.85  # pericardium
    cavity = _ventricle(x, y, length, diameter)
    scatter[(cavity > 1) & (cavity < 1.18)] = 0.62  # endocardium
    scatter[cavity <= 1] = 0.02
    base_y, hinge = 26.0 + length, diameter / 2
    centre = 12.0 - 0.10 * length
    # the right ventricle beside the septum
    right = ((x - centre + full_diameter * 0.5 + 29) / 13) ** 2 + ((y - base_y + 22) / 30) ** 2
    scatter[(right <= 1) & ~muscle] = 0.03
    scatter[(right > 1) & (right < 1.35) & ~muscle] = 0.42
    # atria below the valves, filling as the ventricle empties
    for atrium_x, wide in ((centre, 17.0 + 3 * (1 - opening)), (centre - full_diameter * 0.5 - 27, 14.0)):
        atrium = ((x - atrium_x) / wide) ** 2 + ((y - base_y - 21) / 18.5) ** 2
        scatter[(atrium <= 1) & (y > base_y + 2)] = 0.025
        scatter[(atrium > 1) & (atrium < 1.3) & (y > base_y + 2)] = 0.45
    # mitral leaflets: closed across the base in systole, parted and hanging into the ventricle in diastole
    open_share = float(np.clip((opening - 0.25) / 0.6, 0, 1))
    hang, gap = 12.0 * open_share + 1.5, 0.5 * open_share
    for sign in (-1.0, 1.0):
        along = sign * (x - centre) / hinge  # 0 in the middle, 1 at the hinge
        leaflet = base_y - hang * np.clip((1 - along) / (1 - gap), 0, 1)
        scatter[(np.abs(y - leaflet) < 1.6) & (along >= gap) & (along <= 1)] = 0.9
    return blur(scatter, 0.7)


def _speckle(rng: np.random.Generator) -> Picture:
    """Speckle in (depth, angle): Rayleigh, fine along the beam, coarse across; mean 1. [256, 128]"""
    parts = []
    for _ in range(2):
        noise = rng.standard_normal((256, 128)).astype(np.float32)
        smooth = 0.5 * noise + 0.25 * (np.roll(noise, 1, 0) + np.roll(noise, -1, 0))
        wide = sum((np.roll(smooth, k, 1) for k in (-2, -1, 1, 2)), smooth)
        parts.append(wide)
    amplitude = np.hypot(parts[0], parts[1])
    return np.asarray(amplitude / amplitude.mean(), dtype=np.float32)


def _polar_index(depth: Picture, angle: Picture) -> NDArray[np.int64]:
    """For each pixel, its place in the flattened speckle field."""
    row = np.clip(depth * 255, 0, 255).astype(np.int64)
    column = np.clip((angle / HALF_ANGLE + 1) / 2 * 127, 0, 127).astype(np.int64)
    return np.asarray(row * 128 + column, dtype=np.int64)


def _draw_trace(picture: Picture, findings: EchoFindings, frame: int) -> None:
    """The electrocardiogram at the bottom, drawn up to the present frame."""
    seconds = np.linspace(0, findings.frames / findings.frame_rate, SIDE)
    phase = (seconds * findings.heart_rate / 60 + 0.04) % 1.0
    volts = 1.0 * np.exp(-(((phase - 0.04) / 0.012) ** 2)) - 0.25 * np.exp(-(((phase - 0.07) / 0.012) ** 2))
    volts += 0.22 * np.exp(-(((phase - 0.32) / 0.05) ** 2)) + 0.12 * np.exp(-(((phase - 0.88) / 0.03) ** 2))
    seen = np.arange(SIDE) <= SIDE * (frame + 1) / findings.frames
    rows = np.clip(SIDE - 6 - 10 * volts, 0, SIDE - 1).astype(int)
    for column in np.flatnonzero(seen).tolist():
        before = rows[max(column - 1, 0)]
        top, bottom = sorted((int(before), int(rows[column])))
        picture[top : bottom + 1, column] = 0.8
