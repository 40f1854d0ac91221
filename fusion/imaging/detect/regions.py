"""Which boxes a detector looks at and what each is taught: anchors, matching, sampling (Ren 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion.imaging.detect.boxes import overlaps

RATIOS = (0.5, 1.0, 2.0)  # height over width
SCALES = (1.0, 1.6)  # times four cells
BACKGROUND, IGNORED = -1, -2


def anchors(cells: tuple[int, int], size: int) -> Tensor:
    """Anchors of one feature level, centred on its cells: float32 [h × w × A, 4], in picture pixels.

    cells  (h, w) of the level's map;  size  side of the square picture in pixels
    Row-major over cells, then over A = 3 ratios × 2 scales; an anchor's area is that of a square of
    (4 × scale) cells a side.
    """
    pitch = torch.tensor([size / cells[0], size / cells[1]])
    sides = torch.tensor([[s * r**0.5, s * r**-0.5] for s in SCALES for r in RATIOS]) * 4 * pitch
    grid = torch.cartesian_prod(torch.arange(cells[0]) + 0.5, torch.arange(cells[1]) + 0.5) * pitch
    return torch.cat([grid[:, None] - sides / 2, grid[:, None] + sides / 2], dim=2).reshape(-1, 4)


def match(candidates: Tensor, truth: Tensor, *, low: float, high: float, each_truth_has_one: bool) -> Tensor:
    """The truth each candidate stands for: int64 [N], its row, or BACKGROUND, or IGNORED in between.

    A candidate stands for the truth it overlaps most when by at least `high`, is background below `low`.
    each_truth_has_one  the candidates that overlap a truth most stand for it, however little that is
    """
    if not len(truth):
        return torch.full((len(candidates),), BACKGROUND)
    shared = overlaps(candidates, truth)
    best, row = shared.max(dim=1)
    found = torch.where(best >= high, row, torch.where(best < low, BACKGROUND, IGNORED))
    if each_truth_has_one and len(candidates):
        most = shared.max(dim=0).values
        who, which = torch.nonzero((shared >= most - 1e-7) & (most > 0), as_tuple=True)
        found[who] = which
    return found


def sample(matched: Tensor, count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to learn from: those with a truth (at most `share` of `count`) and background for the rest."""
    with_truth = torch.nonzero(matched >= 0).squeeze(1)
    without = torch.nonzero(matched == BACKGROUND).squeeze(1)
    with_truth = _some(with_truth, int(count * share), generator)
    return with_truth, _some(without, count - len(with_truth), generator)


def level_of(boxes: Tensor, levels: Sequence[tuple[int, int]], size: int) -> Tensor:
    """Which level a region is read from (Lin 2017): where its side is nearest to the eight cells that
    RoIAlign reads as seven bins. int64 [N]; levels (h, w) from fine to coarse."""
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6).prod(dim=1).sqrt()
    pitch = torch.tensor([size / cells[0] for cells in levels])
    return (torch.log(side[:, None] / (8 * pitch[None]))).abs().argmin(dim=1)


def _some(rows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[: max(0, most)]]
