"""All tasks at a glance, read from the comparison tables of docs/experiments.md; no study is run.

    python -m benchmarks.study summary

It is made again whenever a comparison is kept, and a test asks that the page holds what its tables say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.study import pages, patterns
from benchmarks.study.comparison import PLACES

NAME = "summary"
SETS = ("cxr_covid", "brain_lgg", "lung_ultrasound", "icu_physionet2012", "skin_ham10000")
STAYS, STAYS_GOAL, BETTER_GOAL = "icu_physionet2012", 0.85, 3
NUMBER = r"[+-]?\d\.\d{3}"
BRACKETS = rf"{NUMBER} \[{NUMBER}, {NUMBER}\]"
ROW = re.compile(  # as `comparison` writes it
    rf"\| (?P<task>[^|]+) \| (?P<counts>\d+ / \d+ / \d+) \| {NUMBER} \((?P<alone>[^|]+)\) \| {NUMBER} \| "
    rf"\*\*(?P<fused>{BRACKETS})\*\* \| (?P<stack>{BRACKETS}) \| (?P<best>{BRACKETS}) \|"
    rf"(?: (?P<within>{BRACKETS}) \|)?(?: (?P<picked>{BRACKETS}) \|)?"
)
HEAD = (
    "| set | task | rows / groups / events | fused | fused − stack | | within folds | | fused − best alone | "
    "| table of |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
REPEATS = re.compile(r"cross-validation × (\d+)")
BOOSTING = "gradient boosting, one row of all"
OVER_BOOSTING = re.compile(
    rf"^- (?P<task>.+): best arm is .*fused − \*{BOOSTING}\* (?P<gap>{BRACKETS})", re.M
)
PATTERNS, PICKED_PATTERNS = (
    re.compile(rf"^{said}(\d+|none) of (\d+)", re.MULTILINE) for said in (patterns.SAID, patterns.SAID_PICKED)
)
SECTION = re.compile(r"^### (?P<task>.+) \(`\w+`\): \d", re.MULTILINE)
CIRCUMSTANCE = re.compile(  # an arm that sees how or where it was taken, and nothing else
    rf"^\| (?P<arm>(?:{'|'.join(PLACES)}) only) \| (?P<auroc>{NUMBER}) .*\| (?P<over>{BRACKETS}) \|$",
    re.MULTILINE,
)
DATE = re.compile(r"^\*(\d+ \w+ \d{4}), .*\*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Gap:
    """A paired difference as it is printed: "-0.138 [-0.200, -0.076]"."""

    said: str

    @property
    def verdict(self) -> str:
        """better, worse: the interval excludes 0; above, below, level: it does not.

        Numbers have three decimals: an end of -0.000 is below 0, one of +0.000 may be 0 and excludes nothing.
        """
        value, low, high = re.findall(NUMBER, self.said)
        if float(low) > 0:
            return "better"
        if high.startswith("-"):
            return "worse"
        return "above" if float(value) > 0 else "below" if float(value) < 0 else "level"


@dataclass(frozen=True, slots=True)
class Line:
    """One task: the row of its comparison, the day that table was made and its repeats of the folds.

    over_boosting  fused − boosting on one row of all; older tables do not tell
    over_picked    fused − the one modality that the other folds pick, within folds; nor this
    circumstances  arms that see only the view, location or site: name, AUROC, fused − it
    """

    collection: str
    task: str
    counts: str
    fused: str
    alone: str
    over_stack: Gap
    over_alone: Gap
    within: Gap | None
    made: str
    over_boosting: Gap | None = None
    over_picked: Gap | None = None
    circumstances: tuple[tuple[str, str, Gap], ...] = ()

    def __str__(self) -> str:
        return f"{self.collection}: {self.task}"


def run() -> str:
    """Markdown, from the page as it is. Raises ValueError for a comparison whose rows cannot be read."""
    tables = {name: pages.find(f"{name}_comparison") for name in SETS}
    lines = [line for name, table in tables.items() if table is not None for line in read(name, table)]
    found, picked = (
        [told for table in tables.values() for told in which.findall(table or "")]
        for which in (PATTERNS, PICKED_PATTERNS)
    )
    without = [name for name, table in tables.items() if table is None]
    return page(lines, without=without, worse=found, worse_than_picked=picked)


def read(collection: str, table: str) -> list[Line]:
    """The rows of one comparison. Raises ValueError where there is none."""
    days, repeats = DATE.findall(table), REPEATS.search(table)
    made = days[-1] if days else "no date"
    if repeats:
        made += f" (× {repeats[1]})"
    over_boosting = {told["task"]: Gap(told["gap"]) for told in OVER_BOOSTING.finditer(table)}
    told = SECTION.split(table)
    circumstances = {
        task: tuple((one["arm"], one["auroc"], Gap(one["over"])) for one in CIRCUMSTANCE.finditer(section))
        for task, section in zip(told[1::2], told[2::2], strict=True)
    }
    found = [
        Line(
            collection,
            row["task"],
            row["counts"],
            row["fused"],
            row["alone"],
            Gap(row["stack"]),
            Gap(row["best"]),
            Gap(row["within"]) if row["within"] else None,
            made,
            over_boosting.get(row["task"]),
            Gap(row["picked"]) if row["picked"] else None,
            circumstances.get(row["task"], ()),
        )
        for row in ROW.finditer(table)
    ]
    if not found:
        raise ValueError(f"{collection}_comparison: no row like those of benchmarks.study.comparison")
    return found


def page(
    lines: Sequence[Line],
    *,
    without: Sequence[str] = (),
    worse: Sequence[tuple[str, str]] = (),
    worse_than_picked: Sequence[tuple[str, str]] = (),
) -> str:
    """Markdown: a row a task, then each goal with what became of it.

    worse  of each table of patterns: in how many ("none") the fused model is worse than the best modality,
           of how many; worse_than_picked: than the one picked beforehand
    """
    return "\n".join(
        [
            "### All tasks at a glance",
            "",
            "    python -m benchmarks.study summary",
            "",
            "From the comparisons further down, and made again with each of them. **better**, **worse**: the "
            "paired 95 % interval excludes 0; above, below: it does not. *Best alone* is the best single "
            "modality of either recipe, picked on the same folds and so in its own favour. Nothing is "
            f"corrected for looking {len(lines)} times: of ties, one in twenty is called better or worse. "
            "(× 3): repeats of the folds. *Within folds*: fused − stack over pairs of patients whom the same "
            "models scored.",
            "",
            *HEAD,
            *map(_row, lines),
            "",
            *(f"- {said}" for said in _goals(lines)),
            *_patterns(worse, "The same of"),
            *_patterns(worse_than_picked, "Beside the modality picked beforehand, within folds, of"),
            *_circumstances(lines),
            *(f"- No table yet: {name}." for name in without),
        ]
    )


def _row(line: Line) -> str:
    cells = (
        line.collection,
        line.task,
        line.counts,
        line.fused,
        line.over_stack.said,
        _loud(line.over_stack),
        line.within.said if line.within else "not reckoned",
        _loud(line.within) if line.within else "",
        f"{line.over_alone.said} ({line.alone})",
        _loud(line.over_alone),
        line.made,
    )
    return f"| {' | '.join(cells)} |"


def _goals(lines: Sequence[Line]) -> list[str]:
    def over_stack(line: Line) -> str:
        return line.over_stack.verdict

    def over_alone(line: Line) -> str:
        return line.over_alone.verdict

    behind = [line for line in lines if over_stack(line) in ("worse", "below")]
    better = [line for line in lines if over_stack(line) == "better"]
    said = [
        f"At least as good as the stack on every task: {_met(not behind)}. Worse on "
        f"{_named(lines, over_stack, 'worse')}. Below it, the interval holding 0, on "
        f"{_named(lines, over_stack, 'below')}.",
        f"Better than the stack on {BETTER_GOAL} tasks or more: {_met(len(better) >= BETTER_GOAL)}. Better "
        f"on {_named(lines, over_stack, 'better')}.",
    ]
    inside = [line for line in lines if line.within is not None]
    if inside:
        said.append(
            f"The same within folds, on {len(inside)} tasks: worse on {_named(inside, _within, 'worse')}; "
            f"below on {_named(inside, _within, 'below')}."
        )
    said += [
        f"AUROC of {STAYS_GOAL} on the ICU stays: {_met(float(line.fused.split()[0]) >= STAYS_GOAL)}, "
        f"as a point; {line.fused}.{_over_boosting(line)}"
        for line in lines
        if line.collection == STAYS
    ]
    harmed = [line for line in lines if over_alone(line) == "worse"]
    said.append(
        f"Never significantly worse than the best modality: {_met(not harmed)}. Worse on "
        f"{_named(lines, over_alone, 'worse')}. Better than it, so that fusing is shown to help, on "
        f"{_named(lines, over_alone, 'better')}."
    )
    beforehand = [line for line in lines if line.over_picked is not None]
    if beforehand:
        said.append(
            "The same within folds beside the modality that the other folds pick, as one could have, on "
            f"{len(beforehand)} tasks: worse on {_named(beforehand, _over_picked, 'worse')}; below on "
            f"{_named(beforehand, _over_picked, 'below')}."
        )
    return said


def _circumstances(lines: Sequence[Line]) -> list[str]:
    """Where a model that never looks at the patient does as well: a bias of the collection."""
    lines = [line for line in lines if line.circumstances]
    if not lines:
        return []
    ahead = [
        (line, arm, auroc, gap)
        for line in lines
        for arm, auroc, gap in line.circumstances
        if gap.verdict in ("below", "worse")
    ]
    named = "; ".join(
        f"{line}: *{arm}* {auroc}, fused {line.fused.split()[0]}, the difference {gap.said}"
        for line, arm, auroc, gap in ahead
    )
    beyond = sum(gap.verdict == "worse" for *_, gap in ahead)
    tasks = len({str(line) for line, *_ in ahead})
    return [
        "- **How and where a picture was taken**, without a look at the patient, ranks better than the fused "
        f"model, point by point, on {tasks or 'none'} of {len(lines)} tasks where it varies"
        f"{f' ({named})' if named else ''}; beyond chance on {beyond or 'none'}."
    ]


def _over_boosting(line: Line) -> str:
    """The bar of the stays: all fields stand in their series, so that one row of all is the series."""
    gap = line.over_boosting
    return "" if gap is None else f" Fused − boosting on the 48 h series: {gap.said}, {_loud(gap)}."


def _patterns(told: Sequence[tuple[str, str]], begin: str) -> list[str]:
    if not told:
        return []
    worse = sum(int(count) for count, _ in told if count != "none")
    return [
        f"- {begin} every pattern of two present modalities or more, in the {len(told)} tables of three "
        f"modalities: worse in {worse or 'none'} of {sum(int(of) for _, of in told)}."
    ]


def _within(line: Line) -> str:
    return line.within.verdict if line.within is not None else ""


def _over_picked(line: Line) -> str:
    return line.over_picked.verdict if line.over_picked is not None else ""


def _met(is_met: bool) -> str:
    return "reached" if is_met else "**missed**"


def _named(lines: Sequence[Line], of: Callable[[Line], str], verdict: str) -> str:
    found = [str(line) for line in lines if of(line) == verdict]
    return f"{len(found)} of {len(lines)} ({'; '.join(found)})" if found else f"none of {len(lines)}"


def _loud(gap: Gap) -> str:
    return f"**{gap.verdict}**" if gap.verdict in ("better", "worse") else gap.verdict
