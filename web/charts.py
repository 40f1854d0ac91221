"""Geometry of the charts: numbers in, SVG coordinates out. Drawn by the templates in web/charts/.

Every chart is made on the server, is an image with one sentence for those who do not see it, and has its
numbers as a table beside it. A gap in the data stays a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from web import words


@dataclass(frozen=True, slots=True)
class Tick:
    """A label on an axis, at `at` user units."""

    at: float
    text: str
    is_minor: bool = False  # left out on narrow screens


@dataclass(frozen=True, slots=True)
class Mark:
    """A dot with its words."""

    x: float
    y: float
    text: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    kind: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A path, `d` in SVG syntax."""

    d: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A frame with axes and what is drawn in it. `plot` is left, top, right, bottom of the inner area."""

    width: float
    height: float
    plot: tuple[float, float, float, float]
    title: str
    x_label: str = ""
    y_label: str = ""
    x_ticks: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()
    marks: tuple[Mark, ...] = ()
    headings: tuple[str, ...] = ()  # of the table twin
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def left(self) -> float:
        return self.plot[0]

    @property
    def top(self) -> float:
        return self.plot[1]

    @property
    def right(self) -> float:
        return self.plot[2]

    @property
    def bottom(self) -> float:
        return self.plot[3]


@dataclass(frozen=True, slots=True)
class Scale:
    """The risk on a line from 0 to 100 %: zones of the categories, interval, base rate, estimate."""

    zones: tuple[Bar, ...]
    interval: Bar
    base: float
    risk: float
    ticks: tuple[Tick, ...]


def path(points: Sequence[tuple[float, float]], *, close: bool = False) -> str:
    """`M x y L x y …` with one decimal."""
    if not points:
        return ""
    steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return steps + (" Z" if close else "")


def scale(risk: float, low: float, high: float, base_rate: float, cuts: Sequence[tuple[str, float]]) -> Scale:
    """`cuts` are (category, lowest risk of it), rising, the first at 0. 600 units are 100 %."""
    wide = 600.0
    bounds = [*(cut for _, cut in cuts), 1.0]
    zones = tuple(
        Bar(start * wide, 18, (end - start) * wide, 14, name)
        for (name, start), end in zip(cuts, bounds[1:], strict=True)
    )
    interval = Bar(low * wide, 9, max(2.0, (high - low) * wide), 32)
    ticks = tuple(
        Tick(p * wide, f"{p:.0%}".replace("%", " %"), p in {0.25, 0.75}) for p in (0, 0.25, 0.5, 0.75, 1)
    )
    return Scale(zones, interval, base_rate * wide, risk * wide, ticks)


def signed_bar(value: float, largest: float) -> Bar:
    """A bar to the right of the middle (raises) or to its left (lowers); 200 units wide, middle at 100."""
    length = 0.0 if largest <= 0 else abs(value) / largest * 96
    length = max(length, 1.0) if value else 0.0
    return Bar(100.0 if value >= 0 else 100.0 - length, 3, length, 12, "up" if value >= 0 else "down")


def sparkline(values: Sequence[tuple[float, float]]) -> str:
    """(hours before, value), any order → a path in 96 x 24 units; empty for fewer than two values."""
    ordered = sorted(values, key=lambda item: -item[0])
    if len(ordered) < 2:
        return ""
    hours, heights = [h for h, _ in ordered], [v for _, v in ordered]
    span, low, high = max(hours) - min(hours) or 1.0, min(heights), max(heights)
    return path(
        [
            (2 + (max(hours) - h) / span * 92, 12.0 if high == low else 22 - (v - low) / (high - low) * 20)
            for h, v in ordered
        ]
    )


def strip(weights: Sequence[float], *, has_peak: bool = True) -> tuple[Bar, ...]:
    """Attention over kept frames as bars, 400 x 44 units; the tallest is the largest weight."""
    largest = max(weights, default=0.0) or 1.0
    step = 400 / max(1, len(weights))
    return tuple(
        Bar(i * step + step * 0.1, 44 - max(1.5, w / largest * 42), step * 0.8, max(1.5, w / largest * 42),
            "peak" if has_peak and w == largest else "")
        for i, w in enumerate(weights)
    )  # fmt: skip


def unit_square(
    points: Sequence[Sequence[float]], *, title: str, x_label: str, y_label: str, diagonal: bool = False,
    level: float | None = None,
) -> Chart:  # fmt: skip
    """ROC and precision-recall: a curve in the unit square."""
    chart, x_of, y_of = _square(title, x_label, y_label)
    lines = [Line(path([(x_of(x), y_of(y)) for x, y in points]), "line")]
    if diagonal:
        lines.insert(0, Line(path([(x_of(0), y_of(0)), (x_of(1), y_of(1))]), "reference"))
    if level is not None:
        lines.insert(0, Line(path([(x_of(0), y_of(level)), (x_of(1), y_of(level))]), "reference"))
    rows = tuple((f"{x:.3f}", f"{y:.3f}") for x, y in _thinned(points, 60))
    return replace(chart, lines=tuple(lines), headings=(x_label, y_label), rows=rows)


def calibration(bins: Sequence[tuple[float, float, int]], *, title: str) -> Chart:
    """(mean predicted, observed, n) per bin, with a histogram of n along the bottom."""
    chart, x_of, y_of = _square(title, "Predicted risk", "Observed share")
    most = max((n for _, _, n in bins), default=1) or 1
    bars = tuple(
        Bar(x_of(mean) - 7, y_of(0) - n / most * 46, 14, n / most * 46, "count") for mean, _, n in bins
    )
    lines = (
        Line(path([(x_of(0), y_of(0)), (x_of(1), y_of(1))]), "reference"),
        Line(path([(x_of(mean), y_of(seen)) for mean, seen, _ in bins]), "line"),
    )
    marks = tuple(
        Mark(x_of(m), y_of(o), f"predicted {m:.0%}, observed {o:.0%}, {n} patients") for m, o, n in bins
    )
    rows = tuple((words.percent(m), words.percent(o), str(n)) for m, o, n in bins)
    return replace(
        chart, bars=bars, lines=lines, marks=marks,
        headings=("Predicted risk", "Observed share", "Patients"), rows=rows,
    )  # fmt: skip


def losses(history: Sequence[tuple[float, float | None, float | None]], *, title: str) -> Chart:
    """(epoch, training loss, tuning loss) as two lines."""
    width, height, plot = 640.0, 240.0, (54.0, 12.0, 628.0, 196.0)
    known = [v for _, *pair in history for v in pair if v is not None and math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    pad = (high - low) * 0.08 or 0.1
    low, high = low - pad, high + pad
    last = max(len(history) - 1, 1)

    def x_of(i: float) -> float:
        return plot[0] + i / last * (plot[2] - plot[0])

    def y_of(value: float) -> float:
        return plot[3] - (value - low) / (high - low) * (plot[3] - plot[1])

    lines = tuple(
        Line(path([(x_of(i), y_of(value)) for i, value in enumerate(column) if value is not None]), kind)
        for column, kind in (
            ([row[1] for row in history], "line train"),
            ([row[2] for row in history], "line tuning"),
        )
    )
    step = max(1, math.ceil(len(history) / 8))
    return Chart(
        width,
        height,
        plot,
        title,
        "Epoch",
        "Loss",
        x_ticks=tuple(
            Tick(x_of(i), f"{history[i][0]:.0f}", i % (2 * step) != 0) for i in range(0, len(history), step)
        ),
        y_ticks=tuple(
            Tick(y_of(low + (high - low) * i / 4), f"{low + (high - low) * i / 4:.3f}", i % 2 == 1)
            for i in range(5)
        ),
        lines=tuple(line for line in lines if line.d),
        headings=("Epoch", "Training loss", "Tuning loss"),
        rows=tuple(
            (f"{epoch:.0f}", *("–" if v is None else f"{v:.4f}" for v in pair)) for epoch, *pair in history
        ),
    )


@dataclass(frozen=True, slots=True)
class Interval:
    """A dot with its whisker on a line from `low_end` to 1, 200 units wide: AUROC with its 95 % interval."""

    low: float
    value: float
    high: float


def interval(value: float, low: float, high: float, *, low_end: float = 0.3) -> Interval:
    """Positions on a 200-unit line from `low_end` to 1."""

    def at(v: float) -> float:
        return max(0.0, min(1.0, (v - low_end) / (1 - low_end))) * 190 + 5

    return Interval(at(low), at(value), at(high))


def _square(
    title: str, x_label: str, y_label: str
) -> tuple[Chart, Callable[[float], float], Callable[[float], float]]:
    left, top, right, bottom = 48.0, 10.0, 348.0, 310.0

    def x_of(value: float) -> float:
        return left + value * (right - left)

    def y_of(value: float) -> float:
        return bottom - value * (bottom - top)

    at = (0, 0.25, 0.5, 0.75, 1.0)
    chart = Chart(
        360,
        356,
        (left, top, right, bottom),
        title,
        x_label,
        y_label,
        x_ticks=tuple(Tick(x_of(v), f"{v:g}") for v in at),
        y_ticks=tuple(Tick(y_of(v), f"{v:g}") for v in at),
    )
    return chart, x_of, y_of


def _thinned(points: Sequence[Sequence[float]], most: int) -> list[Sequence[float]]:
    step = max(1, math.ceil(len(points) / most))
    kept = list(points[::step])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept
