"""Leave one source out: trained on all views, places or sites but one, asked about that one.

Internal-external validation (Steyerberg & Harrell 2016): how a model does where it was not made. Nobody who
has a row in the source left out is learned from. Sources too small for a figure of their own are left out
together.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.study import arms, comparing
from benchmarks.study.comparing import Interval
from benchmarks.study.folds import Arm, Floats, labels_of
from benchmarks.study.keeping import Keeper
from fusion import Example
from fusion.errors import NotEnoughData
from fusion.research import Collection, Task, read_collection

FUSED, STACK = "fused", "stack: sum of logits"
SOURCES = {"cxr_covid": ("view", "location"), "brain_lgg": ("site",)}
TASKS = {"cxr_covid": ("icu", "severe_outcome", "covid")}  # others: every task of the collection
LEAST_ROWS, LEAST_EITHER = 10, 3  # rows of a source of its own; events, and others, for an AUROC
TOGETHER = "all smaller ones"


@dataclass(frozen=True, eq=False, slots=True)
class LeftOut:
    """A task asked of each source in turn.

    risks  arm → float64 [N]; NaN where a source could not be asked
    """

    task: Task
    attribute: str
    sources: NDArray[np.str_]
    labels: Floats
    groups: tuple[str, ...]
    risks: Mapping[str, Floats]


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """Every attribute that names a source, every task → Markdown. No fold is drawn, so nothing repeats."""
    collection = read_collection(folder)
    keeper = Keeper()
    tasks = TASKS.get(collection.name, tuple(collection.tasks))[: 1 if quick else None]
    lines = [
        f"## {collection.name}: one {' or '.join(SOURCES[collection.name])} left out",
        "",
        f"    python -m benchmarks.study {collection.name} DIR --part generalisation --seed {seed}",
        "",
        "Each row: trained on everybody who has no picture in that source, asked about that source alone. "
        f"AUROC with 95 % bootstrap intervals over groups, where a source has {LEAST_EITHER} events and "
        f"{LEAST_EITHER} others; sources under {LEAST_ROWS} rows are left out together. *Pooled* ranks all "
        "rows against each other, so it also asks whether the risks of different sources are comparable; "
        "*said − happened* is calibration in the large: mean risk less event rate.",
        "",
    ]
    for attribute in SOURCES[collection.name]:
        for name in tasks:
            found = leave_out(collection, collection.tasks[name], attribute, keeper, seed=seed, quick=quick)
            lines += [*_table(found, seed), ""]
    return "\n".join(lines)


def leave_out(
    collection: Collection, task: Task, attribute: str, keeper: Keeper, *, seed: int, quick: bool
) -> LeftOut:
    """Risks of every row from models that have not seen its source, nor anybody with a row in it."""
    config = arms.config_of(collection, task, quick=quick)
    examples = keeper.filled(task.examples, config)
    each: dict[str, Arm] = {
        "simple stack": arms.simple(examples, config)["simple stack"],
        FUSED: arms.fused(examples, config, FUSED, alone=False),
    }
    sources, groups = sources_of(examples, attribute), np.array([e.group for e in examples])
    risks = {name: np.full(len(examples), np.nan) for name in (STACK, FUSED)}
    for source in sorted(set(sources)):
        held = np.flatnonzero(sources == source)
        seen = np.flatnonzero(~np.isin(groups, groups[held]))
        try:
            for arm in each.values():
                for name, said in arm(seen, held, seed).items():
                    if name in risks:
                        risks[name][held] = said.risks
        except NotEnoughData as fault:
            print(f"{task.name} without {source}: {fault}", file=sys.stderr)
        print(f"{task.name}: {attribute} {source} left out", file=sys.stderr, flush=True)
    labels = labels_of(examples, task.name)
    return LeftOut(task, attribute, sources, labels, tuple(groups.tolist()), risks)


def sources_of(examples: Sequence[Example], attribute: str) -> NDArray[np.str_]:
    """The source of each row; small ones under one name."""
    each = [e.attributes.get(attribute, "unknown") for e in examples]
    count = Counter(each)
    return np.array([source if count[source] >= LEAST_ROWS else TOGETHER for source in each])


def _table(found: LeftOut, seed: int) -> list[str]:
    lines = [
        f"### {found.task.label}: {found.attribute} left out",
        "",
        f"| {found.attribute} | rows / groups / events | simple stack | **fused** | fused − stack | "
        "said − happened, stack | fused |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for source in sorted(set(found.sources)):
        lines.append(_row(found, source, found.sources == source, seed))
    lines.append(_row(found, "**pooled**", np.ones(len(found.labels), bool), seed))
    return lines


def _row(found: LeftOut, name: str, here: NDArray[np.bool_], seed: int) -> str:
    here = here & ~np.isnan(found.risks[FUSED]) & ~np.isnan(found.risks[STACK])
    labels, groups = found.labels[here], [g for g, is_here in zip(found.groups, here, strict=True) if is_here]
    events = int(labels.sum())
    told = f"| {name} | {len(labels)} / {len(set(groups))} / {events} |"
    if not len(labels):
        return f"{told} too few elsewhere to learn from | | | | |"
    large = [f"{(found.risks[arm][here] - labels).mean():+.2f}" for arm in (STACK, FUSED)]
    if min(events, len(labels) - events) < LEAST_EITHER:
        return f"{told} too few | too few | | {large[0]} | {large[1]} |"
    weights = comparing.draw(groups, seed)
    stack, fused = (
        comparing.scored(comparing.auroc, [found.risks[arm][here]], labels, weights) for arm in (STACK, FUSED)
    )
    gain: Interval = comparing.difference(fused, stack)
    return (
        f"{told} {comparing.interval(stack)} | **{comparing.interval(fused)}** | {gain.signed} | "
        f"{large[0]} | {large[1]} |"
    )
