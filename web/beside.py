"""One version beside another: what each was measured to do, and how far apart where that can be told."""

from __future__ import annotations

from dataclasses import dataclass

from cds.registry import queries
from cds.registry.models import ModelVersion
from web import reports


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
        )
        for outcome in reports.read(version)
        if outcome.outcome in measured
    )


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
