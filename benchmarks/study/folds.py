"""Grouped folds shared by all arms, and what each arm says of the patients it has not seen."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusion import Example
from fusion.train import assign_folds

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Said:
    """What one arm says of held-out rows: risks float64 [n].

    covered    groups of patients scored alike whose event rate lay in the stated interval, of how many
    subgroups  ("sex", "female") → the same among these patients alone
    """

    risks: Floats
    covered: tuple[int, int] = (0, 0)
    subgroups: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


Arm = Callable[[Rows, Rows, int], Mapping[str, Said]]  # rows to learn from, rows to judge, seed


@dataclass(eq=False, slots=True)
class Heard:
    """Out-of-fold risks of every arm.

    labels  float64 [N]
    groups  split unit of each row
    risks   arm → one float64 [N] per repeat it ran in; every row judged by a model that never saw its group
    subgroups  arm → `Said.subgroups`, summed over the folds of the first repeat
    folds   of each repeat: by which fold's model each row was judged
    """

    labels: Floats
    groups: Sequence[str]
    risks: dict[str, list[Floats]] = field(default_factory=dict)
    covered: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    subgroups: dict[str, dict[tuple[str, str], tuple[int, int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    folds: list[Rows] = field(default_factory=list)


def labels_of(examples: Sequence[Example], task: str) -> Floats:
    """float64 [N]; NaN = unknown."""
    return np.array([float(e.labels.get(task, np.nan)) for e in examples])


def listen(
    examples: Sequence[Example],
    task: str,
    arms: Mapping[str, Arm],
    *,
    repeats: Mapping[str, int],
    folds: int,
    seed: int,
) -> Heard:
    """Grouped cross-validation: the fold of each row is drawn once per repeat and is the same for every arm.

    repeats  arm → in how many repeats it runs
    """
    labels = labels_of(examples, task)
    groups = [e.group for e in examples]
    heard = Heard(labels, groups)
    for repeat in range(max(repeats.values())):
        fold_of = assign_folds(groups, labels[:, None].astype(np.float32), folds, seed=seed + repeat)
        heard.folds.append(np.asarray(fold_of, np.int64))
        for name, arm in arms.items():
            if repeat >= repeats[name]:
                continue
            started = time.perf_counter()
            for fold in range(int(fold_of.max()) + 1):
                held = np.flatnonzero(fold_of == fold)
                for said_by, said in arm(np.flatnonzero(fold_of != fold), held, seed + repeat).items():
                    told = heard.risks.setdefault(said_by, [])
                    if len(told) <= repeat:
                        told.append(np.full(len(examples), np.nan))
                    told[repeat][held] = said.risks
                    heard.covered.setdefault(said_by, []).append(said.covered)
                    if repeat == 0:
                        _add(heard.subgroups.setdefault(said_by, {}), said.subgroups)
            spent = time.perf_counter() - started
            heard.seconds[name] = heard.seconds.get(name, 0.0) + spent
            print(f"{task}: repeat {repeat + 1}, {name}, {spent:.0f} s", file=sys.stderr, flush=True)
    return heard


def _add(
    held: dict[tuple[str, str], tuple[int, int]], told: Mapping[tuple[str, str], tuple[int, int]]
) -> None:
    for subgroup, (inside, groups) in told.items():
        before = held.get(subgroup, (0, 0))
        held[subgroup] = (before[0] + inside, before[1] + groups)
