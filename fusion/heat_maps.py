"""How a heat map is made, and how it is checked: Grad-CAM, integrated gradients, and three questions to each.

A map shows where in one picture the fused estimate of one patient is moved, all other inputs held as they
are, in the direction in which the picture moves it. It is asked:

1. Does it show the model, or only the picture? Weights are drawn at random from the last layers to the first
   (cascading randomisation, Adebayo 2018); with all of them random the map must look different.
2. Does what it marks carry the estimate? Places are taken away, and given back, in its order (deletion and
   insertion, Petsiuk 2018) and in random orders; it must beat every random order.
3. Integrated gradients only: do the attributions sum to the difference of the estimates (Sundararajan 2017)?

"Taken away" and the baseline of integrated gradients are the same: the picture blurred beyond recognition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.backbones import ImageBackbone
from fusion.batch import Batch
from fusion.bundle import Bundle
from fusion.config import OutcomeSpec
from fusion.inputs import Modality
from fusion.survival import curves_of

GRID = 14  # places a side that are taken away or given back
COARSE = 6  # places a side that are left of a blurred picture
POINTS = 7  # of a deletion or insertion curve between its two ends
ORDERS = 4  # random orders a map has to beat: a meaningless map does so by chance in 1 of 5
PATH = 16  # points of the integral from the blurred picture to the picture, at first
FINEST = PATH * 9  # three times as many, and again, where the parts do not sum to the difference
NEAR = 0.1  # share of the difference that may be left unexplained without a finer path
ROUGH = 6  # the same where the map is only compared with another
AT_ONCE = 16  # pictures through the backbone together
CASCADE = (1 / 3, 2 / 3, 1.0)  # shares of the layers, from the last, whose weights are drawn at random


class HeatMapMethod(StrEnum):
    """How a heat map is made."""

    GRAD_CAM = "Grad-CAM"  # Selvaraju 2017: gradients of the feature maps, averaged over space
    INTEGRATED_GRADIENTS = (
        "Integrated gradients"  # Sundararajan 2017: from the blurred picture to the picture
    )


@dataclass(frozen=True, eq=False, slots=True)
class Look:
    """One picture's place in one patient's estimate of one outcome.

    batch     that patient alone; token `row` of `modality` is this picture
    outcome   index R
    prepared  float32 [1, 3, size, size], as the backbone takes it
    """

    bundle: Bundle
    batch: Batch
    modality: Modality
    row: int
    outcome: int
    backbone: ImageBackbone
    prepared: Tensor

    def said(self, embeddings: Tensor) -> Tensor:
        """Fused logits [N], were these the picture's embeddings [N, D]; keeps the graph."""
        batch = self.batch.rows(torch.zeros(len(embeddings), dtype=torch.long))
        tokens = batch.tokens[self.modality]
        values = tokens.values.clone()
        values[:, self.row, : embeddings.shape[1]] = embeddings  # flags of its view stand after them
        changed = {**batch.tokens, self.modality: replace(tokens, values=values)}
        evidence = self.bundle.model.encode(replace(batch, tokens=changed))
        fused = self.bundle.model.fuse(evidence.logits, evidence.present)
        return logit_of(fused, self.outcome, self.bundle.config.outcomes)

    def logits(self, prepared: Tensor) -> Tensor:
        """Fused logits [N] of other pictures [N, 3, size, size] in its place."""
        parts = []
        with torch.no_grad():
            for some in prepared.split(AT_ONCE):
                parts.append(self.said(self.backbone.pool(self.backbone.maps(some))))
        return torch.cat(parts)

    def through(self, backbone: ImageBackbone) -> Look:
        """The same with another backbone."""
        return replace(self, backbone=backbone)

    def direction(self) -> float:
        """+1 where the picture raises the estimate above that of its blurred self, else -1."""
        with_it, without = self.logits(torch.cat([self.prepared, blurred(self.prepared)])).tolist()
        return 1.0 if with_it >= without else -1.0


