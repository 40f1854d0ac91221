"""Boxes and what is done with them: overlap, suppression, coding.

A box is float32 (y0, x0, y1, x1), in pixels. Coordinates are continuous: the pixel of row i and column j
covers [i, i + 1) × [j, j + 1), so its centre is at (i + 0.5, j + 0.5) and a box's height is y1 - y0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = math.log(1000 / 16)  # of a coded log size: a box grows at most that much in one step


def areas(boxes: Tensor) -> Tensor:
    """float32 [N, 4] → float32 [N], in square pixels; an inverted box has none."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union, float32 [N, 4] and [M, 4] → float32 [N, M] in [0, 1]; empty boxes give 0."""
    top_left = torch.maximum(one[:, None, :2], other[None, :, :2])
    bottom_right = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(dim=2)
    union = areas(one)[:, None] + areas(other)[None] - shared
    return torch.where(union > 0, shared / union.clamp(min=1e-12), 0.0)


def suppress(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Non-maximum suppression, greedy: rows that stay, int64 [K], by falling score (ties: the earlier row).

    A box is dropped when one that stays, with a higher score, overlaps it by more than `threshold`.
    labels  int64 [N]: boxes of different labels do not suppress one another
    """
    order = torch.argsort(scores, descending=True, stable=True)
    kept_boxes = boxes[order]
    too_near = overlaps(kept_boxes, kept_boxes) > threshold
    if labels is not None:
        too_near &= labels[order][:, None] == labels[order][None]
    alive = torch.ones(len(order), dtype=torch.bool)
    for place in range(len(order)):
        if alive[place]:
            alive[place + 1 :] &= ~too_near[place, place + 1 :]
    return order[alive]


def encode(boxes: Tensor, references: Tensor) -> Tensor:
    """Boxes as steps from references (Girshick 2014): shift of the centre over size, log of the size ratio.

    boxes, references  float32 [N, 4] with positive sizes → float32 [N, 4]: (dy, dx, log height, log width)
    """
    size, middle = _sizes(references), _middles(references)
    return torch.cat([(_middles(boxes) - middle) / size, torch.log(_sizes(boxes) / size)], dim=1)


def decode(steps: Tensor, references: Tensor) -> Tensor:
    """The inverse of `encode`; a step never makes a box more than 62 times as large."""
    size, middle = _sizes(references), _middles(references)
    middle = middle + steps[:, :2] * size
    half = size * torch.exp(steps[:, 2:].clamp(max=LARGEST)) / 2
    return torch.cat([middle - half, middle + half], dim=1)


def clipped(boxes: Tensor, size: int) -> Tensor:
    """Cut at the borders of a square picture of `size` pixels a side."""
    return boxes.clamp(0, size)


def _sizes(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)


def _middles(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] + boxes[:, :2]) / 2
