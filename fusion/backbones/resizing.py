"""Pictures made square quickly: torch's antialiased bilinear filter as sparse matrix products.

Torch filters along rows first, which no processor does in long strides. Here columns go first (whole rows are
added up), then the small rest is turned and filtered alike: the same weights, the same sums in another order.
A few rows at a time, so that each is fetched from memory once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional as F

ROWS = 56  # of the result at a time
ONE = 0x3F800000  # the bits of 1.0 as float32


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """Rows `made` of the result come from rows `read` of the picture by `weights`, float32 [made, read]."""

    made: slice
    read: slice
    weights: csr_array


def squared(frames: Tensor, size: int) -> tuple[Tensor, bool]:
    """float32 [T, C, H, W] on the CPU → [T, C, size, size], bilinear and antialiased; and whether all of it
    surely was within 0 and 1.

    Equal to `torch.nn.functional.interpolate` to float32 rounding, in half of its time on large ones. Read
    as whole numbers, the bits of a negative number, an infinity and a NaN are larger than those of 1: that is
    how values outside are found.
    """
    height, width = frames.shape[2:]
    parts, across = _parts(height, size), _weights(width, size)
    made = torch.empty(*frames.shape[:2], size, size)
    lower, highest = np.empty((size, width), np.float32), 0
    for plane, small in zip(frames.flatten(0, 1).numpy(), made.flatten(0, 1), strict=True):
        for part in parts:
            rows = plane[part.read]
            highest = max(highest, int(rows.view(np.uint32).max()))
            lower[part.made] = part.weights @ rows
        turned = torch.from_numpy(lower).t().contiguous()
        small.copy_(torch.from_numpy(across @ turned.numpy()).t())
    return made, highest <= ONE


@lru_cache(maxsize=64)
def _parts(length: int, size: int) -> tuple[_Part, ...]:
    """Together they read every row: there is none that weighs nothing."""
    whole, found = _weights(length, size), []
    for start in range(0, size, ROWS):
        made = slice(start, min(start + ROWS, size))
        rows = whole[made]
        read = slice(int(rows.indices.min()), int(rows.indices.max()) + 1)
        found.append(_Part(made, read, csr_array(rows[:, read])))
    return tuple(found)


@lru_cache(maxsize=64)
def _weights(length: int, size: int) -> csr_array:
    """float32 [size, length]: what each pixel adds; torch's own weights, read from unit pictures."""
    unit = torch.eye(length)[None, None]
    told = F.interpolate(unit, size=(size, length), mode="bilinear", antialias=True, align_corners=False)
    return csr_array(np.asarray(told[0, 0].numpy(), np.float32))
