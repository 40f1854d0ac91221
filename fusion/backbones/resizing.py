"""Pictures made square quickly: torch's antialiased bilinear filter as small dense matrix products.

Torch filters along rows first, which no processor does in long strides. Here columns go first (whole rows are
added up), then the small rest is filtered alike across: the same weights, the same sums in another order.
A few rows of the result at a time come from few rows of the picture: so little of such a product is zeros
that BLAS outruns a sparse one, and the picture is fetched from memory once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.inputs import FloatArray

ROWS = (16, 8, 4)  # of the result at a time: the first with which a product is no larger than PRODUCT
PRODUCT = (
    500_000  # multiplications; from 2 ** 19 on OpenBLAS wakes threads, which takes longer than the product
)
ONE = 0x3F800000  # the bits of 1.0 as float32
_Place = tuple[slice, slice]


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """Rows of the result come from rows `read` of the picture by `weights`, float32 [rows made, rows read].

    tiles  (rows and columns of the picture, where they go): as many columns as one product takes
    """

    read: slice
    weights: FloatArray
    tiles: tuple[tuple[_Place, _Place], ...]


def squared(frames: FloatArray, size: int) -> tuple[Tensor, bool]:
    """float32 [T, C, H, W], contiguous → [T, C, size, size], bilinear and antialiased; and whether all of it
    surely was within 0 and 1.

    Equal to `torch.nn.functional.interpolate` to float32 rounding, in half of its time on large ones. Read
    as whole numbers, the bits of a negative number, an infinity and a NaN are larger than those of 1: that is
    how values outside are found.
    """
    height, width = frames.shape[2:]
    down, across = _parts(height, size, width), _parts(width, size, size)
    made = np.empty((*frames.shape[:2], size, size), np.float32)
    lower, highest = np.empty((size, width), np.float32), np.uint32(0)
    with np.errstate(invalid="ignore", over="ignore"):  # of values outside, which the caller cuts or refuses
        for plane, small in zip(frames.reshape(-1, height, width), made.reshape(-1, size, size), strict=True):
            bits = plane.view(np.uint32)
            for part in down:
                highest = max(highest, bits[part.read].max())
                _filter(part, plane, lower)
            for part in across:
                _filter(part, lower.T, small.T)
    return torch.from_numpy(made), bool(highest <= ONE)


def _filter(part: _Part, picture: FloatArray, made: FloatArray) -> None:
    for read, put in part.tiles:
        np.matmul(part.weights, picture[read], made[put])


@lru_cache(maxsize=64)
def _parts(length: int, size: int, columns: int) -> tuple[_Part, ...]:
    """Together they read all of the picture: no row weighs nothing."""
    unit = torch.eye(length)[None, None]  # the filter is linear: what it makes of these are its weights
    told = F.interpolate(unit, size=(size, length), mode="bilinear", antialias=True, align_corners=False)
    weights = np.asarray(told[0, 0].numpy(), np.float32)
    for rows in ROWS:
        found = tuple(
            _part(weights, slice(start, min(start + rows, size)), columns) for start in range(0, size, rows)
        )
        if all(len(part.tiles) == 1 for part in found):
            break
    return found


def _part(weights: FloatArray, made: slice, columns: int) -> _Part:
    used = np.flatnonzero(weights[made].any(axis=0))
    read = slice(int(used[0]), int(used[-1]) + 1)
    own = np.asfortranarray(weights[made, read])  # so that BLAS reads it along memory where all is turned
    step = math.ceil(columns / math.ceil(own.size * columns / PRODUCT))
    taken = [slice(start, min(start + step, columns)) for start in range(0, columns, step)]
    return _Part(read, own, tuple(((read, some), (made, some)) for some in taken))
