"""Boosted trees as tensors: fitted by scikit-learn, evaluated by torch (and ONNX), kept as safetensors.

Histogram gradient boosting (Ke 2017) splits on thresholds and sends a missing value to the side that suits
it: what is unknown stays unknown. Worth it with many patients; with few, `fit` leaves the trees silent.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LEAST_ROWS, LEAST_EVENTS = 600, 60  # below which trees learn the noise
MOST_ROWS = 10_000
TREES, LEAVES, DEPTH = 300, 15, 6
LEARNING_RATE = 0.03
NODES = 2 * LEAVES - 1


class Trees(nn.Module):
    """float32 [B, F] with NaN for missing → logits [B, R]; zero until fitted.

    is_fitted  bool [R]
    """

    feature: Tensor
    threshold: Tensor
    missing_left: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    start: Tensor
    is_fitted: Tensor

    def __init__(self, outcomes: int) -> None:
        super().__init__()
        shape = (outcomes, TREES, NODES)
        self.register_buffer("feature", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(shape))
        self.register_buffer("missing_left", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("left", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("right", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("start", torch.zeros(outcomes))
        self.register_buffer("is_fitted", torch.zeros(outcomes, dtype=torch.bool))

    def fit(self, features: Tensor, labels: Tensor, base: Tensor, *, seed: int) -> None:
        """features float32 [N, F] with NaN; labels float32 [N, R], NaN = unknown; base float32 [R]."""
        for r in range(labels.shape[1]):
            known = ~torch.isnan(labels[:, r])
            events = int((labels[known, r] == 1).sum())
            if int(known.sum()) < LEAST_ROWS or min(events, int(known.sum()) - events) < LEAST_EVENTS:
                continue
            self._fit_one(r, features[known].numpy(), labels[known, r].numpy(), float(base[r]), seed)

    def _fit_one(
        self, r: int, x: NDArray[np.float32], y: NDArray[np.float32], base: float, seed: int
    ) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        if len(x) > MOST_ROWS:
            kept = np.random.default_rng(seed).permutation(len(x))[:MOST_ROWS]
            x, y = x[kept], y[kept]
        model = HistGradientBoostingClassifier(
            max_iter=TREES,
            learning_rate=LEARNING_RATE,
            max_leaf_nodes=LEAVES,
            max_depth=DEPTH,
            min_samples_leaf=20,
            l2_regularization=5.0,
            max_features=min(1.0, max(0.1, 8 / x.shape[1])),
            early_stopping=False,
            random_state=seed,
        ).fit(x, y.astype(int))
        for number, (tree,) in enumerate(model._predictors):
            nodes = tree.nodes
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
            self.value[at] = torch.from_numpy(np.where(is_leaf, nodes["value"], 0).astype(np.float32))
        self.start[r] = float(np.ravel(model._baseline_prediction)[0]) - base
        self.is_fitted[r] = True

    def forward(self, features: Tensor) -> Tensor:
        rows = len(features)
        is_nan = torch.isnan(features)
        missing = is_nan.float()
        known = torch.where(is_nan, torch.zeros_like(features), features)
        said = []
        for r in range(len(self.start)):
            at = torch.zeros_like(features[:, :1], dtype=torch.int64).repeat(1, TREES)  # [B, trees]
            for _ in range(DEPTH):
                here = at[..., None]
                feature = _node(self.feature[r], here, rows).long()
                is_missing = torch.gather(missing, 1, feature) > 0
                by_value = torch.gather(known, 1, feature) <= _node(self.threshold[r], here, rows)
                by_absence = _node(self.missing_left[r].float(), here, rows) > 0
                goes_left = (is_missing & by_absence) | (~is_missing & by_value)
                left, right = _node(self.left[r], here, rows), _node(self.right[r], here, rows)
                at = torch.where(goes_left, left, right).long()
            said.append(self.start[r] + _node(self.value[r], at[..., None], rows).sum(1))
        return torch.stack(said, dim=1)


def _node(table: Tensor, at: Tensor, rows: int) -> Tensor:
    """table [trees, nodes], at [B, trees, 1] → [B, trees]."""
    return torch.gather(table.expand(rows, -1, -1), 2, at)[..., 0]
