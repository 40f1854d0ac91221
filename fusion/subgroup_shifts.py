"""How many more, or fewer, events the patients of a subgroup have than their risks say, and how sure that is.

On the scale of logits, so that a shift moves 0.02 little and 0.4 much and never leaves [0, 1]: a logistic
regression of the label on the subgroups, alone and with each present modality, the risk's logit its offset
(calibration-in-the-large and its updating, Steyerberg 2004), ridge towards no shift at all. The ridge is a
Gaussian prior, so the inverse Hessian is the posterior covariance (Laplace), from which the mean shift of a
group of patients has its variance. A bundle keeps one variance a subgroup: the whole covariance would be
thousands of numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Attributes = Sequence[Mapping[str, str]]  # of each patient: {"sex": "female", …}
LEAST = 20  # patients of a subgroup, below which it has no shift
RIDGE = 4.0  # information that a subgroup has no shift: as much as 16 patients of risk 0.5 tell
STEPS, LONGEST = 50, 1.0  # of Newton's; no coefficient moves further in one


def belonging(pattern: str, attributes: Mapping[str, str]) -> list[str]:
    """What a patient's shift is the sum of: "age=older", and "age=older+tabular" for what is present."""
    each = [f"{name}={value}" for name, value in sorted(attributes.items())]
    return [*each, *(f"{one}+{modality}" for one in each for modality in pattern.split("+") if modality)]


def moved(risks: Array, shifts: Array) -> Array:
    """Risks whose logits are shifted; 0 stays 0 and 1 stays 1."""
    up = risks * np.exp(shifts)
    return np.asarray(up / (1 - risks + up), np.float64)


class Subgroups:
    """Which patients belong where: `names` are the columns of `rows`, bool as float64 [B, N]."""

    def __init__(
        self, patterns: Sequence[str] | NDArray[np.str_], attributes: Attributes, known: NDArray[np.bool_]
    ) -> None:
        each = [belonging(str(p), a) for p, a in zip(patterns, attributes, strict=True)]
        count = Counter(name for held, here in zip(each, known, strict=True) if here for name in held)
        self.names = sorted(name for name in count if count[name] >= LEAST)
        self.alone = {name for a in attributes for name in belonging("", a)}
        columns = {name: i for i, name in enumerate(self.names)}
        self.rows = np.zeros((len(each), len(columns)))
        for row, held in enumerate(each):
            self.rows[row, [columns[name] for name in held if name in columns]] = 1

    @staticmethod
    def fitted(risks: Array, labels: Array, weights: Array, rows: Array) -> tuple[Array, Array]:
        """(shifts [N], their covariance [N, N]) by patients float64 [B] who belong as `rows` [B, N] says."""
        found: Array = np.zeros(rows.shape[1])
        for _ in range(STEPS):
            now = moved(risks, rows @ found)
            inner = (rows * (weights * now * (1 - now))[:, None]).T @ rows + RIDGE * np.eye(len(found))
            step = np.linalg.solve(inner, rows.T @ (weights * (labels - now)) - RIDGE * found)
            found = found + step * min(1.0, LONGEST / max(1e-12, np.abs(step).max(initial=0.0)))
            if np.abs(step).max(initial=0.0) < 1e-8:
                break
        return found, np.asarray(np.linalg.inv(inner), np.float64)

    def variances(self, covariance: Array, order: NDArray[np.int64], size: int) -> dict[str, float]:
        """Mean variance of the shift of a group: "" → of groups of all patients, subgroup (without modality)
        → by how much it is larger in groups of its own.

        order  int: patients by risk, `size` neighbours being a group
        So the sum over what a patient belongs to is, as in a table of two ways, nearly that of its cell.
        """

        def of(rows: NDArray[np.int64]) -> float:
            parts = np.array_split(self.rows[rows], max(1, len(rows) // size))
            means = np.stack([part.mean(axis=0) for part in parts])
            return float(np.einsum("gn,nm,gm->g", means, covariance, means).mean())

        every, found = of(order), dict[str, float]()
        for place, name in enumerate(self.names):
            if name in self.alone:
                found[name] = max(0.0, of(order[self.rows[order, place] > 0]) - every)
        return {"": every, **found}
