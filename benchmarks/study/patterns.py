"""Every pattern of present modalities: is the fused model ever worse than the best modality in it?

Asked by hiding the others from all patients alike (`fusion.predict.risks(only=…)`); one who lacks all that is
left has the base rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from benchmarks.study import comparing
from benchmarks.study.folds import Floats, Heard
from fusion import Modality

ONLY, AND = " only", " + "
SAID = "Worse than the best modality present, the interval excluding 0: "
SAID_PICKED = "Worse than the one picked beforehand, the interval excluding 0: "
HEAD = (
    "| present | AUROC | best modality present | fused − it | within folds: fused − it | "
    "within folds: fused − one picked beforehand |",
    "| --- | --- | --- | --- | --- | --- |",
)


def parts_of(modalities: Sequence[Modality]) -> list[tuple[Modality, ...]]:
    """Every pattern but the empty and the full one, small ones first."""
    return [left for size in range(1, len(modalities)) for left in combinations(modalities, size)]


def called(arm: str, left: Sequence[Modality]) -> str:
    """What a fused arm is called when it hears these modalities and no others."""
    names = AND.join(modality.value for modality in left)
    return f"{arm}: {names}{ONLY if len(left) == 1 else ''}"


def is_alone(arm: str) -> bool:
    """Whether that arm is a fused one which hears a single modality."""
    return ": " in arm and arm.endswith(ONLY)


def is_part(arm: str) -> bool:
    """Whether that arm is a fused one which hears several modalities, but not all."""
    return ": " in arm and AND in arm.split(": ", 1)[1]


def table(heard: Heard, found: Mapping[str, Floats], weights: Floats, arm: str) -> list[str]:
    """Markdown of one fused arm, with an empty line after it; nothing for one of fewer than three modalities.

    found  arm → AUROC [repeats, 1 + draws]
    """
    told = [a for a in found if a.startswith(f"{arm}: ")]
    alone = {a.removeprefix(f"{arm}: ").removesuffix(ONLY): a for a in told if is_alone(a)}
    if len(alone) < 3:
        return []
    asked = {a.removeprefix(f"{arm}: "): a for a in told if is_part(a)} | {AND.join(alone): arm}
    lines, worse, worse_than_picked = [], [], []
    for present, which in asked.items():
        either = [one for name in present.split(AND) for one in (alone[name], f"stack: {name}")]
        among = [one for one in either if one in found]
        best = _best(found, which, among)
        gap = comparing.difference(found[which], found[best])
        inside = comparing.within_folds(heard, which, weights)
        over_best = comparing.difference(inside, comparing.within_folds(heard, best, weights))
        over_picked = comparing.difference(inside, comparing.picked(heard, among, weights))
        worse += [present] if gap.high < 0 else []
        worse_than_picked += [present] if over_picked.high < 0 else []
        lines.append(
            f"| {present} | {comparing.interval(found[which])} | {best} | {gap.signed} | {over_best.signed} "
            f"| {over_picked.signed} |"
        )
    return [
        f"Every pattern of present modalities, *{arm}* (best: of either recipe, picked on these folds; "
        "picked beforehand: for each fold, the best within the others):",
        "",
        *HEAD,
        *lines,
        "",
        f"{SAID}{_counted(worse, len(lines))}.",
        "",
        f"{SAID_PICKED}{_counted(worse_than_picked, len(lines))}.",
        "",
    ]


def _best(found: Mapping[str, Floats], which: str, alone: Sequence[str]) -> str:
    """The arm of one modality with the highest AUROC in the repeats that `which` ran in."""
    return max(alone, key=lambda arm: found[arm][: len(found[which]), 0].mean())


def _counted(patterns: Sequence[str], of: int) -> str:
    return f"{len(patterns)} of {of} ({'; '.join(patterns)})" if patterns else f"none of {of}"
