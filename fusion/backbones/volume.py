"""CT and MR volumes → tokens. Millimetres first: every volume is resampled to one grid.

slices  2.5D: each slice of the grid with its two neighbours as the channels of a 2D backbone, a token a
        slice (three sequences of one slice, as MR often has, are the channels themselves)
voxels  the grid itself, for the 3D CNN of `fusion.encoders.volume`: one token of slices x size x size numbers

The grid is `size` x `size` pixels over `extent_mm`, and slices `step_mm` apart, centred on the volume: what
lies outside is cut off, what is not there is 0. Of more than `slices` slices at that step the middle is kept.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.backbones.image import FRAMES_AT_ONCE, ImageBackbone, load_backbone
from fusion.errors import BadInput, UnknownEncoder
from fusion.inputs import FloatArray, Frames
from fusion.numerics import without_denormals
from fusion.preparing import check_range

VOXELS = "voxels"
PREPARATION = "area or linear resampling in mm, centred, zeros outside, v1"
NAME = re.compile(r"(?P<kind>[\w+]+)/(?P<extent>[\d.]+)mm/(?P<step>[\d.]+)mm/(?P<slices>\d+)")


@dataclass(frozen=True, slots=True)
class Grid:
    """What a volume is resampled to. size in pixels a side, extent and step in mm, slices at most."""

    size: int
    extent_mm: float
    step_mm: float
    slices: int

    def __post_init__(self) -> None:
        lengths = (self.extent_mm, self.step_mm)
        if min(self.size, self.slices) < 1 or not all(math.isfinite(x) and x > 0 for x in lengths):
            raise BadInput(f"a volume grid needs a size, slices and positive mm, not {self}")


class VolumeBackbone:
    """name "efficientnet_lite0/240mm/5mm/32" (2.5D) or "voxels/240mm/5mm/32"; version: name and a digest.

    Equal versions and sizes, equal tokens.
    """

    def __init__(self, name: str, *, weights: Path | None = None) -> None:
        found = NAME.fullmatch(name)
        if found is None:
            raise UnknownEncoder(
                f"no volume backbone {name!r}; expected BACKBONE/EXTENTmm/STEPmm/SLICES, for instance "
                f"efficientnet_lite0/240mm/5mm/32 or {VOXELS}/240mm/5mm/32"
            )
        self.name, self._found = name, found
        is_2d = found["kind"] != VOXELS
        self.image: ImageBackbone | None = load_backbone(found["kind"], weights=weights) if is_2d else None
        inner = self.image.version if self.image is not None else VOXELS
        digest = hashlib.sha256(f"{PREPARATION}|{inner}".encode()).hexdigest()[:8]
        self.version = f"{name}:{digest}"

    def grid(self, size: int) -> Grid:
        """At that many pixels a side."""
        found = self._found
        return Grid(size, float(found["extent"]), float(found["step"]), int(found["slices"]))

    def width(self, size: int) -> int:
        """D of a token."""
        return self.image.width if self.image is not None else self.grid(size).slices * size * size

    def embed(self, frames: Frames, size: int) -> FloatArray:
        """A volume → float32 [S, D] (slices) or [1, D] (voxels). Raises BadInput, also without spacing."""
        grid = self.grid(size)
        resampled = resample(frames, grid)
        if self.image is None:
            return _padded(resampled.mean(1), grid.slices).reshape(1, -1).numpy().astype(np.float32)
        shown = _with_neighbours(resampled)
        parts = []
        with torch.inference_mode(), without_denormals():
            for start in range(0, len(shown), FRAMES_AT_ONCE):
                prepared = self.image.normalise(shown[start : start + FRAMES_AT_ONCE])
                parts.append(self.image.pool(self.image.maps(prepared)))
        return torch.cat(parts).numpy().astype(np.float32)


def volume_name(backbone: str, extent_mm: float, step_mm: float, slices: int) -> str:
    """The name of `VolumeBackbone` for a backbone (or "voxels") and a grid."""
    return f"{backbone}/{extent_mm:g}mm/{step_mm:g}mm/{slices}"


def resample(frames: Frames, grid: Grid) -> Tensor:
    """Frames [D, H, W] or [D, C, H, W] in [0, 1] → float32 [S, C, size, size] of the grid.

    Raises BadInput for a wrong shape, values that are not finite or outside [0, 1], or a spacing that is not
    known.
    """
    values = frames.values[:, None] if frames.values.ndim == 3 else frames.values
    if values.ndim != 4 or 0 in values.shape or values.shape[1] not in (1, 3):
        raise BadInput(
            "a volume must be float32 [D, H, W] or [D, 3, H, W] without an empty axis, "
            f"not {list(frames.values.shape)}"
        )
    spacing = (frames.slice_mm or 0.0, *(frames.spacing_mm or (0.0, 0.0)))
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise BadInput("a volume needs the spacing of its slices, rows and columns in mm: it is not known")
    check_range(float(values.min()), float(values.max()), "volume")
    volume = torch.from_numpy(np.array(values, np.float32)).clamp(0, 1)
    volume = _deep(volume, spacing[0], grid)
    pixel = grid.extent_mm / grid.size
    sides = [max(1, round(n * mm / pixel)) for n, mm in zip(volume.shape[2:], spacing[1:], strict=True)]
    volume = F.interpolate(volume, size=sides, mode="bilinear", antialias=True, align_corners=False)
    for axis in (2, 3):
        volume = _centred(volume, axis, grid.size)
    return volume.clamp(0, 1)


def _deep(volume: Tensor, slice_mm: float, grid: Grid) -> Tensor:
    """Slices at the grid's step; the middle ones where there are too many."""
    depth = max(1, round(len(volume) * slice_mm / grid.step_mm))
    if depth != len(volume):
        flat = volume.flatten(1).T[None]  # [1, pixels, D]
        if depth < len(volume):
            flat = F.interpolate(flat, size=depth, mode="area")
        else:
            flat = F.interpolate(flat, size=depth, mode="linear", align_corners=False)
        volume = flat[0].T.reshape(depth, *volume.shape[1:])
    start = max(0, (len(volume) - grid.slices) // 2)
    return volume[start : start + grid.slices]


def kept_slices(depth: int, slice_mm: float, grid: Grid) -> list[int]:
    """Which of `depth` slices stands behind each slice of the grid."""
    count = max(1, round(depth * slice_mm / grid.step_mm))
    start = max(0, (count - grid.slices) // 2)
    places = range(start, min(count, start + grid.slices))
    return [min(depth - 1, int((place + 0.5) * depth / count)) for place in places]


def _centred(volume: Tensor, axis: int, size: int) -> Tensor:
    have = volume.shape[axis]
    if have >= size:
        return volume.narrow(axis, (have - size) // 2, size)
    before = (size - have) // 2
    pad = [0, 0, 0, 0]
    pad[2 * (3 - axis)], pad[2 * (3 - axis) + 1] = before, size - have - before
    return F.pad(volume, pad)


def _padded(slices: Tensor, count: int) -> Tensor:
    """[S, H, W] → [count, H, W], zeros above and below."""
    before = (count - len(slices)) // 2
    return F.pad(slices, (0, 0, 0, 0, before, count - len(slices) - before))


def _with_neighbours(volume: Tensor) -> Tensor:
    """[S, 1, H, W] → [S, 3, H, W]: below, itself, above (the edge slice twice); three channels stay."""
    if volume.shape[1] == 3:
        return volume
    below, above = torch.cat([volume[:1], volume[:-1]]), torch.cat([volume[1:], volume[-1:]])
    return torch.cat([below, volume, above], dim=1)
