"""RoIAlign (He 2017): a fixed grid of bilinear samples from each region of a feature map, averaged in bins.

Conventions, those called aligned=True elsewhere: a box coordinate c in picture pixels lies at c × scale - 0.5
in the map's index space, whose point (i, j) is the centre of cell i, j. Each bin is the mean of
`samples` × `samples` points, evenly spread within it. A point beyond the outermost centres by less than one
cell takes the border's value; one further out is zero.

A bilinear weight is a row weight times a column weight, and so is the mean over a bin's grid: the whole is
two small matrix products per region, which are exact and which autograd differentiates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align(
    maps: Tensor, boxes: Tensor, *, scale: tuple[float, float], bins: int, samples: int = 2
) -> Tensor:
    """Regions of one picture's feature map.

    maps     float32 [C, H, W]
    boxes    float32 [N, 4], (y0, x0, y1, x1) in picture pixels
    scale    map cells per picture pixel, (row, column)
    returns  float32 [N, C, bins, bins]
    """
    rows = _weights(boxes[:, 0], boxes[:, 2], scale[0], maps.shape[1], bins, samples)
    columns = _weights(boxes[:, 1], boxes[:, 3], scale[1], maps.shape[2], bins, samples)
    along = torch.einsum("nqw,chw->ncqh", columns.to(maps.dtype), maps)
    return torch.einsum("nph,ncqh->ncpq", rows.to(maps.dtype), along)


def _weights(low: Tensor, high: Tensor, scale: float, cells: int, bins: int, samples: int) -> Tensor:
    """How much of each cell goes into each bin, along one axis: float [N, bins, cells], rows sum to ≤ 1."""
    place = (torch.arange(bins * samples, device=low.device) + 0.5) / (bins * samples)
    points = (low[:, None] + place * (high - low)[:, None]) * scale - 0.5  # [N, bins * samples]
    inside = (points >= -1) & (points <= cells)
    points = points.clamp(0, cells - 1)
    distance = (points[..., None] - torch.arange(cells, device=low.device)).abs()
    weights = (1 - distance).clamp(min=0) * inside[..., None]
    return weights.view(len(low), bins, samples, cells).mean(dim=2)
