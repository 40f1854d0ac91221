"""Rising maps from logit to calibrated logit: four kinds, and the choice between them. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.choosing import MARGIN, standard_errors
from fusion.numbers import sigmoid

Array = NDArray[np.float64]
RIDGE = 2.0  # in patients' worth of log-likelihood
LEAST_RARER = {"temperature": 1, "scale and shift": 5, "beta": 25, "isotonic": 50}  # of the rarer kind
PARTS = 5  # of the cross-validation
BEYOND = 0.1  # slope of an isotonic map outside the logits it was fitted on


@dataclass(frozen=True, slots=True)
class Map:
    """One rising map, around a base logit.

    kind    temperature | scale and shift | beta | isotonic
    points  beta: (a, b, c); isotonic: logits, then what they become (each rising), half and half
    """

    kind: str
    scale: float = 1.0
    shift: float = 0.0
    points: tuple[float, ...] = ()

    def __call__(self, logits: Array, base: float) -> Array:
        """Logits float64 [B] → calibrated logits float64 [B]."""
        if self.kind == "beta":
            a, b, c = self.points
            return np.asarray(-a * np.logaddexp(0, -logits) + b * np.logaddexp(0, logits) + c)
        if self.kind == "isotonic":
            x, y = np.array(self.points).reshape(2, -1)
            beyond = np.minimum(logits - x[0], 0) + np.maximum(logits - x[-1], 0)
            return np.asarray(np.interp(logits, x, y) + BEYOND * beyond)
        return np.asarray(base + self.scale * (logits - base) + self.shift)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "scale": self.scale, "shift": self.shift, "points": list(self.points)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Map:
        """Raises ValueError for a kind that is not one of the four, numbers that are not finite, a falling
        map, or points of another number than the kind's or that do not rise."""
        made = cls(
            str(data["kind"]), float(data["scale"]), float(data["shift"]), tuple(map(float, data["points"]))
        )
        if not all(math.isfinite(one) for one in (made.scale, made.shift, *made.points)):
            raise ValueError("a rising map needs a scale, a shift and points that are finite")
        if made.kind not in KINDS or made.scale < 0:
            raise ValueError(f"calibration map {made.kind!r} with scale {made.scale} is not a rising map")
        if made.kind == "beta" and (len(made.points) != 3 or min(made.points[:2]) < 0):
            raise ValueError("a beta calibration needs a, b >= 0 and c")
        if made.kind == "isotonic":
            if len(made.points) % 2:
                raise ValueError("an isotonic calibration needs a value for each of its logits")
            x, y = np.array(made.points).reshape(2, -1)
            if not len(x) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
                raise ValueError("the points of an isotonic calibration must rise")
        return made


PLAIN = Map("temperature")


def choose_map(
    logits: Array, labels: Array, base: float, groups: NDArray[np.int64] | None = None
) -> tuple[Map, dict[str, float]]:
    """logits, labels float64 [B] → the map, and each tried map's cross-validated log loss.

    groups  int [B], of one patient group the same number: on one side of the cross-validation, and as one
            patient to the standard error; None: every row is one by itself

    Among maps that the number of events allows: the simplest that is not worse than the best by more than a
    standard error of the paired difference (Hastie, Tibshirani & Friedman 2009, 7.10). The same rows give the
    same choice.
    """
    rarer = int(min(labels.sum(), len(labels) - labels.sum()))
    tried = [kind for kind in KINDS if rarer >= LEAST_RARER[kind]]
    if rarer < 10:  # too few to choose: the two-number map, strongly shrunk
        kind = tried[-1]
        return KINDS[kind](logits, labels, base), {}
    _, member = np.unique(np.arange(len(logits)) if groups is None else groups, return_inverse=True)
    count = int(member.max()) + 1
    part = (np.random.default_rng(count).permutation(count) % PARTS)[member]
    losses = {kind: np.zeros(len(logits)) for kind in tried}
    for held in range(PARTS):
        seen, asked = part != held, part == held
        for kind in tried:
            said = KINDS[kind](logits[seen], labels[seen], base)(logits[asked], base)
            losses[kind][asked] = np.logaddexp(0, said) - labels[asked] * said
    best = min(tried, key=lambda kind: losses[kind].mean())
    for kind in tried:
        if standard_errors(losses[kind], losses[best], member) <= MARGIN:
            break
    return KINDS[kind](logits, labels, base), {kind: float(each.mean()) for kind, each in losses.items()}


