"""Discrete-time survival: several horizons of one event, for patients who may be lost from sight (censored).

Outcomes that share an `event` are one curve. Its horizons cut time into intervals; the model's logit of an
outcome is then that of the *hazard*, the chance of the event in that interval for a patient who reached it.
Each interval is learned from the patients at risk in it, which is all that censoring leaves to know (Singer &
Willett 1993; Gensheimer & Narasimhan 2019). A risk by a horizon is one minus the product of what survives:
it cannot fall from one horizon to the next, whatever was learned and however hazards are calibrated.

A patient censored past the middle of an interval counts as having survived it, before the middle as not
having been in it (the life table's rule). No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.config import OutcomeSpec
from fusion.errors import BadInput

Array = NDArray[np.float64]
Curves = tuple[tuple[int, ...], ...]
MOST_WEIGHT = 20.0  # of one patient who stands for those censored


@dataclass(frozen=True, slots=True)
class FollowUp:
    """hours from as_of to the event (observed), or to the last moment known without it (censored)."""

    hours: float
    observed: bool

    def __post_init__(self) -> None:
        if not (math.isfinite(self.hours) and self.hours >= 0):
            raise BadInput("follow-up must be a number of hours from as_of, 0 or more")


def curves_of(outcomes: Sequence[OutcomeSpec]) -> Curves:
    """Places of the outcomes of each event, by rising horizon. Raises BadInput for a horizon given twice."""
    by_event: dict[str, list[int]] = {}
    for place, spec in enumerate(outcomes):
        if spec.event:
            by_event.setdefault(spec.event, []).append(place)
    for event, places in by_event.items():
        places.sort(key=lambda place: outcomes[place].horizon_hours)
        hours = [outcomes[place].horizon_hours for place in places]
        if hours[0] <= 0 or len(set(hours)) < len(hours):
            raise BadInput(f"horizons of {event} must be different numbers of hours above 0, not {hours}")
    return tuple(tuple(places) for places in by_event.values())


def intervals_of(follow_up: FollowUp, horizons: Sequence[float]) -> list[float]:
    """Per interval between rising horizons: 1 the event, 0 survived, NaN not at risk (or lost)."""
    said, start = [], 0.0
    for end in horizons:
        if follow_up.observed and follow_up.hours <= end:
            said.append(1.0 if follow_up.hours > start or start == 0 else math.nan)
        else:
            seen = follow_up.hours >= (start + end) / 2
            said.append(0.0 if follow_up.observed or seen else math.nan)
        start = end
    return said


def intervals_from_labels(labels: Mapping[str, int], names: Sequence[str]) -> list[float]:
    """The same from labels "happened by this horizon" (outcome name → 0 or 1), by rising horizon.

    Raises BadInput where an event that has happened is said not to have happened later.
    """
    said: list[float] = []
    earlier: int | None = 0
    for name in names:
        label = labels.get(name)
        if earlier == 1 and label == 0:
            raise BadInput(f"{name} is 0 although the event happened by an earlier horizon")
        known = label is not None and (label == 0 or earlier == 0)
        said.append(float(label) if known and earlier != 1 else math.nan)  # type: ignore[arg-type]
        earlier = 1 if earlier == 1 else label
    if any(said[j] == 0 and math.isnan(said[i]) for i in range(len(said)) for j in range(i, len(said))):
        last = max(i for i, one in enumerate(said) if one == 0)
        said[:last] = [0.0] * last  # without it by a later horizon: without it by the earlier ones
    return said


def accumulated(hazards: Array, curves: Curves) -> Array:
    """Chances [..., R]; those of a curve are hazards and become risks by horizon: 1 - prod(1 - hazard)."""
    risks = np.array(hazards, np.float64)
    for places in curves:
        survived = np.cumprod(1 - risks[..., places], axis=-1)
        risks[..., places] = 1 - survived
    return risks


def by_horizon(labels: Array, curves: Curves) -> tuple[Array, Array]:
    """Interval labels [B, R] → happened by each horizon [B, R] (NaN: censored before), and weights [B, R].

    A weight is 1 over the chance of not being censored so long, so that who is still in sight stands for who
    is not (inverse probability of censoring, Graf 1999); 1 for outcomes that belong to no curve, at most 20.
    Censoring is taken to be independent of the risk.
    """
    happened, weights = np.array(labels, np.float64), np.ones(labels.shape)
    for places in curves:
        given = labels[:, places]
        happening = np.zeros(len(given), bool)  # the event is behind the patient
        seen = np.ones(len(given), bool)
        in_sight = 1.0  # chance of not being censored until here
        weight = np.ones(len(given))
        for step, place in enumerate(places):
            at_risk = seen & ~happening
            known = ~np.isnan(given[:, step])
            if at_risk.any():
                in_sight *= max(float((at_risk & known).sum() / at_risk.sum()), 1e-9)
            seen &= happening | known
            weight = np.where(at_risk & known, min(1 / in_sight, MOST_WEIGHT), weight)
            happening |= at_risk & (given[:, step] == 1)
            happened[:, place] = np.where(happening, 1.0, np.where(seen, 0.0, np.nan))
            weights[:, place] = weight
    return happened, weights
