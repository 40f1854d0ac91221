"""From what the clinic says (`cds.risk.seen`) to what the panel draws: words, bars, charts. No database here.

Numbers are never changed on the way: what is rounded for reading is beside its exact value in the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings

from cds.registry.outcomes import OUTCOMES
from cds.risk import thresholds
from cds.risk.responding import GRACE, UNDO_WITHIN
from cds.risk.seen import NoteHit, OutcomePanel, Panel, ResponseView
from cds.risk.standing import DataState
from web import attributions, charts, charts_of_risk, colours, imaging, words
from web.attributions import ContributionRow, DriverRow
from web.imaging import MeasurementRow, PictureView

SCOREABLE = {
    DataState.ABSTAINED: "A number appears as soon as the reason above no longer holds and new data arrive.",
    DataState.NOT_ELIGIBLE: "The question this model answers does not arise here.",
    DataState.FAILED: "Nothing is known about the risk. Trying again is safe.",
    DataState.UPDATING: "It appears here by itself.",
}
TOLD = {  # by `Response.kind`
    "acknowledged": "Acknowledged.",
    "overridden": "Your disagreement is recorded.",
    "snoozed": "Snoozed for four hours: no card for this score in the EHR, unless its category rises.",
    "undone": "Taken back.",
}


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
    told: str  # what the viewer was told of an answer they gave just now, "" for none
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
            one.answer.category_word if one.answer else _without_answer(one),
            words.percent(one.answer.risk) if one.answer else "",
            one is chosen,
        )
        for one in ordered
    )
    return PanelView(tabs, _outcome(chosen, series_id, viewer_name, now), tuple(colours.ramp()))


def _without_answer(one: OutcomePanel) -> str:
    return "Not yet known" if one.state == DataState.UPDATING else "Not scored"


def cuts(outcome: str) -> tuple[tuple[str, float], ...]:
    """(category, lowest risk of it), rising."""
    return tuple((category.value, bound) for category, bound in thresholds.bounds_of(outcome))


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """What holds for an outcome here: rows of word, range of risk, and what the policy says there."""

    label: str
    rows: tuple[tuple[str, str, str], ...]
    link: str


def site_policy(outcome: str) -> SitePolicy:
    """The bounds and texts of an outcome, as a table."""
    bounds = thresholds.bounds_of(outcome)
    ends = [low for _, low in bounds[1:]]
    rows = tuple(
        (
            thresholds.WORDS[category],
            f"below {end * 100:g} %" if not low else f"from {low * 100:g} %",
            thresholds.policy_text(outcome, category),
        )
        for (category, low), end in zip(bounds, [*ends, 1.0], strict=True)
    )
    spec = OUTCOMES.get(outcome)
    return SitePolicy(spec.label if spec else outcome, rows, thresholds.policy_link(outcome))


def _severity(one: OutcomePanel) -> tuple[int, float]:
    if one.answer is None:
        return (-1, 0.0)
    return (thresholds.SEVERITY[one.answer.category], one.answer.risk)


def _outcome(seen: OutcomePanel, series_id: str, viewer_name: str, now: datetime) -> OutcomeView:
    answer = seen.answer
    bounds = cuts(seen.outcome)
    contributions, absent, remainder = attributions.contributions(seen)
    up, down, more = attributions.drivers(seen)
    picture, other_pictures = imaging.pictures(seen.images, series_id)
    cine, other_cines = imaging.pictures(seen.cines, series_id)
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
        measurements=tuple(imaging.measurement(one) for one in seen.measurements),
        undo=undo,
        undo_ms=left,
        told=_told(seen, viewer_name, now),
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
        charts_of_risk.TrendPoint(
            p.at, p.risk, p.low, p.high, p.version_label, thresholds.category_of(seen.outcome, p.risk).value
        )
        for p in seen.trend
    ]
    gap = timedelta(seconds=3 * settings.SCORE_INTERVAL_S)
    return charts_of_risk.trend(points, bounds, gap=gap) if len(points) > 1 else None


def _undo(seen: OutcomePanel, viewer_name: str, now: datetime) -> tuple[ResponseView | None, int]:
    """An answer of the viewer's own that is young enough to be taken back, and for how long (ms)."""
    latest = seen.response
    if latest is None or latest.by != viewer_name or latest.via != "panel":
        return None, 0
    left = latest.at + UNDO_WITHIN + GRACE - now
    return (latest, int(left.total_seconds() * 1000)) if left > timedelta(0) else (None, 0)


def _told(seen: OutcomePanel, viewer_name: str, now: datetime) -> str:
    """It stays for some seconds: the answer itself is news, for which the card is fetched again at once."""
    newest = next(iter(seen.responses), None)
    is_own = newest is not None and newest.by == viewer_name and newest.via == "panel"
    return TOLD[newest.kind] if newest is not None and is_own and now - newest.at < UNDO_WITHIN else ""


def _imaging_key(seen: OutcomePanel) -> str:
    parts = [
        f"{image.series_id}:{image.heat_map.heat_map_id if image.heat_map else ''}:{len(image.weights)}"
        for image in (*seen.images, *seen.cines)
    ]
    return "|".join(parts)