def logit_of(fused: Tensor, outcome: int, specs: Sequence[OutcomeSpec]) -> Tensor:
    """Fused logits [N, R] → those of one outcome [N]: of a horizon of an event, of the risk by then rather
    than of the hazard since the horizon before it."""
    for places in curves_of(specs):
        if outcome in places:
            until = list(places[: places.index(outcome) + 1])
            lost = F.softplus(fused[:, until]).sum(dim=1)  # minus the log of what survives all intervals
            return torch.log(torch.expm1(lost))
    return fused[:, outcome]


def blurred(prepared: Tensor) -> Tensor:
    """The picture with nothing left to recognise: 6 x 6 means, smoothly stretched."""
    size = prepared.shape[-2:]
    return F.interpolate(
        F.adaptive_avg_pool2d(prepared, COARSE), size=size, mode="bicubic", align_corners=False
    )


def grad_cam(look: Look, direction: float) -> Tensor:
    """Map float32 [h, w] >= 0 at the size of the feature maps (Selvaraju 2017)."""
    with torch.no_grad():
        found = look.backbone.maps(look.prepared)
    maps = found.clone().requires_grad_(True)
    with torch.enable_grad():
        logit = look.said(look.backbone.pool(maps))[0]
        if not logit.requires_grad:
            return torch.zeros(found.shape[2:])
        (gradient,) = torch.autograd.grad(logit, maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return F.relu(direction * (weights * found).sum(dim=1)[0])


def attributions(look: Look, points: int = PATH) -> Tensor:
    """Integrated gradients of the fused logit, float32 [3, size, size] (Sundararajan 2017).

    They sum to logit(picture) - logit(blurred picture), up to the error of a midpoint rule of `points`.
    """
    return _gradients(look, _midpoints(points)) * _way(look) / points


def _midpoints(points: int) -> Tensor:
    return (torch.arange(points) + 0.5) / points


def _way(look: Look) -> Tensor:
    """From the blurred picture to the picture, float32 [3, size, size]."""
    return (look.prepared - blurred(look.prepared))[0]


def _gradients(look: Look, steps: Tensor) -> Tensor:
    """Sum of the fused logit's gradients at these shares of the way, float32 [3, size, size]."""
    start, way = blurred(look.prepared), _way(look)
    total = torch.zeros_like(way)
    for some in steps.split(AT_ONCE // 2):
        at = (start + some[:, None, None, None] * way).requires_grad_(True)
        with torch.enable_grad():
            logits = look.said(look.backbone.pool(look.backbone.maps(at)))
            if not logits.requires_grad:
                return total
            (gradient,) = torch.autograd.grad(logits.sum(), at)
        total += gradient.sum(dim=0)
    return total


def integrated_gradients(
    look: Look, direction: float, points: int = PATH, finest: int = FINEST
) -> tuple[Tensor, float]:
    """Map float32 [h, w] >= 0 on the grid of places, and the share of the difference left unexplained.

    points  of the path at first; three times as many while more than NEAR is left, up to `finest`. A third of
            the points of each finer path are those of the one before.
    """
    with_it, without = look.logits(torch.cat([look.prepared, blurred(look.prepared)])).tolist()
    difference, way = with_it - without, _way(look)
    total = _gradients(look, _midpoints(points))
    while True:
        found = total * way / points
        gap = abs(float(found.sum()) - difference) / max(abs(difference), 1e-6)
        if gap <= NEAR or points * 3 > finest:
            break
        points *= 3
        total += _gradients(look, _midpoints(points).view(-1, 3)[:, [0, 2]].flatten())
    places = F.adaptive_avg_pool2d(direction * found.sum(dim=0)[None, None], GRID)[0, 0]
    return F.relu(places), gap


def draw(
    look: Look, method: HeatMapMethod, direction: float, points: int = PATH, finest: int = FINEST
) -> tuple[Tensor, float | None]:
    """The map [h, w] of that method, and for integrated gradients the gap of completeness."""
    if method == HeatMapMethod.GRAD_CAM:
        return grad_cam(look, direction), None
    return integrated_gradients(look, direction, points, finest)


def cascade(look: Look, method: HeatMapMethod, direction: float, heat: Tensor) -> list[float]:
    """Rank correlation of the map with those of backbones with ever more random weights (Adebayo 2018)."""
    seed, found = look.bundle.config.seed, []
    for share in CASCADE:
        other = look.through(half_random(look.backbone, share, seed))
        found.append(rank_correlation(heat, draw(other, method, direction, ROUGH, ROUGH)[0]))
    return found


def half_random(backbone: ImageBackbone, share: float, seed: int) -> ImageBackbone:
    """The backbone with the last `share` of its parameters drawn at random, the others as they were."""
    mixed = backbone.randomised(seed)
    trained, drawn = backbone.network.state_dict(), mixed.network.state_dict()
    names = list(drawn)
    kept = names[: round(len(names) * (1 - share))]
    mixed.network.load_state_dict({**drawn, **{name: trained[name] for name in kept}})
    return mixed


@dataclass(frozen=True, slots=True)
class Curves:
    """Areas under the curves of the estimate in [0, 1], in the direction in which the picture moves it.

    deletion   marked places taken away first: the lower, the better
    insertion  marked places given back first: the higher, the better
    random     (deletion, insertion) of each random order
    """

    deletion: float
    insertion: float
    random: tuple[tuple[float, float], ...]

    @property
    def beats_random(self) -> bool:
        """Insertion minus deletion is larger than with every random order."""
        own = self.insertion - self.deletion
        return all(own > given - taken + 1e-9 for taken, given in self.random)


def curves(look: Look, heat: Tensor, direction: float) -> Curves:
    """Deletion and insertion of one map beside random orders (Petsiuk 2018), on a grid of 14 x 14 places."""
    places = F.interpolate(heat[None, None], size=(GRID, GRID), mode="bilinear", align_corners=False)
    own = places.flatten().argsort(descending=True, stable=True)
    generator = torch.Generator().manual_seed(look.bundle.config.seed)
    orders = [own, *(torch.randperm(GRID * GRID, generator=generator) for _ in range(ORDERS))]
    ends = look.logits(torch.cat([look.prepared, blurred(look.prepared)]))
    found = [_areas(look, order, ends, direction) for order in orders]
    return Curves(*found[0], tuple(found[1:]))


def _areas(look: Look, order: Tensor, ends: Tensor, direction: float) -> tuple[float, float]:
    """(deletion, insertion) of one order of places."""
    size = look.prepared.shape[-2:]
    marked = torch.zeros(POINTS, GRID * GRID)
    for step in range(POINTS):
        marked[step, order[: round((step + 1) / (POINTS + 1) * GRID * GRID)]] = 1
    mask = F.interpolate(marked.view(POINTS, 1, GRID, GRID), size=size, mode="nearest")
    blank = blurred(look.prepared)
    without = look.prepared * (1 - mask) + blank * mask
    only = blank * (1 - mask) + look.prepared * mask
    logits = look.logits(torch.cat([without, only]))
    whole, none = ends[:1], ends[1:]
    return (
        _area(torch.cat([whole, logits[:POINTS], none]), direction),
        _area(torch.cat([none, logits[POINTS:], whole]), direction),
    )


def _area(logits: Tensor, direction: float) -> float:
    """Area under the estimate, in [0, 1], by the trapezium rule over equal steps."""
    said = torch.sigmoid(direction * logits.double())
    return float(torch.trapezoid(said) / (len(said) - 1))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two maps; 0 when one of them is flat."""
    ranks = [np.argsort(np.argsort(x.flatten().numpy(), kind="stable")).astype(float) for x in (a, b)]
    if float(a.std(correction=0)) < 1e-12 or float(b.std(correction=0)) < 1e-12 or len(ranks[0]) < 2:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def mean_of(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean (deletion, insertion)."""
    taken, given = zip(*pairs, strict=True)
    return sum(taken) / len(taken), sum(given) / len(given)
