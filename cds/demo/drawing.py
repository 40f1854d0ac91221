"""Drawing simulated pictures: smooth noise, curves, filled shapes. Points are fractions (x, y), y down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Picture = NDArray[np.floating[Any]]  # [H, W]
Point = tuple[float, float]


def blur(picture: Picture, sigma: float) -> Picture:
    """Gaussian blur, `sigma` in pixels, edges mirrored."""
    margin = int(3.5 * sigma) + 1
    height, width = picture.shape
    high, wide = (-(-(side + 2 * margin) // 32) * 32 for side in (height, width))  # sizes the FFT likes
    border = ((margin, high - height - margin), (margin, wide - width - margin))
    padded = np.pad(picture.astype(np.float32), border, mode="symmetric")
    gains = [
        np.exp(-2 * (np.pi * sigma * f) ** 2) for f in (np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide))
    ]
    spectrum = np.fft.rfft2(padded) * gains[0].astype(np.float32) * gains[1].astype(np.float32)
    out = np.fft.irfft2(spectrum, s=padded.shape)
    return out[margin : margin + height, margin : margin + width].astype(np.float32)


def cloud(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Picture:
    """Smooth random field with mean 0 and standard deviation 1; `sigma` is its grain in pixels."""
    field = blur(rng.standard_normal(shape).astype(np.float32), sigma)
    return np.asarray((field - field.mean()) / (field.std() + 1e-9), dtype=np.float32)


def spline(points: Sequence[Point], *, closed: bool, steps: int = 16) -> list[Point]:
    """Catmull-Rom curve through every point."""
    p = np.asarray(points, dtype=float)
    p = np.vstack([p[-1], p, p[:2]]) if closed else np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        pieces.append(
            0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        )
    curve = np.vstack([*pieces, p[-2][None]])
    return [(float(x), float(y)) for x, y in curve]


def fill(points: Sequence[Point], side: int, *, soft: float) -> Picture:
    """A filled shape: 1 inside, 0 outside, with a blurred edge (`soft` pixels)."""
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).polygon([(x * side, y * side) for x, y in points], fill=255)
    return _soften(canvas, soft)


Line = tuple[Sequence[Point], float, float]


def strokes(lines: Sequence[Line], side: int, *, soft: float) -> Picture:
    """Lines, each (points, width as a fraction of the side, brightness 0 to 1), on one picture, blurred."""
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    for points, width, value in lines:
        pixels = [(x * side, y * side) for x, y in points]
        draw.line(pixels, fill=round(255 * value), width=max(1, round(width * side)), joint="curve")
    return _soften(canvas, soft)


def write_mark(picture: Picture, text: str, at: Point, *, size: int, value: float) -> None:
    """Burn `text` into the picture, upper left corner at `at` (fractions)."""
    height, width = picture.shape
    canvas = Image.new("L", (width, height))
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(canvas).text((at[0] * width, at[1] * height), text, fill=255, font=font)
    ink = np.asarray(canvas, dtype=np.float32) / 255
    picture[:] = picture * (1 - ink) + value * ink


def _soften(canvas: Image.Image, soft: float) -> Picture:
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(soft)), dtype=np.float32) / 255