def fit_affine(
    evidence: Array,
    labels: Array,
    base: float,
    *,
    weight: Array | None = None,
    ridge: tuple[float, float] = (2 * RIDGE, RIDGE),
    is_shifted: bool = True,
) -> tuple[float, float]:
    """(scale, shift) of base + scale x evidence + shift, by Newton steps on (log scale, shift).

    ridge  on log scale and on shift, towards (0, 0)
    """
    weight = np.ones(len(labels)) if weight is None else weight
    a = b = 0.0
    for _ in range(50):
        scaled = math.exp(a) * evidence
        risk = sigmoid(base + scaled + b)
        error, spread = weight * (risk - labels), weight * risk * (1 - risk)
        gradient = np.array([(error * scaled).sum() + ridge[0] * a, error.sum() + ridge[1] * b])
        cross = (spread * scaled).sum()
        hessian = np.array([[(spread * scaled**2).sum() + ridge[0], cross], [cross, spread.sum() + ridge[1]]])
        if not is_shifted:
            gradient[1], hessian[0, 1], hessian[1, 0] = 0.0, 0.0, 0.0
        step = np.clip(np.linalg.solve(hessian, gradient), -0.5, 0.5)
        a, b = float(np.clip(a - step[0], -3, 2)), float(np.clip(b - step[1], -3, 3))
        if np.abs(step).max() < 1e-8:
            break
    return math.exp(a), b


def _temperature(logits: Array, labels: Array, base: float) -> Map:
    scale, _ = fit_affine(logits - base, labels, base, is_shifted=False)
    return Map("temperature", scale, 0.0)


def _scale_and_shift(logits: Array, labels: Array, base: float) -> Map:
    return Map("scale and shift", *fit_affine(logits - base, labels, base))


def _beta(logits: Array, labels: Array, base: float) -> Map:
    from scipy.optimize import minimize

    low, high = -np.logaddexp(0, -logits), np.logaddexp(0, logits)

    def loss(at: Array) -> tuple[float, Array]:
        said = at[0] * low + at[1] * high + at[2]
        error = sigmoid(said) - labels
        off = at - np.array([1.0, 1.0, 0.0])
        gradient = np.array([(error * low).sum(), (error * high).sum(), error.sum()]) + 2 * RIDGE * off
        return float((np.logaddexp(0, said) - labels * said).sum() + RIDGE * (off**2).sum()), gradient

    found = minimize(
        loss, np.array([1.0, 1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, 8), (0, 8), (-8, 8)]
    )
    return Map("beta", points=tuple(float(one) for one in found.x))


def _isotonic(logits: Array, labels: Array, base: float) -> Map:
    from sklearn.isotonic import IsotonicRegression

    said = IsotonicRegression(increasing=True).fit_transform(logits, labels)
    centres, levels = [], []
    for level in np.unique(said):
        step = said == level
        events = labels[step].sum() + labels.mean()  # a step of few patients is not believed to be 0 or 1
        centres.append(float(logits[step].mean()))
        levels.append(float(events / (step.sum() + 1)))
    rates = np.clip(np.maximum.accumulate(levels), 1e-4, 1 - 1e-4)
    return Map("isotonic", points=(*centres, *(float(one) for one in np.log(rates / (1 - rates)))))


KINDS: dict[str, Callable[[Array, Array, float], Map]] = {
    "temperature": _temperature,
    "scale and shift": _scale_and_shift,
    "beta": _beta,
    "isotonic": _isotonic,
}
