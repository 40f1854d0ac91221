"""Frames at the size a backbone takes, without torch: what `ImageBackbone.prepare` gives, to 1e-5."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fusion.errors import BadInput, BlankPixels
from fusion.harmonise import HARMONISED, harmonise
from fusion.inputs import FloatArray, Modality

PIXELS = "float32 [T, H, W] or [T, 3, H, W], intensities in [0, 1] (no unit), is expected"


def check_pixels(values: FloatArray, modality: Modality, key: str) -> None:
    """Refuse pixels that no encoder can read, by their name: another shape, not finite, or all the same.

    Raises BadInput, and BlankPixels where every pixel is the same.
    """
    name = f"{modality.value} {key!r}"
    if values.ndim not in (3, 4) or 0 in values.shape or (values.ndim == 4 and values.shape[1] not in (1, 3)):
        raise BadInput(f"{name}: pixels of shape {list(values.shape)} where {PIXELS}")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise BadInput(f"{name}: pixels that are not finite where {PIXELS}")
    if low == high:
        raise BlankPixels(f"{name}: every pixel is the same where {PIXELS}; leave it out")


def resized(values: FloatArray, size: int, *, backbone: str = "") -> FloatArray:
    """Frames in [0, 1], grey [T, H, W] or [T, C, H, W], → float32 [T, C, size, size].

    Bilinear, antialiased (a triangle filter as wide as the shrinking asks for). Each frame is harmonised by
    itself first where the backbone's name asks for that ("…+harmonised"). Raises BadInput.
    """
    if backbone.endswith(HARMONISED) and values.ndim in (3, 4) and values.size and np.isfinite(values).all():
        frames = np.clip(values, 0, 1).astype(np.float32)
        return np.concatenate([resized(harmonise(frame[None]), size) for frame in frames])
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim != 4 or 0 in values.shape or values.shape[1] not in (1, 3):
        raise BadInput(
            "frames must be [T, H, W] (grey) or [T, 3, H, W] (colour) without an empty axis, "
            f"not {list(values.shape)}"
        )
    if not np.isfinite([values.min(), values.max()]).all():
        raise BadInput("frames hold values that are not finite")
    planes = np.clip(values.astype(np.float32), 0, 1).reshape(-1, *values.shape[2:])
    small = [Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane, np.float32) for plane in small]).reshape(*values.shape[:2], size, size)
