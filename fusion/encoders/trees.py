"""Boosted trees as tensors: grown by `boosting`, evaluated by torch (and ONNX), kept as safetensors.

Histogram gradient boosting (Ke 2017) splits on thresholds and sends a missing value to the side that suits
it: what is unknown stays unknown. Worth it with many patients; with few, `fit` leaves the trees silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusion.encoders.boosting import DEPTH, LEAVES, TREES, boost

LEAST_ROWS, LEAST_EVENTS = 600, 60  # below which trees learn the noise
MOST_ROWS = 10_000
NODES = 2 * LEAVES - 1  # fit into the bits of a 32-bit number
TOGETHER = 5  # tokens whose ways to be shown are all worked out


class Trees(nn.Module):
    """float32 [B, F] with NaN for missing → logits [B, R]; zero until fitted.

    is_fitted  bool [R]
    share      float32 [R], of what is said beside another voice: half until `fusion.weighing` tells
    may_grow   bool [R]: where every fold has patients enough (see `Encoder.expect`)
    """

    feature: Tensor
    threshold: Tensor
    missing_left: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    start: Tensor
    is_fitted: Tensor
    share: Tensor

    def __init__(self, outcomes: int, bags: int = 1) -> None:
        """bags: how many times TREES trees are grown, each time anew; their mean is said."""
        super().__init__()
        self.bags = bags
        shape = (outcomes, bags * TREES, NODES)
        self.register_buffer("feature", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(shape))
        self.register_buffer("missing_left", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("left", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("right", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("start", torch.zeros(outcomes))
        self.register_buffer("is_fitted", torch.zeros(outcomes, dtype=torch.bool))
        self.register_buffer("share", torch.full((outcomes,), 0.5))
        self.may_grow = torch.ones(outcomes, dtype=torch.bool)
        self._splits: _Splits | None = None  # made when first asked for, kept until other trees are here

    def expect(self, known: Tensor) -> None:
        """int [R, 2]: the fewest patients they will be fitted on, with the outcome known and of the rarer
        kind."""
        self.may_grow = (known[:, 0] >= LEAST_ROWS) & (known[:, 1] >= LEAST_EVENTS)

    def fit(self, features: Tensor, labels: Tensor, base: Tensor, *, seed: int) -> None:
        """features float32 [N, F] with NaN; labels float32 [N, R], NaN = unknown; base float32 [R]."""
        for r in range(labels.shape[1]):
            known = ~torch.isnan(labels[:, r])
            events = int((labels[known, r] == 1).sum())
            is_few = int(known.sum()) < LEAST_ROWS or min(events, int(known.sum()) - events) < LEAST_EVENTS
            if is_few or not bool(self.may_grow[r]):
                continue
            self._fit_one(r, features[known].numpy(), labels[known, r].numpy(), float(base[r]), seed)

    def _fit_one(
        self, r: int, x: NDArray[np.float32], y: NDArray[np.float32], base: float, seed: int
    ) -> None:
        if len(x) > MOST_ROWS:
            kept = np.random.default_rng(seed).permutation(len(x))[:MOST_ROWS]
            x, y = x[kept], y[kept]
        bags = [boost(x, y, seed=seed + bag) for bag in range(self.bags)]
        for number, nodes in enumerate(nodes for bag in bags for nodes in bag.trees):
            count = len(nodes)
            is_leaf = nodes["is_leaf"].astype(bool)
            itself = np.arange(count)
            left = np.where(is_leaf, itself, nodes["left"].astype(int))
            right = np.where(is_leaf, itself, nodes["right"].astype(int))
            at = (r, number, slice(0, count))
            self.feature[at] = torch.from_numpy(np.where(is_leaf, 0, nodes["feature_idx"]).astype(np.int32))
            limit = np.where(is_leaf, 0, nodes["num_threshold"])
            self.threshold[at] = torch.from_numpy(np.clip(limit, -1e30, 1e30).astype(np.float32))
            self.missing_left[at] = torch.from_numpy(nodes["missing_go_to_left"].astype(bool))
            self.left[at] = torch.from_numpy(left.astype(np.int32))
            self.right[at] = torch.from_numpy(right.astype(np.int32))
            self.value[at] = torch.from_numpy(
                np.where(is_leaf, nodes["value"] / self.bags, 0).astype(np.float32)
            )
        self._splits = None
        self.start[r] = bags[0].start - base
        self.is_fitted[r] = True

    def forward(self, features: Tensor) -> Tensor:
        """All trees of all outcomes walk down together, as flat 32-bit indices: far faster than gathering
        along an axis. One patient's leaves are told by bits, once `shown` has made them ready."""
        rows, width = features.shape
        outcomes = len(self.start)
        if not torch.compiler.is_exporting() and not bool(self.is_fitted.any()):
            return features.new_zeros(rows, outcomes)
        if rows == 1 and self._splits is not None and not torch.compiler.is_exporting():
            shown = self._splits.out_when_shown(features.view(self._splits.tokens, -1).numpy())
            return self._reached(np.bitwise_or.reduce(shown, axis=0)[None])
        unknown = torch.isnan(features)
        # Every feature twice, so that one comparison sends a missing value to the side that suits the node.
        right, left = (torch.where(unknown, side, features) for side in (torch.inf, -torch.inf))
        known = torch.cat([right, left], dim=1).flatten()
        column = (self.feature + self.missing_left * width).flatten().int()
        trees = self.feature.shape[0] * self.feature.shape[1]
        first = torch.arange(trees, dtype=torch.int32) * NODES  # each tree's root
        children = torch.stack([self.right, self.left], dim=-1).flatten(0, 1) + first[:, None, None]
        child, threshold = children.flatten().int(), self.threshold.flatten()
        row = torch.arange(rows, dtype=torch.int32)[:, None] * (2 * width)
        row = row.expand(rows, trees).flatten()
        at = first.expand(rows, trees).flatten()
        for _ in range(DEPTH):
            value = known.index_select(0, row + column.index_select(0, at))
            goes_left = value <= threshold.index_select(0, at)
            at = child.index_select(0, 2 * at + goes_left.int())
        said = self.value.flatten().index_select(0, at).reshape(rows, outcomes, -1)
        return self.start + said.sum(dim=2)

    def shown(self, features: NDArray[np.float32], known: NDArray[np.bool_]) -> Tensor:
        """One row asked again and again, some of it hidden: what `forward` says of it, float32 [U, R].

        features  float32 [L, K], NaN for missing: K numbers to a token; always as many to these trees
        known     bool [U, L], which tokens are shown each time

        Whether a token is shown decides alone which way its splits send the row. So the leaves that each
        token rules out, when it is shown and when it is hidden, are worked out once, a bit for each leaf of
        each tree; the leaf that is reached is the one that none rules out (after QuickScorer, Lucchese 2015).
        """
        tokens, numbers = features.shape
        if self._splits is None:
            self._splits = _Splits.of(self, tokens, numbers)
        splits = self._splits
        out = np.zeros((len(known), splits.leaves.size), np.uint32)
        pairs = np.stack([splits.out_when_hidden, splits.out_when_shown(features)], axis=1)
        for start in range(0, tokens, TOGETHER):  # every way to show a few tokens; each time takes one
            some = slice(start, start + TOGETHER)
            ways = np.zeros((1, splits.leaves.size), np.uint32)
            for token in pairs[some]:
                ways = (token[:, None] | ways).reshape(-1, splits.leaves.size)
            out |= ways[known[:, some] @ (1 << np.arange(len(pairs[some])))]
        return self._reached(out)

    def _reached(self, out: NDArray[np.uint32]) -> Tensor:
        """Leaves that are ruled out, uint32 [U, T], but one in each tree → logits [U, R]."""
        assert self._splits is not None
        leaf = np.bitwise_count((self._splits.leaves & ~out) - 1)  # the place of the only bit
        said = self.value.flatten().numpy()[leaf + np.arange(0, self.value.numel(), NODES)]
        return self.start + torch.from_numpy(said.reshape(len(out), len(self.start), -1).sum(axis=2))

    def _load_from_state_dict(self, *given: Any, **named: Any) -> None:
        super()._load_from_state_dict(*given, **named)
        self._splits = None


@dataclass(frozen=True, eq=False, slots=True)
class _Splits:
    """All splits of all trees, T in all, sorted by token and tree. Sets of leaves are bits: node n is 1 << n.

    feature, limit, missing_left  of each split
    out_left, out_right  uint32, the leaves it rules out when the row goes left, or right
    starts, place        where each token and tree begins among them, and where it stands in [L, T]
    out_when_hidden      uint32 [L, T], leaves that a token's splits rule out when it is hidden
    leaves               uint32 [T], of each tree
    """

    feature: NDArray[np.int64]
    limit: NDArray[np.float32]
    missing_left: NDArray[np.bool_]
    out_left: NDArray[np.uint32]
    out_right: NDArray[np.uint32]
    starts: NDArray[np.int64]
    place: NDArray[np.int64]
    out_when_hidden: NDArray[np.uint32]
    leaves: NDArray[np.uint32]

    @property
    def tokens(self) -> int:
        """L."""
        return len(self.out_when_hidden)

    @classmethod
    def of(cls, trees: Trees, tokens: int, numbers: int) -> _Splits:
        """Of trees that were fitted on so many tokens of so many numbers."""
        left, right = (side.flatten(0, 1).numpy().astype(int) for side in (trees.left, trees.right))
        below = np.where(left == np.arange(NODES), 1 << np.arange(NODES), 0).astype(np.uint32)
        for _ in range(DEPTH):  # the leaves at or below each node
            below |= np.take_along_axis(below, left, 1) | np.take_along_axis(below, right, 1)
        tree, node = np.nonzero(left != right)
        feature = trees.feature.flatten(0, 1).numpy()[tree, node].astype(int)
        stands = feature // numbers * len(left) + tree
        order = np.argsort(stands, kind="stable")
        tree, node, feature = tree[order], node[order], feature[order]
        place, starts = np.unique(stands[order], return_index=True)
        out_left, out_right = below[tree, right[tree, node]], below[tree, left[tree, node]]
        missing_left = trees.missing_left.flatten(0, 1).numpy()[tree, node]
        hidden = np.zeros((tokens, len(left)), np.uint32)
        if len(place):
            hidden.flat[place] = np.bitwise_or.reduceat(np.where(missing_left, out_left, out_right), starts)
        limit = trees.threshold.flatten(0, 1).numpy()[tree, node]
        return cls(feature, limit, missing_left, out_left, out_right, starts, place, hidden, below[:, 0])

    def out_when_shown(self, features: NDArray[np.float32]) -> NDArray[np.uint32]:
        """The leaves that each token's splits rule out when it is shown, uint32 [L, T]."""
        held = features.ravel()[self.feature]
        goes_left = np.where(np.isnan(held), self.missing_left, held <= self.limit)
        out = np.zeros_like(self.out_when_hidden)
        if len(self.place):
            out.flat[self.place] = np.bitwise_or.reduceat(
                np.where(goes_left, self.out_left, self.out_right), self.starts
            )
        return out
