"""Fused logits → risks: scale and shift per outcome, and a shift per pattern where data suffice.

A calibrated logit is base + scale x (logit - base) + shift: with scale → 0 it falls back to the base rate.
Both are shrunk towards "leave as is", so that a small tuning split changes little. No modality present →
exactly the base rate.

No model may be surer than the patients it was checked on allow: the risk is drawn back towards the base rate
by `trust` = (k + 1) / (k + 2), k patients of the rarer kind among them: what Laplace's rule of succession
believes after k out of k. So twenty events never end in "100 %".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PATTERN_PATIENTS, PATTERN_EVENTS = 40, 10  # least for a pattern of its own
RIDGE = 2.0  # in patients' worth of log-likelihood


@dataclass(frozen=True, slots=True)
class Calibration:
    """base, scale, shift, trust: one per outcome. patterns: "image+tabular" → further shift, per outcome."""

    base: tuple[float, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    trust: tuple[float, ...]
    patterns: dict[str, tuple[float, ...]] = field(default_factory=dict)
    fitted_on: str = "nothing"

    def logits(self, fused: Array, present: NDArray[np.bool_], modalities: Sequence[str]) -> Array:
        """Uncalibrated logits [B, R] and masks [B, M] → calibrated logits float64 [B, R]."""
        base = np.array(self.base)
        shift = np.tile(np.array(self.shift), (len(fused), 1))
        if self.patterns:
            for names, extra in self.patterns.items():
                wanted = np.array([m in names.split("+") for m in modalities])
                shift[(present == wanted).all(axis=1)] += np.array(extra)
        calibrated = base + np.array(self.scale) * (fused.astype(np.float64) - base) + shift
        base_rate = sigmoid(base)
        risk = base_rate + np.array(self.trust) * (sigmoid(calibrated) - base_rate)
        return np.where(present.any(axis=1, keepdims=True), np.log(risk) - np.log1p(-risk), base)

    def per_outcome(self) -> tuple[tuple[float, ...], ...]:
        """The tuples that hold one number per outcome."""
        return (self.base, self.scale, self.shift, self.trust)

    def to_json(self) -> dict[str, Any]:
        return {
            "base_logit": list(self.base),
            "scale": list(self.scale),
            "shift": list(self.shift),
            "trust": list(self.trust),
            "patterns": {name: list(extra) for name, extra in self.patterns.items()},
            "fitted_on": self.fitted_on,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        return cls(
            tuple(map(float, data["base_logit"])),
            tuple(map(float, data["scale"])),
            tuple(map(float, data["shift"])),
            tuple(map(float, data["trust"])),
            {str(k): tuple(map(float, v)) for k, v in data["patterns"].items()},
            str(data["fitted_on"]),
        )


def fit_calibration(
    fused: Array,
    labels: Array,
    present: NDArray[np.bool_],
    *,
    base: Array,
    modalities: Sequence[str],
    fitted_on: str,
) -> Calibration:
    """fused [B, R], labels [B, R] (NaN = unknown), present [B, M] → Calibration."""
    outcomes = fused.shape[1]
    scale, shift, trust = np.ones(outcomes), np.zeros(outcomes), np.zeros(outcomes)
    usable = present.any(axis=1)
    for r in range(outcomes):
        rows = usable & ~np.isnan(labels[:, r])
        events = labels[rows, r].sum()
        rarer = float(min(events, rows.sum() - events))
        trust[r] = (rarer + 1) / (rarer + 2)
        if rows.sum() >= 10 and 0 < labels[rows, r].sum() < rows.sum():
            scale[r], shift[r] = _fit(fused[rows, r] - base[r], labels[rows, r], base[r])
    patterns: dict[str, tuple[float, ...]] = {}
    for pattern in np.unique(present[usable], axis=0):
        here = (present == pattern).all(axis=1)
        extra = np.zeros(outcomes)
        for r in range(outcomes):
            rows = here & ~np.isnan(labels[:, r])
            events = labels[rows, r].sum()
            if rows.sum() >= PATTERN_PATIENTS and min(events, rows.sum() - events) >= PATTERN_EVENTS:
                at = base[r] + scale[r] * (fused[rows, r] - base[r]) + shift[r]
                extra[r] = _fit_shift(at, labels[rows, r])
        if extra.any():
            patterns["+".join(m for m, here_ in zip(modalities, pattern, strict=True) if here_)] = tuple(
                map(float, extra)
            )
    return Calibration(
        tuple(map(float, base)),
        tuple(map(float, scale)),
        tuple(map(float, shift)),
        tuple(map(float, trust)),
        patterns,
        fitted_on,
    )


def sigmoid(logits: Array | float) -> Array:
    """Logits → probabilities, without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))), np.float64)


def _fit(evidence: Array, labels: Array, base: float) -> tuple[float, float]:
    """Newton steps for (log scale, shift); ridge towards (0, 0)."""
    a = b = 0.0
    for _ in range(50):
        scaled = math.exp(a) * evidence
        risk = sigmoid(base + scaled + b)
        error, spread = risk - labels, risk * (1 - risk)
        gradient = np.array([(error * scaled).sum() + 2 * RIDGE * a, error.sum() + RIDGE * b])
        hessian = np.array(
            [
                [(spread * scaled**2).sum() + 2 * RIDGE, (spread * scaled).sum()],
                [(spread * scaled).sum(), spread.sum() + RIDGE],
            ]
        )
        step = np.clip(np.linalg.solve(hessian, gradient), -0.5, 0.5)
        a, b = float(np.clip(a - step[0], -3, 2)), float(np.clip(b - step[1], -3, 3))
        if np.abs(step).max() < 1e-8:
            break
    return math.exp(a), b


def _fit_shift(logits: Array, labels: Array) -> float:
    shift = 0.0
    for _ in range(50):
        risk = sigmoid(logits + shift)
        gradient = float((risk - labels).sum() + 5 * RIDGE * shift)
        step = gradient / float((risk * (1 - risk)).sum() + 5 * RIDGE)
        shift -= max(-0.5, min(0.5, step))
        if abs(step) < 1e-8:
            break
    return shift
