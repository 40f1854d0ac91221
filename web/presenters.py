"""From what the clinic says (`cds.risk.seen`) to what the panel draws: words, bars, charts. No database here.

Numbers are never changed on the way: what is rounded for reading is beside its exact value in the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings

from cds import catalogue
from cds.registry.outcomes import OUTCOMES
from cds.risk import thresholds
from cds.risk.responding import GRACE, UNDO_WITHIN
from cds.risk.seen import DriverView, ImageView, MeasurementView, NoteHit, OutcomePanel, Panel, ResponseView
from cds.risk.standing import DataState
from web import charts, colours, words

USES = {"tabular": "latest value", "series": "course"}
TOP_UP, TOP_DOWN = 5, 3
AREAS = ("insertion", "deletion", "random_insertion", "random_deletion")
UNEXPLAINED = 0.0005  # a remainder of half a tenth of a point is rounding
SCOREABLE = {
    DataState.ABSTAINED: "A number appears as soon as the reason above no longer holds and new data arrive.",
    DataState.NOT_ELIGIBLE: "The question this model answers does not arise here.",
    DataState.FAILED: "Nothing is known about the risk. Trying again is safe.",
    DataState.UPDATING: "It appears here by itself.",
}


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


@dataclass(frozen=True, slots=True)
class StripView:
    """Attention over the frames a cine model kept."""

    bars: tuple[charts.Bar, ...]
    rows: tuple[tuple[int, str], ...]  # frame number from 1, share
    kept: str  # indices joined by commas
    peak: int  # index of the frame with the largest weight


@dataclass(frozen=True, slots=True)
class PictureView:
    """A Series in the viewer or the player."""

    image: ImageView
    title: str
    label: str
    facts: tuple[str, ...]
    sanity: str
    strip: StripView | None
    scale_mm: float | None  # millimetres across the picture's width


@dataclass(frozen=True, slots=True)
class MeasurementRow:
    """A size measured in a picture, in words. outside: "above" or "below" the usual range, or ""."""

    seen: MeasurementView
    value: str
    usual: str
    outside: str
    confidence: str
    change: str


@dataclass(frozen=True, slots=True)
class Tab:
    """One outcome among several."""

    outcome: str
    title: str
    category: str
    word: str
    percent: str
    current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeView:
    """One outcome, drawn."""

    seen: OutcomePanel
    title: str
    horizon: str
    level: str
    sentence: str
    is_stale: bool
    scale: charts.Scale | None
    cuts: tuple[tuple[str, float], ...]
    trend: charts.Chart | None
    trend_changes_model: bool
    contributions: tuple[ContributionRow, ...]
    absent: tuple[ContributionRow, ...]
    remainder: str  # points not attributed to any evidence, "" when they sum
    up: tuple[DriverRow, ...]
    down: tuple[DriverRow, ...]
    more: tuple[DriverRow, ...]
    notes: tuple[NoteHit, ...]
    picture: PictureView | None
    other_pictures: tuple[PictureView, ...]
    cine: PictureView | None
    other_cines: tuple[PictureView, ...]
    measurements: tuple[MeasurementRow, ...]
    undo: ResponseView | None  # an answer the viewer may still take back
    undo_ms: int
    what_then: str
    imaging_key: str  # changes when there is something new to look at


@dataclass(frozen=True, slots=True)
class PanelView:
    """The panel: the tabs, and the outcome chosen."""

    tabs: tuple[Tab, ...]
    outcome: OutcomeView | None
    ramp: tuple[str, ...]


def panel(seen: Panel, *, outcome: str, series_id: str, viewer_name: str, now: datetime) -> PanelView:
    """`outcome` and `series_id` as asked for; the most severe outcome first when none is."""
    if not seen.outcomes:
        return PanelView((), None, ())
    ordered = sorted(seen.outcomes, key=_severity, reverse=True)
    chosen = next((one for one in ordered if one.outcome == outcome), ordered[0])
    tabs = tuple(
        Tab(
            one.outcome,
            words.outcome(one.outcome),
            one.answer.category if one.answer else "",
            one.answer.category_word if one.answer else "Not scored",
            words.percent(one.answer.risk) if one.answer else "",
            one is chosen,
        )
        for one in ordered
    )
    return PanelView(tabs, _outcome(chosen, series_id, viewer_name, now), tuple(colours.ramp()))


def cuts(outcome: str) -> tuple[tuple[str, float], ...]:
    """(category, lowest risk of it), rising."""
    policy = thresholds.POLICIES.get(outcome, thresholds.DEFAULT)
    return (
        ("low", 0.0),
        ("moderate", policy.moderate),
        ("high", policy.high),
        ("very-high", policy.very_high),
    )


def _severity(one: OutcomePanel) -> tuple[int, float]:
    if one.answer is None:
        return (-1, 0.0)
    return (thresholds.SEVERITY[one.answer.category], one.answer.risk)


def _outcome(seen: OutcomePanel, series_id: str, viewer_name: str, now: datetime) -> OutcomeView:
    answer = seen.answer
    bounds = cuts(seen.outcome)
    contributions, absent, remainder = _contributions(seen)
    up, down, more = _drivers(seen)
    picture, other_pictures = _pictures(seen.images, series_id)
    cine, other_cines = _pictures(seen.cines, series_id)
    undo, left = _undo(seen, viewer_name, now)
    return OutcomeView(
        seen=seen,
        title=words.outcome(seen.outcome),
        horizon=words.horizon(seen.horizon_hours),
        level=f"{answer.level:.0%}".replace("%", " %") if answer else "",
        sentence=_sentence(seen),
        is_stale=seen.state == DataState.STALE,
        scale=charts.scale(answer.risk, answer.low, answer.high, answer.base_rate, bounds)
        if answer
        else None,
        cuts=bounds,
        trend=_trend(seen, bounds),
        trend_changes_model=any(point.new_version for point in seen.trend),
        contributions=contributions,
        absent=absent,
        remainder=remainder,
        up=up,
        down=down,
        more=more,
        notes=tuple(sorted(seen.notes, key=lambda hit: -abs(hit.points))[:6]),
        picture=picture,
        other_pictures=other_pictures,
        cine=cine,
        other_cines=other_cines,
        measurements=tuple(_measurement(one) for one in seen.measurements),
        undo=undo,
        undo_ms=left,
        what_then=SCOREABLE.get(seen.state, ""),
        imaging_key=_imaging_key(seen),
    )


def _sentence(seen: OutcomePanel) -> str:
    """ "23 in 100 patients like this …": never "0 in 100" or "100 in 100", which would be certainty."""
    if seen.answer is None:
        return ""
    spec = OUTCOMES.get(seen.outcome)
    return (
        f"{words.in_hundred(seen.answer.risk)} patients like this {spec.phrase}"
        if spec
        else seen.answer.sentence
    )


def _trend(seen: OutcomePanel, bounds: Sequence[tuple[str, float]]) -> charts.Chart | None:
    points = [
        charts.TrendPoint(
            p.at, p.risk, p.low, p.high, p.version_label, thresholds.category_of(seen.outcome, p.risk).value
        )
        for p in seen.trend
    ]
    gap = timedelta(seconds=3 * settings.SCORE_INTERVAL_S)
    return charts.trend(points, bounds, gap=gap) if len(points) > 1 else None


def _contributions(
    seen: OutcomePanel,
) -> tuple[tuple[ContributionRow, ...], tuple[ContributionRow, ...], str]:
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


def _drivers(
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


def _pictures(
    images: Sequence[ImageView], series_id: str
) -> tuple[PictureView | None, tuple[PictureView, ...]]:
    if not images:
        return None, ()
    by_use = sorted(images, key=lambda image: not image.used)  # stable: newest first within each
    chosen = next((image for image in images if image.series_id == series_id), by_use[0])
    return _picture(chosen), tuple(_picture(image) for image in by_use if image is not chosen)


def _measurement(one: MeasurementView) -> MeasurementRow:
    unit = words.unit(one.unit)
    low, high = one.reference
    usual, outside = "–", ""
    if low is not None and high is not None:
        usual = f"{words.figure(low)} to {words.figure(high)}"
    elif high is not None:
        usual = f"up to {words.figure(high)}"
    elif low is not None:
        usual = f"from {words.figure(low)}"
    if one.value is not None:
        is_above, is_below = high is not None and one.value > high, low is not None and one.value < low
        outside = "above" if is_above else "below" if is_below else ""
    change = ""
    if one.value is not None and one.earlier:
        change = f"{words.signed_percent(100 * (one.value - one.earlier) / one.earlier)} since"
    return MeasurementRow(
        seen=one,
        value=f"{words.size(one.value, one.unit)} {unit}".strip() if one.value is not None else "not known",
        usual=usual,
        outside=outside,
        confidence=words.percent(one.confidence) if one.confidence is not None else "",
        change=change,
    )


def _picture(image: ImageView) -> PictureView:
    kind = {"CR": "Radiograph", "DX": "Radiograph", "US": "Ultrasound", "CT": "CT", "MR": "MR"}.get(
        image.imaging_modality, image.imaging_modality or "Image"
    )
    title = " · ".join(part for part in (kind, image.body_part.capitalize(), image.view) if part)
    facts = [
        f"{image.columns} × {image.rows} pixels",
        f"laterality {image.laterality}" if image.laterality else "",
        f"{image.spacing_row_mm:.3g} mm a pixel" if image.spacing_row_mm else "pixel size unknown",
        *image.remarks,
        "" if image.used else f"not used for this score{f': {image.left_out}' if image.left_out else ''}",
    ]
    moving = f", cine of {image.frames} frames" if image.is_cine else ""
    return PictureView(
        image=image,
        title=title,
        label=f"{title}{moving}",
        facts=tuple(fact for fact in facts if fact),
        sanity=_sanity(image),
        strip=_strip(image),
        scale_mm=image.spacing_row_mm * image.columns if image.spacing_row_mm else None,
    )


def _sanity(image: ImageView) -> str:
    """What the map was asked, in a sentence: whether to rely on it, then the figures behind that."""
    held = image.heat_map
    if held is None or held.passed is None:
        return "Not checked against a random model."
    if not held.passed:
        why = str(held.sanity.get("why") or "it looks like that of a random model")
        said = f"Do not rely on this map: {why}."
    else:
        said = "It differs from that of a random model, as it should."
    if "insertion" not in held.sanity:
        return said
    shown = {name: float(str(held.sanity[name])) for name in AREAS}
    if held.passed:
        said += " The places it marks matter more than places drawn at random."
    return (
        f"{said} It shows where the picture {held.sanity.get('direction', 'raises')} the estimate. "
        f"Mean estimate with its places given back first {shown['insertion']:.2f} "
        f"(random places {shown['random_insertion']:.2f}), taken away first {shown['deletion']:.2f} "
        f"(random places {shown['random_deletion']:.2f})."
    )


def _strip(image: ImageView) -> StripView | None:
    if not image.weights:
        return None
    weights = [weight for _, weight in image.weights]
    peak = max(image.weights, key=lambda pair: pair[1])[0]
    return StripView(
        bars=charts.strip(weights),
        rows=tuple((index + 1, f"{weight * 100:.1f} %") for index, weight in image.weights),
        kept=",".join(str(index) for index, _ in image.weights),
        peak=peak,
    )


def _undo(seen: OutcomePanel, viewer_name: str, now: datetime) -> tuple[ResponseView | None, int]:
    """An answer of the viewer's own that is young enough to be taken back, and for how long (ms)."""
    latest = seen.response
    if latest is None or latest.by != viewer_name or latest.via != "panel":
        return None, 0
    left = latest.at + UNDO_WITHIN + GRACE - now
    return (latest, int(left.total_seconds() * 1000)) if left > timedelta(0) else (None, 0)


def _imaging_key(seen: OutcomePanel) -> str:
    parts = [
        f"{image.series_id}:{image.heat_map.heat_map_id if image.heat_map else ''}:{len(image.weights)}"
        for image in (*seen.images, *seen.cines)
    ]
    return "|".join(parts)
