"""Risk over time, as a chart: see `web.charts`. Over a long gap, or between two models, nothing is joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from django.utils import timezone

from web import words
from web.charts import Chart, Line, Mark, Tick, path

STEPS_H = (1, 2, 3, 6, 12, 24, 48, 24 * 7, 24 * 30, 24 * 365)


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """One score in time; `at` is the moment it speaks of."""

    at: datetime
    risk: float
    low: float
    high: float
    label: str = ""  # the model's, to mark a change of model
    category: str = ""


def trend(points: Sequence[TrendPoint], cuts: Sequence[tuple[str, float]], *, gap: timedelta) -> Chart:
    """Risk over time with its interval; over a `gap`, or between two models, nothing is joined."""
    width, height = 640.0, 230.0
    plot = (56.0, 14.0, 628.0, 196.0)
    first, last = points[0].at, points[-1].at
    seconds = max((last - first).total_seconds(), 1.0)
    single = len(points) == 1
    top = _nice_top(max(point.high for point in points))

    def x_of(at: datetime) -> float:
        share = 0.5 if single else (at - first).total_seconds() / seconds
        return plot[0] + 8 + share * (plot[2] - plot[0] - 16)

    def y_of(value: float) -> float:
        return plot[3] - value / top * (plot[3] - plot[1])

    lines: list[Line] = []
    for run in _unbroken(points, gap):
        if len(run) > 1:
            band = [(x_of(p.at), y_of(p.high)) for p in run] + [
                (x_of(p.at), y_of(p.low)) for p in reversed(run)
            ]
            lines.append(Line(path(band, close=True), "band"))
            lines.append(Line(path([(x_of(p.at), y_of(p.risk)) for p in run]), "line"))
        else:
            x = x_of(run[0].at)
            lines.append(Line(path([(x, y_of(run[0].low)), (x, y_of(run[0].high))]), "whisker"))
    for name, cut in cuts:
        if 0 < cut < top:
            lines.append(Line(path([(plot[0], y_of(cut)), (plot[2], y_of(cut))]), f"cut cut-{name}"))
    marks = [
        Mark(x_of(p.at), y_of(p.risk), f"{_clock(p.at)}: {words.percent(p.risk)}", p.category) for p in points
    ]
    for earlier, later in pairwise(points):
        if earlier.label != later.label:
            x = x_of(later.at)
            lines.append(Line(path([(x, plot[1]), (x, plot[3])]), "model-change"))
    return Chart(
        width, height, plot, _trend_sentence(points), "", "Risk",
        x_ticks=_time_ticks(points, x_of),
        y_ticks=tuple(Tick(y_of(top * i / 4), words.percent(top * i / 4), i % 2 == 1) for i in range(5)),
        lines=tuple(lines), marks=tuple(marks),
        headings=("Time", "Risk", "Interval", "Category", "Model"),
        rows=tuple(
            (_clock(p.at), words.percent(p.risk), f"{words.percent(p.low)} to {words.percent(p.high)}",
             words.CATEGORIES.get(p.category, p.category), p.label)
            for p in reversed(points)
        ),
    )  # fmt: skip


def _unbroken(points: Sequence[TrendPoint], gap: timedelta) -> list[list[TrendPoint]]:
    runs: list[list[TrendPoint]] = [[points[0]]]
    for earlier, later in pairwise(points):
        if later.at - earlier.at > gap or earlier.label != later.label:
            runs.append([])
        runs[-1].append(later)
    return runs


def _nice_top(highest: float) -> float:
    return next(top for top in (0.04, 0.08, 0.2, 0.4, 0.6, 0.8, 1.0) if top >= min(highest, 1.0))


def _clock(at: datetime) -> str:
    local = timezone.localtime(at)
    return local.strftime("%-d %b %Y, %H:%M")


def _time_ticks(points: Sequence[TrendPoint], x_of: Callable[[datetime], float]) -> tuple[Tick, ...]:
    """At whole hours or midnights of local time, at most seven; a midnight is written as its day."""
    first, last = timezone.localtime(points[0].at), timezone.localtime(points[-1].at)
    hours = (last - first).total_seconds() / 3600
    if hours < 1:
        return (Tick(x_of(first), _clock(first)),)
    step = next((step for step in STEPS_H if hours / step <= 6), STEPS_H[-1])
    at = first.replace(hour=0, minute=0, second=0, microsecond=0)
    ticks: list[Tick] = []
    while at <= last:
        if at >= first:
            midnight = at.hour == 0
            text = at.strftime("%-d %b") if midnight else at.strftime("%H:%M")
            ticks.append(Tick(x_of(at), text, not midnight if step < 24 else len(ticks) % 2 == 1))
        at += timedelta(hours=step)
    return tuple(ticks)


def _trend_sentence(points: Sequence[TrendPoint]) -> str:
    first, last = points[0], points[-1]
    if len(points) == 1:
        return f"One score so far: {words.percent(last.risk)} at {_clock(last.at)}."
    change = last.risk - first.risk
    verb = "rose" if change > 0.005 else "fell" if change < -0.005 else "stayed"
    if verb == "stayed":
        return (
            f"The estimate stayed at {words.percent(last.risk)} from {_clock(first.at)} to {_clock(last.at)}."
        )
    return (
        f"The estimate {verb} from {words.percent(first.risk)} at {_clock(first.at)} "
        f"to {words.percent(last.risk)} at {_clock(last.at)}."
    )
