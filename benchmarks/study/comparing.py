"""Scores with intervals over patient groups, and paired differences: all arms on the same draws.

A draw is a weight for each row, how often its group was drawn; scores are computed for all draws at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.study.folds import Heard

Floats = NDArray[np.float64]
DRAWS = 1000
Score = Callable[[Floats, Floats, Floats], Floats]  # risks [N], labels [N], weights [K, N] → [K]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number, its 95 % interval over draws of patient groups, and its sd over repeats."""

    value: float
    low: float
    high: float
    sd: float = 0.0

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def signed(self) -> str:
        """The same as a difference."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def draw(groups: Sequence[str], seed: int, draws: int = DRAWS) -> Floats:
    """Weights float64 [1 + draws, N]; the first row is ones: the rows as they are."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    return np.vstack([np.ones(len(member)), counts[:, member].astype(np.float64)])


def auroc(risks: Floats, labels: Floats, weights: Floats) -> Floats:
    """Chance that an event is scored above another (ties count half), per draw; NaN with one class."""
    won, pairs = _won(risks, labels, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return won / pairs


def auroc_within(risks: Floats, labels: Floats, weights: Floats, folds: NDArray[np.int64]) -> Floats:
    """The same over pairs of one fold, who were scored by one model: pooled, models of different folds are
    compared too, and one that learned from fewer events scores those whom it is asked about, who have more,
    lower (Parker, Günter & Bedo 2007, stratification bias)."""
    told = [
        _won(risks[here], labels[here], weights[:, here])
        for f in np.unique(folds)
        if (here := folds == f).any()
    ]
    won, pairs = (np.sum(part, axis=0) for part in zip(*told, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(won / pairs)


def within_folds(heard: Heard, arm: str, weights: Floats) -> Floats:
    """`auroc_within` of an arm, [repeats, 1 + draws]."""
    asked = zip(heard.risks[arm], heard.folds, strict=False)  # an arm may have run in fewer repeats
    return np.stack([auroc_within(risks, heard.labels, weights, folds) for risks, folds in asked])


def picked(heard: Heard, among: Sequence[str], weights: Floats) -> Floats:
    """`auroc_within` of one of these arms a fold, picked as one could have: the best within the other folds,
    [repeats, 1 + draws]. Of arms picked by the very rows they are scored on, the luckiest wins.

    Their models learned from the fold's rows as well, so a trace of them is left in the choice. The choice is
    made once, and not again in each draw.
    """
    scores = []
    for repeat in range(min(len(heard.risks[arm]) for arm in among)):
        folds, risks = heard.folds[repeat], {arm: heard.risks[arm][repeat] for arm in among}
        said = np.empty_like(heard.labels)
        for fold in np.unique(folds):
            held, others = folds == fold, folds != fold
            alike = np.ones((1, others.sum()))
            found = {
                arm: auroc_within(of[others], heard.labels[others], alike, folds[others])[0]
                for arm, of in risks.items()
            }
            best = max(sorted(among), key=found.__getitem__)  # of ties always the same
            said[held] = risks[best][held]
        scores.append(auroc_within(said, heard.labels, weights, folds))
    return np.stack(scores)


def _won(risks: Floats, labels: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Per draw: pairs of an event and another that are ranked rightly, and all such pairs."""
    order = np.argsort(risks, kind="stable")
    event, weight = labels[order] > 0.5, weights[:, order]
    _, first, back = np.unique(risks[order], return_index=True, return_inverse=True)
    others = np.where(event, 0.0, weight)
    up_to = np.cumsum(others, axis=1)
    before = (up_to - others)[:, first]
    here = np.add.reduceat(others, first, axis=1)
    below = (before + here / 2)[:, back]
    events = np.where(event, weight, 0.0)
    return (events * below).sum(axis=1), events.sum(axis=1) * others.sum(axis=1)


def auprc(risks: Floats, labels: Floats, weights: Floats) -> Floats:
    """Average precision per draw; a guess gets the event rate."""
    order = np.argsort(-risks, kind="stable")
    last = np.flatnonzero(np.append(np.diff(risks[order]) != 0, True))
    weight = weights[:, order]
    hits = np.cumsum(np.where(labels[order] > 0.5, weight, 0.0), axis=1)[:, last]
    asked = np.cumsum(weight, axis=1)[:, last]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(asked > 0, hits / asked, 0.0)
        return np.asarray((np.diff(hits, prepend=0.0, axis=1) * precision).sum(axis=1) / hits[:, -1])


def brier(risks: Floats, labels: Floats, weights: Floats) -> Floats:
    """Mean squared error per draw."""
    return np.asarray((weights * (risks - labels) ** 2).sum(axis=1) / weights.sum(axis=1))


def scored(score: Score, risks: Sequence[Floats], labels: Floats, weights: Floats) -> Floats:
    """[repeats, 1 + draws]."""
    return np.stack([score(one, labels, weights) for one in risks])


def interval(found: Floats) -> Interval:
    """[repeats, 1 + draws] → the mean over repeats, its percentile interval over draws, sd over repeats."""
    mean = found.mean(axis=0)
    low, high = np.nanpercentile(mean[1:], [2.5, 97.5])
    return Interval(float(mean[0]), float(low), float(high), float(found[:, 0].std()))


def difference(one: Floats, other: Floats) -> Interval:
    """How much `one` scores above `other` on the same draws, over the repeats that both ran in."""
    both = min(len(one), len(other))
    return interval(one[:both] - other[:both])
