"""Every task of a collection: the fused model beside the simple stack and other arms, on the same folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.study import arms, comparing, patterns, subgroups
from benchmarks.study.comparing import Floats, Interval
from benchmarks.study.folds import Heard, labels_of, listen
from benchmarks.study.keeping import Keeper
from fusion import Example, Modality
from fusion.metrics import calibration
from fusion.research import Collection, Task, read_collection

FUSED, STACK = "fused", "stack: sum of logits"
BOOSTING = "gradient boosting, one row of all"
FOLDS, QUICK_FOLDS, QUICK_ROWS = 5, 3, 800
HEAD = (
    "| task | rows / groups / events | best alone | simple stack | **fused** | fused − stack | "
    "fused − best alone | within folds: fused − stack | within folds: fused − one alone, picked beforehand |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
ARMS_HEAD = (
    "| arm | AUROC | sd of repeats | AUPRC | Brier | calibration slope | coverage of 90 % intervals | "
    "AUROC − stack | fused − AUROC |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
PLACES = ("view", "location", "site")


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """One task, measured. found: arm → AUROC [repeats, 1 + draws]."""

    task: Task
    examples: Sequence[Example]
    heard: Heard
    found: dict[str, Floats]
    weights: Floats

    def auroc(self, arm: str) -> Interval:
        return comparing.interval(self.found[arm])

    def over(self, arm: str, other: str) -> Interval:
        return comparing.difference(self.found[arm], self.found[other])

    def within(self, arm: str, other: str) -> Interval:
        """`over`, of pairs that one fold's models ranked."""
        one, two = (comparing.within_folds(self.heard, which, self.weights) for which in (arm, other))
        return comparing.difference(one, two)

    @property
    def alone(self) -> list[str]:
        """The arms of one modality, whoever made them."""
        fused = [a for a in self.found if a.startswith(f"{FUSED}: ") and patterns.is_alone(a)]
        return [*(a for a in self.found if a.startswith("stack: ") and a != STACK), *fused]

    @property
    def best_alone(self) -> str:
        """The best of them: chosen on these folds, in its own favour."""
        return max(self.alone, key=lambda a: self.auroc(a).value)

    @property
    def over_picked(self) -> Interval:
        """Within folds: the fused model over the one of them that the other folds had picked."""
        one = comparing.within_folds(self.heard, FUSED, self.weights)
        return comparing.difference(one, comparing.picked(self.heard, self.alone, self.weights))

    @property
    def best(self) -> str:
        """The best of all arms that ran in every repeat: one repeat alone is another draw of folds."""
        return max(filter(self.is_whole, self.found), key=lambda a: self.auroc(a).value)

    def is_whole(self, arm: str) -> bool:
        """Whether the arm ran in every repeat."""
        return len(self.found[arm]) == max(map(len, self.found.values()))


def run(
    folder: Path, *, repeats: int, seed: int, quick: bool, tasks: Sequence[str] = (), keep: Path | None = None
) -> str:
    """All tasks (or those named) → Markdown."""
    collection = read_collection(folder)
    keeper = Keeper(keep) if keep else Keeper()
    outcomes = [
        measure(collection, task, keeper, repeats=repeats, seed=seed, quick=quick)
        for name, task in collection.tasks.items()
        if not tasks or name in tasks
    ]
    return page(collection, outcomes, repeats=repeats, seed=seed, quick=quick)


def measure(
    collection: Collection, task: Task, keeper: Keeper, *, repeats: int, seed: int, quick: bool
) -> Outcome:
    """Every arm of one task on the same folds."""
    config = arms.config_of(collection, task, quick=quick)
    more = {} if quick else collection.extra.get("arms", {})
    widest = replace(config, modalities=tuple(dict.fromkeys([*config.modalities, *_all_of(more)])))
    examples = keeper.filled(_some(task.examples, quick), widest)
    each = arms.simple(examples, config) | arms.circumstances(examples, task.name, PLACES)
    each |= arms.severity(collection, examples, task.name)
    each[FUSED] = arms.fused(examples, config, FUSED, alone=True, kinds_at=None if quick else seed)
    for name, modalities in more.items():
        if any(m in e.inputs.present() for e in examples for m in set(modalities) - set(config.modalities)):
            each[name] = arms.fused(examples, replace(config, modalities=modalities), name, alone=True)
    folds = QUICK_FOLDS if quick else FOLDS
    heard = listen(
        examples,
        task.name,
        each,
        repeats={name: 1 if name in more else repeats for name in each},
        folds=folds,
        seed=seed,
    )
    weights = comparing.draw(heard.groups, seed)
    found = {
        arm: comparing.scored(comparing.auroc, said, heard.labels, weights)
        for arm, said in heard.risks.items()
    }
    return Outcome(task, examples, heard, found, weights)


