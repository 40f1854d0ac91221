"""Faster R-CNN (Ren 2015) on a small feature pyramid (Lin 2017), in PyTorch alone.

A region proposal network says where something may be; the second stage reads each region through RoIAlign,
says what it is and draws its box. Both are taught on a sample of boxes a picture, as in the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.imaging.detect import boxes as box
from fusion.imaging.detect import regions
from fusion.imaging.detect.roi_align import roi_align

BINS = 7
PROPOSALS = 100  # regions a picture that the second stage reads
BEFORE = 300  # of each level, before suppression
NEAR = 0.7  # overlap at which one proposal suppresses another
SAME = 0.5  # overlap at which one finding suppresses another of its label
MOST = 50  # findings a picture
LEAST = 0.01  # score below which nothing is found
STEP = torch.tensor([10.0, 10.0, 5.0, 5.0])  # scale of the second stage's coded boxes


@dataclass(frozen=True, eq=False, slots=True)
class Truth:
    """What a picture holds: boxes float32 [N, 4] in its pixels, labels int64 [N] from 0."""

    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """What was found: boxes float32 [N, 4], labels int64 [N], scores float32 [N] in [0, 1], falling."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class FasterRcnn(nn.Module):
    """Maps of a Pyramid → findings. Both stages; the backbone is not part of it."""

    def __init__(self, channels: Sequence[int], labels: int, width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        each = len(regions.RATIOS) * len(regions.SCALES)
        self.look = nn.Conv2d(width, width, 3, padding=1)
        self.is_something = nn.Conv2d(width, each, 1)
        self.first_step = nn.Conv2d(width, each * 4, 1)
        self.read = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * BINS**2, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, 2 * width),
            nn.ReLU(),
        )
        self.label = nn.Linear(2 * width, labels + 1)  # the last: background
        self.second_step = nn.Linear(2 * width, labels * 4)
        for layer in (self.is_something, self.first_step, self.label, self.second_step):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.labels = labels

    def losses(
        self, maps: Sequence[Tensor], truths: Sequence[Truth], size: int, draw: torch.Generator
    ) -> Tensor:
        """Sum of the four losses, mean over pictures.

        maps  float32 [B, C, h, w] a level;  size  side of the pictures in pixels
        draw  the generator that samples boxes
        """
        levels = self._pyramid(maps)
        scores, steps, anchors = self._looked(levels, size)
        parts = []
        for picture, truth in enumerate(truths):
            parts.append(_proposal_loss(scores[picture], steps[picture], anchors, truth, draw))
            proposed = self._proposed(scores[picture], steps[picture], anchors, levels, size)
            parts.append(self._reading_loss(levels, picture, proposed, truth, size, draw))
        return torch.stack(parts).sum() / max(1, len(truths))

    def find(self, maps: Sequence[Tensor], size: int) -> list[Found]:
        """One Found per picture."""
        levels = self._pyramid(maps)
        scores, steps, anchors = self._looked(levels, size)
        found = []
        for picture in range(len(scores)):
            proposed = self._proposed(scores[picture], steps[picture], anchors, levels, size)
            said, moved = self._read(levels, picture, proposed, size)
            found.append(self._settled(proposed, said.softmax(dim=1)[:, :-1], moved, size))
        return found

    def _settled(self, proposed: Tensor, chances: Tensor, moved: Tensor, size: int) -> Found:
        """Every region as every label, suppressed label by label."""
        row, label = torch.nonzero(chances >= LEAST, as_tuple=True)
        steps = moved.view(len(proposed), self.labels, 4)[row, label]
        boxes = box.clipped(box.decode(steps / STEP, proposed[row]), size)
        real = ((boxes[:, 2:] - boxes[:, :2]) > 1e-3).all(dim=1)
        boxes, label, scores = boxes[real], label[real], chances[row, label][real]
        kept = box.suppress(boxes, scores, SAME, label)[:MOST]
        return Found(boxes[kept], label[kept], scores[kept])

    def _pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """From coarse to fine, each level added to the one below; [B, width, h, w] each."""
        levels = [layer(one) for layer, one in zip(self.lateral, maps, strict=True)]
        for place in range(len(levels) - 1, 0, -1):
            above = F.interpolate(levels[place], size=levels[place - 1].shape[2:], mode="nearest")
            levels[place - 1] = levels[place - 1] + above
        return [F.relu(layer(one)) for layer, one in zip(self.smooth, levels, strict=True)]

    def _looked(self, levels: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness logits [B, N], steps [B, N, 4] and anchors [N, 4], levels one after the other."""
        scores, steps, anchors = [], [], []
        for level in levels:
            hidden = F.relu(self.look(level))
            scores.append(self.is_something(hidden).permute(0, 2, 3, 1).flatten(1))
            steps.append(self.first_step(hidden).permute(0, 2, 3, 1).reshape(len(level), -1, 4))
            anchors.append(regions.anchors((level.shape[2], level.shape[3]), size))
        return torch.cat(scores, 1), torch.cat(steps, 1), torch.cat(anchors)

    @torch.no_grad()
    def _proposed(
        self, scores: Tensor, steps: Tensor, anchors: Tensor, levels: Sequence[Tensor], size: int
    ) -> Tensor:
        """The regions worth reading, float32 [P, 4]; suppressed level by level."""
        each = len(regions.RATIOS) * len(regions.SCALES)
        counts = [level.shape[2] * level.shape[3] * each for level in levels]
        level = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        best = torch.cat(
            [
                start + one.topk(min(BEFORE, len(one))).indices
                for start, one in zip(_starts(counts), scores.split(counts), strict=True)
            ]
        )
        found = box.clipped(box.decode(steps[best], anchors[best]), size)
        real = ((found[:, 2:] - found[:, :2]) >= 1.0).all(dim=1)
        best, found = best[real], found[real]
        kept = box.suppress(found, scores[best], NEAR, level[best])
        return found[kept[:PROPOSALS]]

    def _read(
        self, levels: Sequence[Tensor], picture: int, proposed: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Label logits [P, labels + 1] and coded boxes [P, labels × 4]."""
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        wanted = regions.level_of(proposed, shapes, size)
        seen = proposed.new_zeros(len(proposed), levels[0].shape[1], BINS, BINS)
        for place, level in enumerate(levels):
            here = torch.nonzero(wanted == place).squeeze(1)
            if len(here):
                scale = (shapes[place][0] / size, shapes[place][1] / size)
                seen = seen.index_put(
                    (here,), roi_align(level[picture], proposed[here], scale=scale, bins=BINS)
                )
        hidden = self.read(seen)
        return self.label(hidden), self.second_step(hidden)

    def _reading_loss(
        self,
        levels: Sequence[Tensor],
        picture: int,
        proposed: Tensor,
        truth: Truth,
        size: int,
        draw: torch.Generator,
    ) -> Tensor:
        proposed = torch.cat([proposed, truth.boxes])
        matched = regions.match(proposed, truth.boxes, low=0.5, high=0.5, each_truth_has_one=False)
        some, none = regions.sample(matched, 64, 0.25, draw)
        rows = torch.cat([some, none])
        said, moved = self._read(levels, picture, proposed[rows], size)
        labels = torch.full((len(rows),), self.labels)
        labels[: len(some)] = truth.labels[matched[some]]
        loss = F.cross_entropy(said, labels)
        if len(some):
            wanted = box.encode(truth.boxes[matched[some]], proposed[some]) * STEP
            steps = moved[: len(some)].view(len(some), self.labels, 4)[
                torch.arange(len(some)), labels[: len(some)]
            ]
            loss = loss + F.smooth_l1_loss(steps, wanted, reduction="sum") / len(rows)
        return loss


def _proposal_loss(
    scores: Tensor, steps: Tensor, anchors: Tensor, truth: Truth, draw: torch.Generator
) -> Tensor:
    matched = regions.match(anchors, truth.boxes, low=0.3, high=0.7, each_truth_has_one=True)
    some, none = regions.sample(matched, 64, 0.5, draw)
    rows = torch.cat([some, none])
    loss = F.binary_cross_entropy_with_logits(scores[rows], (matched[rows] >= 0).float())
    if len(some):
        wanted = box.encode(truth.boxes[matched[some]], anchors[some])
        loss = loss + F.smooth_l1_loss(steps[some], wanted, beta=1 / 9, reduction="sum") / len(rows)
    return loss


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:place]) for place in range(len(counts))]
