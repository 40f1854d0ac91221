"""The one-standard-error rule: the simplest that wins (Breiman 1984; Hastie et al. 2009, 7.10).

What is simple stays, unless patients left out are told better by something else, and by more than the draw of
patients would explain. With few patients that leaves the simple; with many, nearly always the better.
No torch here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MARGIN = (
    1.0  # standard errors. 0: whatever is better by a hair; infinite: the simple, always; -infinite: never
)


def standard_errors(simple: Array, other: Array, groups: NDArray[np.int64] | None = None) -> float:
    """By how many standard errors of the paired difference `other` loses less than `simple`.

    simple, other  loss float64 [N] of rows that neither was fitted on
    groups         int [N], of one patient (or clip group) the same number; None: every row is one by itself
    """
    gaps = simple - other
    if groups is not None and len(gaps):
        _, member = np.unique(groups, return_inverse=True)
        # The sums of groups: rows of one patient are alike, and so worth less than as many patients.
        gaps = np.bincount(member, gaps) * (member.max() + 1) / len(gaps)
    if len(gaps) < 2:
        return 0.0
    return float(gaps.mean() / max(gaps.std() / len(gaps) ** 0.5, 1e-12))
