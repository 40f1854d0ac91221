"""Patients lost from sight before a horizon: an outcome that has many is learned as a survival curve.

Leaving them out keeps the events and loses those without; counting them as free of it does the opposite. So a
cohort keeps how long each moment was followed, and where that matters a model is given the outcome as
horizons of one event (`fusion.survival`): the outcome itself, by its own name, and a half, a quarter and an
eighth of its horizon before it, each learned from the patients still in sight. Only the outcome itself is
served and reported; the others are steps towards it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from cds.registry.cohorts import LEAST_EVENTS
from cds.registry.models import CohortMember
from cds.registry.outcomes import Outcome, get_outcome
from fusion import FollowUp, OutcomeSpec, Report

T = TypeVar("T")
STEPS = (0.125, 0.25, 0.5)  # of the horizon
MANY_LOST = 0.05  # share of moments lost before the horizon from which steps are worth their scatter
LEAST = LEAST_EVENTS  # and as many patients without, in each step among those that decide on the steps


def specs_of(
    names: Sequence[str], members: Iterable[CohortMember], *, steps: bool = True
) -> tuple[OutcomeSpec, ...]:
    """The named outcomes in their order, then the steps towards them.

    members  those of the training split; of a private training those of the tuning split, to whom no promise
             is made
    steps    False: the horizon alone, whoever is lost
    """
    kept = list(members)
    own, towards = [], []
    for name in names:
        outcome = get_outcome(name)
        spec = OutcomeSpec(name, outcome.label, outcome.horizon_hours)
        followed = [FollowUp(*member.follow_up[name]) for member in kept if name in member.follow_up]
        lost = sum(not one.observed and one.hours < outcome.horizon_hours for one in followed)
        if lost:
            spec = replace(spec, event=name)
        own.append(spec)
        if steps and lost >= MANY_LOST * len(followed):
            towards += [_step(outcome, hours) for hours in _ends(followed, outcome.horizon_hours)]
    return (*own, *towards)


def follow_up_of(member: CohortMember, specs: Sequence[OutcomeSpec]) -> dict[str, FollowUp]:
    """Event → how long the member was followed, for the outcomes that are learned as curves."""
    events = {spec.event for spec in specs if spec.event}
    return {name: FollowUp(*said) for name, said in member.follow_up.items() if name in events}


def without_steps(report: Report, names: Sequence[str]) -> Report:
    """The report on the named outcomes alone."""

    def own(table: dict[str, T]) -> dict[str, T]:
        return {name: told for name, told in table.items() if name in names}

    return replace(
        report,
        outcomes=own(report.outcomes),
        ablation=own(report.ablation),
        baselines=own(report.baselines),
        subgroups=own(report.subgroups),
        fairness=own(report.fairness),
    )


def _ends(followed: Sequence[FollowUp], horizon: float) -> list[float]:
    """Where the steps end, in hours: those that leave enough to learn from on both sides."""
    ends, start = [], 0.0
    for end in (share * horizon for share in STEPS if followed):
        if _is_enough(followed, start, end) and _is_enough(followed, end, horizon):
            ends.append(end)
            start = end
    return ends


def _is_enough(followed: Sequence[FollowUp], start: float, end: float) -> bool:
    events = sum(one.observed and start < one.hours <= end for one in followed)
    others = sum(one.hours > end or (not one.observed and one.hours >= (start + end) / 2) for one in followed)
    return min(events, others) >= LEAST


def _step(outcome: Outcome, hours: float) -> OutcomeSpec:
    days = f"{hours / 24:.3g}"
    return OutcomeSpec(f"{outcome.name}@{days}d", f"{outcome.label}: by {days} days", hours, outcome.name)