def page(collection: Collection, outcomes: Sequence[Outcome], *, repeats: int, seed: int, quick: bool) -> str:
    """Markdown: one row a task, then what it shows, then each task's arms."""
    epochs = arms.config_of(collection, outcomes[0].task, quick=quick).epochs
    folds = QUICK_FOLDS if quick else FOLDS
    lines = [
        f"## {collection.name}: the fused model beside the simple stack and the other arms",
        "",
        f"    python -m benchmarks.study {collection.name} DIR --repeats {repeats} --seed {seed}"
        + (" --quick" if quick else ""),
        "",
        f"Grouped {folds}-fold cross-validation × {repeats}, the same folds for all arms; pooled out-of-fold "
        "risks; AUROC, mean over repeats, with the 95 % bootstrap interval over groups "
        f"({comparing.DRAWS} draws). Fused: `fusion.train` whole with the collection's settings, {epochs} "
        f"epochs at most, from {arms.SMALL:,} rows on a sixth of them for tuning; other arms learn from all. "
        "*Best alone* is the best single modality of either recipe, picked on these folds, so in its own "
        "favour; *picked beforehand*: for each fold, the best of them within the other folds, as one could "
        "have picked it. *Within folds*: over pairs of patients whom the same models scored; pooled, models "
        "of different folds are compared with each other, which nobody does at the bedside."
        + (" **A quick run on a part of the rows: for finding faults, not for claims.**" if quick else ""),
        "",
        *HEAD,
        *(_summary(o) for o in outcomes),
        "",
        *_shows(collection, outcomes),
        "",
    ]
    for outcome in outcomes:
        lines += [*_table(outcome), ""]
        for arm in (FUSED, *collection.extra.get("arms", {})):
            lines += patterns.table(outcome.heard, outcome.found, outcome.weights, arm)
        lines += subgroups.table(outcome.examples, outcome.heard, FUSED, seed)
    return "\n".join(lines)


def _summary(o: Outcome) -> str:
    alone = o.best_alone
    return (
        f"| {o.task.label} | {_counts(o)} | {o.auroc(alone).value:.3f} ({alone}) | "
        f"{o.auroc(STACK).value:.3f} | **{o.auroc(FUSED)}** | {o.over(FUSED, STACK).signed} | "
        f"{o.over(FUSED, alone).signed} | {o.within(FUSED, STACK).signed} | {o.over_picked.signed} |"
    )


def _shows(collection: Collection, outcomes: Sequence[Outcome]) -> list[str]:
    better = [o.task.label for o in outcomes if o.over(FUSED, STACK).low > 0]
    below = [o.task.label for o in outcomes if o.over(FUSED, STACK).value < 0]
    worse = [o.task.label for o in outcomes if o.over(FUSED, STACK).high < 0]
    no_help = [
        f"{o.task.label} ({o.over(FUSED, o.best_alone).signed} against {o.best_alone})"
        for o in outcomes
        if o.over(FUSED, o.best_alone).low <= 0
    ]
    lines = [
        "- Better than the simple stack, the interval excluding 0: " + (", ".join(better) or "no task") + ".",
        "- Below the simple stack, point by point: " + (", ".join(below) or "no task") + ".",
        "- Worse than the simple stack, the interval excluding 0: " + (", ".join(worse) or "no task") + ".",
        "- Fusion is **not** shown to help over the best single modality: "
        + ("; ".join(no_help) or "no such task")
        + ".",
    ]
    for o in outcomes:
        bars = [a for a in o.found if a == BOOSTING or a.startswith(arms.WIDE)]
        said = "; ".join(f"fused − *{a}* {o.over(FUSED, a).signed}" for a in bars)
        lines.append(f"- {o.task.label}: best arm is *{o.best}*, {o.auroc(o.best)}; {said}.")
    return [*lines, *(f"- {caveat}" for caveat in collection.caveats)]


def _table(o: Outcome) -> list[str]:
    lines = [
        f"### {o.task.label} (`{o.task.name}`): {_counts(o)}",
        "",
        *ARMS_HEAD,
    ]
    for arm, said in o.heard.risks.items():
        if patterns.is_part(arm):
            continue
        precision = comparing.interval(comparing.scored(comparing.auprc, said, o.heard.labels, o.weights))
        error = comparing.interval(comparing.scored(comparing.brier, said, o.heard.labels, o.weights))
        slopes = [s for r in said if (s := calibration(r, o.heard.labels)["slope"]) is not None]
        inside = np.array(o.heard.covered[arm]).sum(axis=0)
        auroc = o.auroc(arm)
        repeats = "" if o.is_whole(arm) else f" ({len(said)} repeat)"
        lines.append(
            f"| {arm}{repeats} | {auroc} | {auroc.sd:.3f} | {precision} | {error} | "
            f"{f'{np.mean(slopes):.2f}' if slopes else '-'} | "
            f"{f'{inside[0] / inside[1]:.2f} of {inside[1]} groups' if inside[1] else '-'} | "
            f"{o.over(arm, STACK).signed if arm != STACK else '-'} | "
            f"{o.over(FUSED, arm).signed if arm != FUSED else '-'} |"
        )
    return lines


def _counts(o: Outcome) -> str:
    labels = labels_of(o.examples, o.task.name)
    return f"{len(labels)} / {len(set(o.heard.groups))} / {int(labels.sum())}"


def _all_of(more: dict[str, Sequence[Modality]]) -> list[Modality]:
    return [modality for modalities in more.values() for modality in modalities]


def _some(examples: Sequence[Example], quick: bool) -> Sequence[Example]:
    """Quick: the rows of enough groups, in an order drawn from a fixed seed."""
    if not quick or len(examples) <= QUICK_ROWS:
        return examples
    groups = sorted({e.group for e in examples})
    order = np.random.default_rng(0).permutation(len(groups))
    kept = {groups[i] for i in order[: len(groups) * QUICK_ROWS // len(examples)]}
    return [e for e in examples if e.group in kept]
