"""Frames at the size a backbone takes, without torch: what `ImageBackbone.prepare` gives, to 1e-5."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fusion.errors import BadInput, BlankPixels
from fusion.harmonise import HARMONISED, harmonise
from fusion.inputs import FloatArray, Modality

MARGIN = 0.01  # by which pixels may leave [0, 1]: interpolation overshoots a little
PIXELS = "float32 [T, H, W] or [T, 3, H, W], intensities in [0, 1] (no unit), is expected"


def check_pixels(values: FloatArray, modality: Modality, key: str) -> None:
    """Refuse pixels that no encoder can read, by their name: another shape or dtype, not finite, outside
    [0, 1], or all the same.

    Raises BadInput, and BlankPixels where every pixel is the same.
    """
    name = f"{modality.value} {key!r}"
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        found = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise BadInput(f"{name}: pixels of {found} where {PIXELS}")
    if values.ndim not in (3, 4) or 0 in values.shape or (values.ndim == 4 and values.shape[1] not in (1, 3)):
        raise BadInput(f"{name}: pixels of shape {list(values.shape)} where {PIXELS}")
    low, high = float(values.min()), float(values.max())  # a NaN is both bounds
    check_range(low, high, name)
    if low == high:
        raise BlankPixels(f"{name}: every pixel is the same where {PIXELS}; leave it out")


def check_range(low: float, high: float, name: str) -> None:
    """Refuse pixels by their lowest and highest intensity: not finite, or outside [0, 1] by more than
    `MARGIN`. Raises BadInput."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadInput(f"{name}: pixels that are not finite where {PIXELS}")
    if low < -MARGIN or high > 1 + MARGIN:
        top = next((2**bits - 1 for bits in (8, 12, 16) if 1 < high < 2**bits and low >= -MARGIN), None)
        how = "rescale them first" if top is None else f"divide {top.bit_length()}-bit pixels by {top} first"
        raise BadInput(f"{name}: pixels from {low:g} to {high:g} where {PIXELS}; {how}")


def resized(values: FloatArray, size: int, *, backbone: str = "") -> FloatArray:
    """Frames in [0, 1], grey [T, H, W] or [T, C, H, W], → float32 [T, C, size, size].

    Bilinear, antialiased (a triangle filter as wide as the shrinking asks for). Each frame is harmonised by
    itself first where the backbone's name asks for that ("…+harmonised"). Raises BadInput, also for values
    outside [0, 1] by more than `MARGIN`.
    """
    if values.size:
        check_range(float(values.min()), float(values.max()), "frames")
    if backbone.endswith(HARMONISED) and values.ndim in (3, 4) and values.size:
        frames = np.clip(values, 0, 1).astype(np.float32)
        return np.concatenate([resized(harmonise(frame[None]), size) for frame in frames])
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim != 4 or 0 in values.shape or values.shape[1] not in (1, 3):
        raise BadInput(
            "frames must be [T, H, W] (grey) or [T, 3, H, W] (colour) without an empty axis, "
            f"not {list(values.shape)}"
        )
    planes = np.clip(values.astype(np.float32), 0, 1).reshape(-1, *values.shape[2:])
    small = [Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane, np.float32) for plane in small]).reshape(*values.shape[:2], size, size)
