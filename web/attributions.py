"""What raises and lowers a risk, as the panel draws it: contributions of the modalities, drivers one by one.

Numbers are never changed on the way: what is rounded for reading is beside its exact value in the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cds import catalogue
from cds.risk.seen import DriverView, OutcomePanel
from web import charts, words

USES = {"tabular": "latest value", "series": "course"}
TOP_UP, TOP_DOWN = 5, 3
UNEXPLAINED = 0.0005  # a remainder of half a tenth of a point is rounding


@dataclass(frozen=True, slots=True)
class ContributionRow:
    """One kind of evidence. `points` in percentage points as text; `exact` as stored."""

    modality: str
    label: str
    points: str
    exact: float
    bar: charts.Bar
    note: str = ""


@dataclass(frozen=True, slots=True)
class DriverRow:
    """One quantity with its source values. One that is used twice (latest value, course) is one row.

    parts  how the two uses share the points, "" for one use
    """

    label: str
    value: str
    reference: str
    outside: str  # "above" or "below" the reference range, or ""
    points: str
    exact: float
    bar: charts.Bar
    spark: str
    driver: DriverView
    parts: str = ""


def contributions(
    seen: OutcomePanel,
) -> tuple[tuple[ContributionRow, ...], tuple[ContributionRow, ...], str]:
    """Those of evidence that is there, those of evidence that is absent, and the remainder, "" for none."""
    largest = max((abs(one.points) for one in seen.contributions), default=0.0)
    rows = [
        ContributionRow(
            one.modality,
            one.label,
            words.points(one.points),
            one.points,
            charts.signed_bar(one.points, largest),
            one.note,
        )
        for one in seen.contributions
    ]
    held = {one.modality for one in seen.contributions if one.present or one.points}
    present = tuple(row for row in rows if row.modality in held)
    absent = tuple(row for row in rows if row.modality not in held)
    if seen.answer is None or not present:
        return present, absent, ""
    left = seen.answer.risk - seen.answer.base_rate - sum(row.exact for row in rows)
    return present, absent, words.points(left) if abs(left) > UNEXPLAINED else ""


def drivers(
    seen: OutcomePanel,
) -> tuple[tuple[DriverRow, ...], tuple[DriverRow, ...], tuple[DriverRow, ...]]:
    """Top raising, top lowering, and the rest, strongest first."""
    groups: dict[str, list[DriverView]] = {}
    for one in seen.drivers:
        groups.setdefault(one.name, []).append(one)
    largest = max((abs(sum(one.points for one in group)) for group in groups.values()), default=0.0)
    rows = [_driver(group, largest, seen.as_of) for group in groups.values()]
    rows.sort(key=lambda row: -abs(row.exact))
    up = [row for row in rows if row.exact >= UNEXPLAINED][:TOP_UP]
    down = [row for row in rows if row.exact <= -UNEXPLAINED][:TOP_DOWN]
    shown = {id(row) for row in (*up, *down)}
    return tuple(up), tuple(down), tuple(row for row in rows if id(row) not in shown)


def _driver(group: Sequence[DriverView], largest: float, as_of: datetime | None) -> DriverRow:
    one = next((part for part in group if part.value is not None), group[0])
    total = sum(part.points for part in group)
    outside = ""
    if one.value is not None and one.reference_high is not None and one.value > one.reference_high:
        outside = "above"
    elif one.value is not None and one.reference_low is not None and one.value < one.reference_low:
        outside = "below"
    origin = as_of or max((raw.at for raw in one.raw), default=None)
    spark = ""
    if origin is not None:
        spark = charts.sparkline([((origin - raw.at).total_seconds() / 3600, raw.value) for raw in one.raw])
    parts = ", ".join(
        f"{USES.get(p.modality, words.modality(p.modality))} {words.points(p.points)}" for p in group
    )
    return DriverRow(
        one.label, _value(one), _range(one), outside, words.points(total), total,
        charts.signed_bar(total, largest), spark, one, parts if len(group) > 1 else "",
    )  # fmt: skip


def _value(one: DriverView) -> str:
    if one.value is None:
        return "" if one.modality in {"image", "cine", "text"} else "not known"
    if one.unit == "a":
        return f"{math.floor(one.value)} years"
    return catalogue.value_in_words(one.name, one.value, one.unit)


def _range(one: DriverView) -> str:
    low, high, unit = one.reference_low, one.reference_high, words.unit(one.unit)
    if low is not None and high is not None:
        return f"{words.figure(low)} to {words.figure(high)} {unit}".strip()
    if high is not None:
        return f"up to {words.figure(high)} {unit}".strip()
    return f"from {words.figure(low)} {unit}".strip() if low is not None else ""
