"""Reading what `risk.monitoring` found: how a version's recent inputs compare with its training. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cds.registry.models import ModelVersion
from cds.risk.models import ShiftReport

WORDS = {"steady": "steady", "amber": "shifted", "red": "strongly shifted", "too few": "too few to say"}


@dataclass(frozen=True, slots=True)
class ShiftRow:
    """One input, then and now. band: steady | amber | red | too few; `psi` None where it is not known."""

    label: str
    psi: float | None
    missing_then: float | None
    missing_now: float | None
    band: str
    word: str


@dataclass(frozen=True, slots=True)
class ShiftView:
    """The newest report. `rows`: pictures first, then inputs, the shifted ones before the steady."""

    at: datetime
    scores: int
    rows: tuple[ShiftRow, ...]
    steady: int  # inputs that are not in `rows` because nothing is to be said of them
    pictures: str  # in words, "" without any


def newest_shift(version: ModelVersion, *, most: int = 12) -> ShiftView | None:
    """What was found last for a version; None while nothing has been compared."""
    report = ShiftReport.objects.filter(version=version).order_by("-at").first()
    if report is None:
        return None
    severity = {"red": 0, "amber": 1, "steady": 2, "too few": 3}
    inputs = sorted(report.inputs, key=lambda one: (severity[one["band"]], -(one["psi"] or 0.0)))
    shown = inputs[:most]
    rows = tuple(
        ShiftRow(
            f"{one['label']}{', course' if one['kind'] == 'channel' else ''}",
            one["psi"],
            one["missing_then"],
            one["missing_now"],
            one["band"],
            WORDS[one["band"]],
        )
        for one in shown
    )
    return ShiftView(report.at, report.scores, rows, len(inputs) - len(shown), _pictures(report))


def _pictures(report: ShiftReport) -> str:
    found = report.pictures
    if found is None:
        return ""
    if found["p"] is None:
        return f"Pictures: {found['pictures']} are too few to compare."
    how = "as chance would have it" if found["band"] == "steady" else f"{WORDS[found['band']]}"
    chance = "p < 0.0001" if found["p"] < 0.0001 else f"p = {found['p']:.4f}"
    return (
        f"Pictures: {how}. Means of {found['pictures']} pictures lie {found['effect']:.1f} "
        f"standard deviations from those of training ({chance})."
    )
