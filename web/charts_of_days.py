"""A share by day with its interval, as a chart: see `web.charts`. A day without answers stays a gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from web import words
from web.charts import Chart, Line, Mark, Tick, path

TICKS = 7


@dataclass(frozen=True, slots=True)
class DayShare:
    """`count` of `of` on one day, with the interval of the share."""

    day: date
    count: int
    of: int
    value: float
    low: float
    high: float


def shares(days: Sequence[DayShare], *, title: str, counted: str, of: str) -> Chart:
    """One dot with its whisker a day, 0 to 100 %. `counted` and `of` head the columns of the table.

    raises  ValueError without any day
    """
    if not days:
        raise ValueError("a chart needs at least one day")
    width, height, plot = 640.0, 200.0, (56.0, 12.0, 628.0, 162.0)
    first, span = days[0].day, max((days[-1].day - days[0].day).days, 1)

    def x_of(day: date) -> float:
        share = 0.5 if len(days) == 1 else (day - first).days / span
        return plot[0] + 12 + share * (plot[2] - plot[0] - 24)

    def y_of(value: float) -> float:
        return plot[3] - value * (plot[3] - plot[1])

    step = max(1, math.ceil(len(days) / TICKS))
    return Chart(
        width,
        height,
        plot,
        title,
        x_ticks=tuple(
            Tick(x_of(one.day), f"{one.day:%-d %b}", place % (2 * step) != 0)
            for place, one in enumerate(days)
            if place % step == 0
        ),
        y_ticks=tuple(Tick(y_of(p / 4), words.percent(p / 4), p % 2 == 1) for p in range(5)),
        lines=tuple(
            Line(path([(x_of(one.day), y_of(one.low)), (x_of(one.day), y_of(one.high))]), "whisker")
            for one in days
        ),
        marks=tuple(
            Mark(x_of(one.day), y_of(one.value), f"{one.day:%-d %b}: {one.count} of {one.of}") for one in days
        ),
        headings=("Day", counted, of, "Share", "95 % interval"),
        rows=tuple(
            (
                f"{one.day:%-d %b %Y}",
                str(one.count),
                str(one.of),
                words.percent(one.value),
                f"{words.percent(one.low)} to {words.percent(one.high)}",
            )
            for one in reversed(days)
        ),
    )
