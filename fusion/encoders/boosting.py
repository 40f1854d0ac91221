"""Stochastic gradient boosting (Friedman 2002): each tree sees half of the patients and some of the columns.

Trees that saw different parts err differently, so that their sum varies less from one draw of patients to the
next; and a tree of half the rows and a tenth of the columns is grown in a fraction of the time. The trees are
those of scikit-learn's histogram gradient boosting (Newton steps, penalised gains, missing values to the side
that suits them), whose estimator draws neither rows nor, for a whole tree, columns. So its grower is used
directly, and the tests check it against the estimator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TREES, LEAVES, DEPTH = 300, 15, 6
LEARNING_RATE = 0.03
ROWS = 0.5  # share of the patients that one tree sees
COLUMNS, LEAST_COLUMNS = 0.1, 8  # share of the columns that one tree sees, and how many at least
LEAST_IN_LEAF, RIDGE = 20, 5.0  # patients; of squared leaf values, in log-likelihood
BINS = 64  # of a column's values, the last for missing


@dataclass(frozen=True, eq=False, slots=True)
class Boosted:
    """start, logit of the event rate; of each tree its nodes, a structured array with scikit-learn's names:
    feature_idx (place in the row), num_threshold, missing_go_to_left, left, right, is_leaf, value."""

    start: float
    trees: tuple[NDArray[np.void], ...]


def boost(x: NDArray[np.float32], y: NDArray[np.float32], *, seed: int) -> Boosted:
    """x float32 [N, F], NaN = missing; y float32 [N], 0 or 1, both there. One seed always gives the same."""
    from sklearn.ensemble._hist_gradient_boosting.binning import _BinMapper
    from sklearn.ensemble._hist_gradient_boosting.grower import TreeGrower

    rng = np.random.default_rng(seed)
    missing = np.isnan(x).mean(axis=0)
    varies = (np.fmax.reduce(x) > np.fmin.reduce(x)) | ((missing > 0) & (missing < 1))
    varying = np.flatnonzero(varies)  # what nobody has, or everybody alike, tells nothing
    x, missing = x[:, varying], missing[varying]
    rate = float(y.mean())
    start = float(np.log(rate / (1 - rate)))
    if not len(varying):
        return Boosted(start, ())
    bins = _BinMapper(n_bins=BINS, random_state=seed, n_threads=1)
    held = np.asfortranarray(bins.fit_transform(x.astype(np.float64)))
    columns = min(len(varying), max(LEAST_COLUMNS, int(COLUMNS * len(varying))))
    logits, trees = np.full(len(x), start), []
    for _ in range(TREES):
        rows = np.sort(rng.permutation(len(x))[: int(ROWS * len(x))])
        some = np.sort(rng.permutation(len(varying))[:columns])
        risk = 1 / (1 + np.exp(-logits))
        grower = TreeGrower(
            np.asfortranarray(held[np.ix_(rows, some)]),
            (risk - y)[rows].astype(np.float32),
            (risk * (1 - risk))[rows].astype(np.float32),
            n_bins=BINS,
            n_bins_non_missing=bins.n_bins_non_missing_[some],
            has_missing_values=missing[some] > 0,
            max_leaf_nodes=LEAVES,
            max_depth=DEPTH,
            min_samples_leaf=LEAST_IN_LEAF,
            l2_regularization=RIDGE,
            rng=rng,
            shrinkage=LEARNING_RATE,
            n_threads=1,
        )
        grower.grow()
        tree = grower.make_predictor([bins.bin_thresholds_[column] for column in some])
        logits += tree.predict_binned(np.asfortranarray(held[:, some]), BINS - 1, 1)
        tree.nodes["feature_idx"] = varying[some[tree.nodes["feature_idx"]]]
        trees.append(tree.nodes)
    return Boosted(start, tuple(trees))
