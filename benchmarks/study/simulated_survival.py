"""Simulated deaths, half of the patients lost from sight: three ways to tell the chance of death by then.

Exponential deaths and an independent exponential loss, nothing else known of anybody: the truth is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fusion import OutcomeSpec
from fusion.fitting import Fit, fit
from fusion.losses import masked_bce
from fusion.survival import FollowUp, accumulated, curves_of, intervals_of

Floats = NDArray[np.float64]
MEAN = 150.0  # hours to death, and to being lost
HOURS = (24.0, 48.0, 96.0, 192.0)
FINER = tuple(np.arange(16.0, 193.0, 16.0).tolist())
PATIENTS, QUICK_PATIENTS = 20_000, 4_000


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """Markdown; `folder` names the set whose part this is, and is not read."""
    followed = follow_ups(QUICK_PATIENTS if quick else PATIENTS, seed)
    told = {
        "discrete-time survival": learned(followed, HOURS, seed),
        "the lost counted as alive": counted_alive(followed, HOURS),
        "the lost left out": left_out(followed, HOURS),
    }
    lost = np.mean([not f.observed for f in followed])
    lines = [
        "## Death by several horizons when half of the patients are lost from sight (simulated)",
        "",
        f"    python -m benchmarks.study {folder.name} DIR --part survival_simulated --seed {seed}"
        + (" --quick" if quick else ""),
        "",
        f"{len(followed):,} simulated patients, exponential deaths (mean {MEAN:g} h), each lost at an "
        f"independent exponential time (mean {MEAN:g} h; {lost:.0%} are lost first), one hazard per interval "
        "fitted by the training loop, no inputs. Chance of death by each horizon:",
        "",
        f"| hours | true | {' | '.join(told)} |",
        f"|{'---|' * (2 + len(told))}",
    ]
    for r, hours in enumerate(HOURS):
        each = (f"{said[r]:.3f}" for said in told.values())
        lines.append(f"| {hours:g} | {true_risk(hours):.3f} | {' | '.join(each)} |")
    finer = learned(followed, FINER, seed)
    return "\n".join(
        [
            *lines,
            "",
            f"With {len(FINER)} intervals of {FINER[0]:g} h it is {finer[-1]:.3f} at {FINER[-1]:g} h. The "
            "loss recovers the curve where losing sight has nothing to do with the risk; what happens where "
            "it has, as with discharge, is not shown.",
        ]
    )


def follow_ups(patients: int, seed: int) -> list[FollowUp]:
    """Until death, or until lost."""
    rng = np.random.default_rng(seed)
    death, lost = rng.exponential(MEAN, patients), rng.exponential(MEAN, patients)
    return [FollowUp(float(min(d, c)), bool(d <= c)) for d, c in zip(death, lost, strict=True)]


def true_risk(hours: float) -> float:
    """Chance of death by then."""
    return float(1 - np.exp(-hours / MEAN))


def learned(followed: Sequence[FollowUp], hours: Sequence[float], seed: int) -> Floats:
    """One hazard an interval, by the training loop and loss of the product → risk by each horizon."""
    outcomes = tuple(OutcomeSpec(f"death_{h:g}h", "Death", h, "death") for h in hours)
    labels = torch.tensor([intervals_of(f, list(hours)) for f in followed], dtype=torch.float32)
    hazards = nn.ParameterList([nn.Parameter(torch.zeros(len(hours)))])
    how = Fit(epochs=300, patience=300, batch_size=len(labels), learning_rate=0.1, seed=seed)
    fit(
        hazards,
        lambda rows: masked_bce(hazards[0].expand(len(rows), -1), labels[rows]),
        lambda: None,
        rows=len(labels),
        how=how,
        tell=lambda *_: None,
    )
    chances = torch.sigmoid(hazards[0]).detach().double().numpy()[None]
    return np.asarray(accumulated(chances, curves_of(outcomes))[0])


def counted_alive(followed: Sequence[FollowUp], hours: Sequence[float]) -> Floats:
    """Share of all who were seen to die by each horizon."""
    return np.array([np.mean([f.observed and f.hours <= h for f in followed]) for h in hours])


def left_out(followed: Sequence[FollowUp], hours: Sequence[float]) -> Floats:
    """The same among those not lost before it."""
    return np.array(
        [np.mean([f.observed and f.hours <= h for f in followed if f.observed or f.hours > h]) for h in hours]
    )
