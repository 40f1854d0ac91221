"""From standings to cards: what the clinician reads inside the EHR.

A number always comes with its interval, category, horizon, average, moment and version. What is not known
gets a card of its own that says so: an empty answer would read as "low risk" (INTEROP 11). Text that comes
from a record or a model is escaped, so that it can never become markup.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.conf import settings
from django.utils import timezone

from cds.hooks.replies import SUMMARY_LIMIT, Card, Indicator, Link, OverrideReason, Source
from cds.patients.models import Patient
from cds.registry.outcomes import OUTCOMES
from cds.risk import responding, thresholds
from cds.risk.assessing import DataState, Standing
from cds.risk.models import RiskPrediction

DRIVERS_SHOWN = 3
FIELDS_SHOWN = 4
_UNITS = {"a": "years", "mm[Hg]": "mmHg", "Cel": "°C", "10*3/uL": "×10³/µL"}  # UCUM as clinicians write it
_MARKUP = re.compile(r"([\\`*_\[\]<>#|~!&:@{}])")


class CardKind(StrEnum):
    """What a card says; kept with the card, so that it can be counted."""

    RISK = "risk"
    NOT_YET_KNOWN = "not-yet-known"
    STALE = "stale"
    OUT_OF_SCOPE = "out-of-scope"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Shown:
    """A card, what it says, and the stored prediction it shows (None: it shows no number)."""

    kind: CardKind
    card: Card
    prediction: RiskPrediction | None = None


def cards_for(
    standings: Sequence[Standing],
    *,
    outcome: str,
    patient: Patient,
    now: datetime,
    not_supplied: tuple[str, ...] = (),
) -> list[Shown]:
    """One card per standing, about one outcome; never none for a standing.

    not_supplied  prefetch keys the EHR did not send whole
    """
    return [
        _card(standing, outcome=outcome, patient=patient, now=now, not_supplied=not_supplied)
        for standing in standings
    ]


def escape(text: object) -> str:
    """Text of others as Markdown that shows it literally, on one line; web addresses stay plain text."""
    line = " ".join(str(text).split())
    return _MARKUP.sub(r"\\\1", line).replace("www.", "www\\.")


def percent(share: float) -> str:
    """A probability in words of the screen; the ends are never rounded to certainty."""
    if 0 < share < 0.01:
        return "under 1 %"
    if 0.99 < share < 1:
        return "over 99 %"
    return f"{share * 100:.0f} %"


def _card(
    standing: Standing, *, outcome: str, patient: Patient, now: datetime, not_supplied: tuple[str, ...]
) -> Shown:
    prediction = _prediction(standing, outcome)
    label = OUTCOMES[outcome].label if outcome in OUTCOMES else outcome
    foot = _foot(standing, patient, not_supplied)
    state, reason = standing.state, standing.reason
    if prediction is not None and state in (DataState.CURRENT, DataState.PARTIAL):
        return _risk(standing, prediction, patient, now, foot)
    if prediction is not None and state in (DataState.STALE, DataState.UPDATING):
        return _stale(standing, prediction, patient, now, foot)
    if state is DataState.FAILED:
        kind, words = CardKind.FAILED, "could not be computed"
    elif state is DataState.ABSTAINED:
        kind, words = CardKind.OUT_OF_SCOPE, "not scored, outside what the model may judge"
    elif state in (DataState.NOT_ELIGIBLE, DataState.CURRENT, DataState.PARTIAL):
        kind, words = CardKind.OUT_OF_SCOPE, "not scored, the patient is not eligible"
        reason = reason or "the model gives no risk of this for this patient at present"
    else:
        kind, words = CardKind.NOT_YET_KNOWN, "not yet known"
    lines = ["**No risk is given. This is not a low risk.**", f"Reason: {escape(reason)}" if reason else ""]
    if kind is CardKind.NOT_YET_KNOWN:
        lines.append("Open the panel, or the chart again in a few seconds.")
    return _shown(kind, f"{label}: {words}", Indicator.INFO, standing, patient, [*lines, *foot])


def _risk(
    standing: Standing, prediction: RiskPrediction, patient: Patient, now: datetime, foot: list[str]
) -> Shown:
    category = thresholds.Category(prediction.category)
    severe = thresholds.SEVERITY[category.value] >= thresholds.SEVERITY[thresholds.Category.HIGH.value]
    word = thresholds.WORDS[category]
    summary = f"{word}: {percent(prediction.risk)} ({_interval(prediction)}) {_event(prediction)}"
    lines = [
        *_answer(prediction, word),
        _freshness(standing, now),
        *_drivers(prediction),
        *_missing(standing),
    ]
    if standing.state is DataState.PARTIAL:
        assessment = standing.assessment
        is_settled = assessment is not None and bool(assessment.left_out) and not assessment.pending
        lines.insert(1, f"{'Partial' if is_settled else 'Preliminary'}: {escape(standing.reason)}")
    if severe:
        lines.append(thresholds.policy_text(prediction.outcome))
    indicator = Indicator.WARNING if severe else Indicator.INFO
    return _shown(CardKind.RISK, summary, indicator, standing, patient, [*lines, *foot], prediction)


def _stale(
    standing: Standing, prediction: RiskPrediction, patient: Patient, now: datetime, foot: list[str]
) -> Shown:
    word = thresholds.WORDS[thresholds.Category(prediction.category)]
    summary = f"Stale: was {percent(prediction.risk)} ({word.lower()}) {_event(prediction)}"
    lines = [
        f"**This number is out of date:** {escape(standing.reason)}",
        *_answer(prediction, word),
        _freshness(standing, now),
        *_missing(standing),
    ]
    return _shown(CardKind.STALE, summary, Indicator.INFO, standing, patient, [*lines, *foot], prediction)


def _shown(
    kind: CardKind,
    summary: str,
    indicator: Indicator,
    standing: Standing,
    patient: Patient,
    lines: Iterable[str],
    prediction: RiskPrediction | None = None,
) -> Shown:
    version = standing.version
    card = Card(
        uuid=uuid.uuid4(),
        summary=_shortened(summary),
        indicator=indicator,
        source=Source(f"Tessera {version.label}", url=f"{settings.PUBLIC_URL}/models/{version.pk}"),
        detail="\n".join(f"- {line}" for line in lines if line),
        override_reasons=_override_reasons() if prediction is not None else (),
        links=(Link("Open the risk panel", f"{settings.PUBLIC_URL}/patients/{patient.pk}/risk"),),
    )
    return Shown(kind, card, prediction)


def _shortened(summary: str) -> str:
    longest = SUMMARY_LIMIT - 1
    return summary if len(summary) <= longest else summary[: longest - 1].rstrip() + "…"


def _prediction(standing: Standing, outcome: str) -> RiskPrediction | None:
    if standing.assessment is None:
        return None
    found: RiskPrediction | None = standing.assessment.predictions.filter(outcome=outcome).first()
    return found


def _event(prediction: RiskPrediction) -> str:
    return prediction.label[:1].lower() + prediction.label[1:]


def _interval(prediction: RiskPrediction) -> str:
    return f"{prediction.low * 100:.0f}–{prediction.high * 100:.0f} %"


def _answer(prediction: RiskPrediction, word: str) -> list[str]:
    label = prediction.label
    if "within" not in label:
        days = prediction.horizon_hours / 24
        label += f" within {days:.0f} days" if days >= 2 else f" within {prediction.horizon_hours:.0f} hours"
    return [
        f"**{percent(prediction.risk)}**, {word.lower()}: {escape(label)}",
        f"{prediction.level * 100:.0f} % interval {_interval(prediction)}; "
        f"average {percent(prediction.base_rate)}",
    ]


def _freshness(standing: Standing, now: datetime) -> str:
    assessment = standing.assessment
    if assessment is None:
        return ""
    said = f"As of {_time(assessment.as_of)}"
    if assessment.data_until is not None:
        said += f", from data to {_time(assessment.data_until)} ({_age(now - assessment.data_until)} ago)"
    return said + ("; looking back at a finished stay" if assessment.retrospective else "")


def _drivers(prediction: RiskPrediction) -> list[str]:
    drivers: list[dict[str, Any]] = prediction.explanation.get("drivers", [])
    strongest = sorted(drivers, key=lambda one: -abs(one["points"]))[:DRIVERS_SHOWN]
    raising = [_driver(one) for one in strongest if one["points"] > 0]
    lowering = [_driver(one) for one in strongest if one["points"] < 0]
    lines = []
    if raising:
        lines.append("Raises the estimate: " + ", ".join(raising))
    if lowering:
        lines.append("Lowers the estimate: " + ", ".join(lowering))
    return lines


def _driver(driver: dict[str, Any]) -> str:
    said = escape(driver["label"])
    if driver.get("value") is not None and driver.get("unit", "1") not in ("", "1"):
        said += f" {driver['value']:.4g} {escape(_UNITS.get(driver['unit'], driver['unit']))}"
    return f"{said} ({driver['points'] * 100:+.1f} points)"


def _missing(standing: Standing) -> list[str]:
    assessment = standing.assessment
    if assessment is None:
        return []
    said = [escape(one) for one in assessment.missing]
    fields = [escape(str(one).replace("_", " ")) for one in assessment.missing_fields]
    if len(fields) > FIELDS_SHOWN:
        fields = [*fields[:FIELDS_SHOWN], f"{len(fields) - FIELDS_SHOWN} more values"]
    return ["Missing: " + ", ".join([*said, *fields])] if said or fields else []


def _foot(standing: Standing, patient: Patient, not_supplied: tuple[str, ...]) -> list[str]:
    version = standing.version
    lines = []
    if not_supplied:
        lines.append("Not supplied by the EHR: " + ", ".join(escape(key) for key in not_supplied))
    if patient.source.simulated:
        lines.append("**Simulated patient**")
    trained = " (trained on simulated patients)" if version.simulated else ""
    label = f"{escape(settings.REGULATORY_LABEL)}. Model {escape(version.label)}{trained}"
    lines.append(f"{label}. Association, not cause.")
    return lines


def _override_reasons() -> tuple[OverrideReason, ...]:
    return tuple(
        OverrideReason(code=reason.code, system=reason.system, display=reason.display)
        for reason in responding.OVERRIDE_REASONS.values()
    )


def _time(at: datetime) -> str:
    return timezone.localtime(at).strftime("%Y-%m-%d %H:%M %Z")


def _age(span: Any) -> str:
    minutes = max(0, int(span.total_seconds() // 60))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days"
