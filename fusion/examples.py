"""Patients with what happened to them: what training and evaluation are given, dealt into folds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.config import FusionConfig
from fusion.errors import BadInput
from fusion.inputs import PatientInputs
from fusion.survival import FollowUp, curves_of, intervals_from_labels, intervals_of

SYNTHETIC = "synthetic"  # prefix of the key of every picture that `fusion.imaging.synthesise` makes


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """One patient at one moment with what happened.

    labels      outcome → 0 or 1; an outcome that is not named is unknown
    follow_up   event → when it happened or until when it had not, for outcomes that are horizons of an event
    group       patients of one group never stand on both sides of a split
    attributes  what reports are broken down by: {"sex": "female", …}; never seen by the model
    """

    inputs: PatientInputs
    labels: Mapping[str, int]
    group: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    follow_up: Mapping[str, FollowUp] = field(default_factory=dict)


def labels_of(examples: Sequence[Example], config: FusionConfig) -> Tensor:
    """float32 [B, R]; NaN = unknown. Of outcomes that are horizons of one event: per interval between them,
    NaN where the patient was not at risk (`fusion.survival`).

    Raises BadInput for a label that is neither 0 nor 1, and where all labels are of outcomes the model does
    not know.
    """
    rows = np.full((len(examples), len(config.outcomes)), np.nan, np.float32)
    curves = curves_of(config.outcomes)
    for i, example in enumerate(examples):
        for r, spec in enumerate(config.outcomes):
            label = example.labels.get(spec.name)
            if label is not None:
                if label not in (0, 1):
                    raise BadInput(f"label of {spec.name} must be 0 or 1")
                rows[i, r] = label
        for places in curves:
            specs = [config.outcomes[place] for place in places]
            follow_up = example.follow_up.get(specs[0].event)
            if follow_up is not None:
                rows[i, places] = intervals_of(follow_up, [spec.horizon_hours for spec in specs])
            else:
                rows[i, places] = intervals_from_labels(example.labels, [spec.name for spec in specs])
    known = {name for spec in config.outcomes for name in (spec.name, spec.event)}
    named = {name for example in examples for name in (*example.labels, *example.follow_up)}
    if named and not named & known:
        raise BadInput(
            f"no label is of an outcome of this model: they name {', '.join(sorted(named))} where "
            f"{', '.join(spec.name for spec in config.outcomes)} (0 or 1) is expected"
        )
    return torch.from_numpy(rows)


def assign_folds(
    groups: Sequence[str], labels: NDArray[np.float32], folds: int, seed: int
) -> NDArray[np.int64]:
    """A fold for each row: all rows of a group together, events and others dealt evenly."""
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    place = {name: i for i, name in enumerate(names)}
    members = np.array([place[group] for group in groups])
    filled = np.nan_to_num(labels, nan=0.0)
    events = np.zeros((len(names), labels.shape[1]))
    np.maximum.at(events, members, filled)
    ranked = sorted(order.tolist(), key=lambda i: tuple(-events[i]))
    count = max(2, min(folds, len(names)))
    fold_of = np.empty(len(names), np.int64)
    fold_of[ranked] = np.arange(len(names)) % count
    return np.asarray(fold_of[members])


def number_groups(examples: Sequence[Example]) -> NDArray[np.int64]:
    """int [B]: of one patient group the same number, in the order of their first rows."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(e.group, len(numbers)) for e in examples], np.int64)


def pixel_keys(example: Example) -> list[str]:
    """Keys of its images, cines and volumes."""
    shown = example.inputs
    return [pixels.key for pixels in (*shown.images, *shown.cines, *shown.volumes)]


def is_synthetic(example: Example) -> bool:
    """Whether a picture of it was made by `fusion.imaging.synthesise`."""
    return any(key.startswith(SYNTHETIC) for key in pixel_keys(example))


def check_real(keys: Iterable[str], split: str) -> None:
    """Raises BadInput when a synthetic picture stands in a split that measures or tunes."""
    if made := [key for key in keys if key.startswith(SYNTHETIC)]:
        raise BadInput(f"{len(made)} synthetic pictures in the {split} split: they are for training only")
