"""A heat map laid over its picture, with words burned in that cannot be taken off again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LEAST_WIDTH = 512  # so that the words can be read
FAINTEST = 0.15  # of the map: below it the picture is left alone
STRENGTH = 0.55
COLOURS = np.array([[255, 237, 160], [254, 178, 76], [240, 59, 32]], np.float32)  # pale yellow to red


def burn(picture: NDArray[np.uint8], heat: NDArray[np.floating], lines: Sequence[str]) -> NDArray[np.uint8]:
    """The picture under its heat map, and a black band below it with the lines: uint8 [H, W, 3].

    picture  uint8 [h, w]
    heat     in [0, 1], of any size; it is stretched over the picture
    """
    side = max(1, -(-LEAST_WIDTH // picture.shape[1]))
    grey = np.kron(picture, np.ones((side, side), np.uint8)) if side > 1 else picture
    height, width = grey.shape
    small = Image.fromarray(np.clip(heat, 0, 1).astype(np.float32))
    weight = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
    shown = np.repeat(grey[..., None].astype(np.float32), 3, axis=2)
    share = np.where(weight > FAINTEST, STRENGTH * weight, 0.0)[..., None]
    blended = shown * (1 - share) + _coloured(weight) * share
    band = _band(lines, width)
    return np.concatenate([np.rint(blended).astype(np.uint8), band])


def _coloured(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    at = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(weight, at, COLOURS[:, channel]) for channel in range(3)], axis=-1).astype(
        np.float32
    )


def _band(lines: Sequence[str], width: int) -> NDArray[np.uint8]:
    """White on black, each line as large as fits, between 12 and 28 pixels high."""
    sized = []
    for line in lines:
        size = max(14, width // 28)
        while size > 11 and ImageFont.load_default(size).getlength(line) > width - 16:
            size -= 1
        sized.append((line, size))
    height = 12 + sum(size + 8 for _, size in sized)
    band = Image.new("RGB", (width, height), "black")
    draw, top = ImageDraw.Draw(band), 8
    for line, size in sized:
        draw.text((8, top), line, fill="white", font=ImageFont.load_default(size))
        top += size + 8
    return np.asarray(band)
