"""One version beside another: what each was measured to do, and how far apart where that can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cds.registry import queries
from cds.registry.models import ModelVersion
from web import reports

SCORES = {"auroc": ("AUROC", 1), "brier": ("Brier score", -1)}  # key → title, sign of what is better


@dataclass(frozen=True, slots=True)
class Paired:
    """Both versions asked about the same patients, whom neither has learned from, when one of them was made.

    rows  title, by how much this version is above the other, the interval of that, what it means
    note  why there are none
    """

    patients: str
    rows: tuple[tuple[str, str, str, str], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Beside:
    """One outcome of a version beside another version's: title → its figure, the other's, how far apart.

    patients    whose figures they are, in words: only those of the same moments can be compared
    """

    outcome: str
    title: str
    other: ModelVersion
    patients: str
    are_same: bool
    rows: tuple[tuple[str, reports.Figure, reports.Figure, str], ...]
    paired: Paired | None = None


def beside(version: ModelVersion, other: ModelVersion) -> tuple[Beside, ...]:
    """Every outcome both were measured for. How far apart is told for figures of the same moments only."""
    ours, theirs = queries.held_out_of([version, other])
    are_same = bool(ours) and ours == theirs
    said = _whose(ours, theirs)
    measured = {outcome.outcome: outcome for outcome in reports.read(other)}
    return tuple(
        Beside(
            outcome=outcome.outcome,
            title=outcome.title,
            other=other,
            patients=said,
            are_same=are_same,
            rows=tuple(
                (mine.title, mine, its, _apart(mine.text, its.text) if are_same else "")
                for mine, its in zip(outcome.figures, measured[outcome.outcome].figures, strict=True)
            ),
            paired=_paired(version, other, outcome.outcome),
        )
        for outcome in reports.read(version)
        if outcome.outcome in measured
    )


def _paired(version: ModelVersion, other: ModelVersion, outcome: str) -> Paired | None:
    """As the later of the two was asked beside the earlier, which was in use then; None if it was not."""
    for one, than, sign in ((version, other, 1), (other, version, -1)):
        for told in one.report.get("beside_active", ()):
            if told.get("version") == str(than.pk):
                said = told.get("outcomes", {}).get(outcome)
                return _read(said, sign) if said else Paired("", (), str(told.get("note", "")))
    return None


def _read(said: Mapping[str, Any], sign: int) -> Paired:
    rows = tuple(
        (title, *_difference(said.get(key) or {}, sign, sign * better))
        for key, (title, better) in SCORES.items()
    )
    return Paired(f"{said['n']} moments of {said['patients']} patients, {said['events']} events", rows)


def _difference(found: Mapping[str, float | None], sign: int, better: int) -> tuple[str, str, str]:
    """The difference, its interval, what it means. better: the sign of a stored difference that is good."""
    value, low, high = (found.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "–", "", "not known: one answer only"
    if low is None or high is None:
        return _signed(sign * value), "", "too few patients for an interval"
    ends = sorted((sign * low, sign * high))
    if low <= 0 <= high:
        meaning = "may be chance"
    else:
        meaning = "better, beyond chance" if value * better > 0 else "worse, beyond chance"
    return _signed(sign * value), f"{_signed(ends[0])} to {_signed(ends[1])}", meaning


def _signed(value: float) -> str:
    return "0.000" if not round(value, 3) else f"{value:+.3f}".replace("-", "−")


def _whose(ours: set[tuple[object, object]], theirs: set[tuple[object, object]]) -> str:
    if not ours or not theirs:
        return "On whom one of them was measured is not known: a difference may come from other patients."
    if ours == theirs:
        return (
            "Both were measured on the same patients at the same moments, which neither learned from. Each "
            "interval is of one version alone: where they overlap, the difference may be chance."
        )
    return (
        f"Not measured on the same patients: {len(ours & theirs)} of the moments held out are the same, of "
        f"{len(ours)} and {len(theirs)}. A difference may come from the patients and not from the model."
    )


def _apart(mine: str, its: str) -> str:
    try:
        a, b = (float(text.replace("−", "-")) for text in (mine, its))
    except ValueError:
        return ""
    shown = f"{a - b:+.{len(mine.partition('.')[2])}f}".replace("-", "−")
    return shown.lstrip("+−") if not float(shown.replace("−", "-")) else shown
