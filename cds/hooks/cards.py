"""From a standing to a card: what the clinician reads inside the EHR.

A number always comes with its interval, category, horizon, average, moment and version. What is not known
gets a card of its own that says so: an empty answer would read as "low risk" (INTEROP 11). Text that comes
from a record, an order or a model is escaped, so that it can never become markup.

At order hooks the card is about an imaging study being ordered: `order_card`.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from cds import catalogue
from cds.hooks import ordering
from cds.hooks.alerting import Alert
from cds.hooks.contexts import Context
from cds.hooks.replies import SUMMARY_LIMIT, Card, Coding, Indicator, Link, OverrideReason, Source, Suggestion
from cds.patients.models import Patient
from cds.registry.outcomes import OUTCOMES
from cds.risk import responding, thresholds
from cds.risk.assessing import DataState, Standing
from cds.risk.models import RiskPrediction
from cds.risk.queries import MODALITY_WORDS

DRIVERS_SHOWN = 3
FIELDS_SHOWN = 4
OLD = timedelta(hours=24)  # the newest fact behind a score of somebody who is here
_MARKUP = re.compile(r"([\\`*_\[\]<>#|~!&:@{}])")


class CardKind(StrEnum):
    """What a card says; kept with the card, so that it can be counted."""

    RISK = "risk"
    NOT_YET_KNOWN = "not-yet-known"
    STALE = "stale"
    OUT_OF_SCOPE = "out-of-scope"
    FAILED = "failed"
    ORDER = "order"


@dataclass(frozen=True, slots=True)
class Shown:
    """A card, what it says, and the stored prediction it shows (None: it shows no number)."""

    kind: CardKind
    card: Card
    prediction: RiskPrediction | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """In what a card is shown.

    not_supplied  prefetch keys that neither came whole nor could be read
    alert         how the card comes to this person
    may_suggest   whether orders for missing inputs make sense at this hook
    """

    outcome: str
    patient: Patient
    context: Context
    now: datetime
    not_supplied: tuple[str, ...] = ()
    alert: Alert = field(default_factory=Alert)
    may_suggest: bool = False

    @property
    def label(self) -> str:
        """What the outcome is called."""
        return OUTCOMES[self.outcome].label if self.outcome in OUTCOMES else self.outcome


def card_for(standing: Standing, setting: Setting) -> Shown:
    """The card about one outcome; there is one for every standing."""
    return _shown(_said(standing, setting), standing, setting)


def number_of(standing: Standing, outcome: str) -> RiskPrediction | None:
    """The stored number of an outcome, or None. Of its explanation only the drivers are at hand."""
    assessment = standing.assessment
    if assessment is None:
        return None
    try:
        return _number(assessment.pk, outcome)
    except RiskPrediction.DoesNotExist:
        return None


@lru_cache(maxsize=2048)
def _number(assessment_id: UUID, outcome: str) -> RiskPrediction:
    """A prediction is never edited once it is made, so it is read once."""
    found = RiskPrediction.objects.get(assessment_id=assessment_id, outcome=outcome)
    found.explanation = {"drivers": found.explanation.get("drivers", [])}
    return found


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


@dataclass(frozen=True, slots=True)
class _Said:
    """What a card says, before it becomes one."""

    kind: CardKind
    summary: str
    lines: list[str]
    prediction: RiskPrediction | None = None
    indicator: Indicator = Indicator.INFO
    suggestions: tuple[Suggestion, ...] = ()


def _said(standing: Standing, setting: Setting) -> _Said:
    prediction = number_of(standing, setting.outcome)
    state = standing.state
    if prediction is not None and state in (DataState.CURRENT, DataState.PARTIAL):
        return _risk(standing, prediction, setting)
    if prediction is not None and state in (DataState.STALE, DataState.UPDATING):
        return _stale(standing, prediction, setting)
    return _without_a_number(standing, setting)


def _without_a_number(standing: Standing, setting: Setting) -> _Said:
    state, reason = standing.state, standing.reason
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
    return _Said(kind, f"{setting.label}: {words}", lines)


def _risk(standing: Standing, prediction: RiskPrediction, setting: Setting) -> _Said:
    category = thresholds.Category(prediction.category)
    severe = thresholds.SEVERITY[category.value] >= thresholds.SEVERITY[thresholds.Category.HIGH.value]
    word = thresholds.WORDS[category]
    lines = [
        *_answer(prediction, word),
        _freshness(standing, setting.now),
        *_drivers(prediction),
        *_missing(standing),
    ]
    if standing.state is DataState.PARTIAL:
        assessment = standing.assessment
        is_settled = assessment is not None and bool(assessment.left_out) and not assessment.pending
        lines.insert(1, f"{'Partial' if is_settled else 'Preliminary'}: {escape(standing.reason)}")
    if severe:
        lines.append(thresholds.policy_text(prediction.outcome))
    lines.append(setting.alert.note)
    return _Said(
        CardKind.RISK,
        f"{word}: {percent(prediction.risk)} ({_interval(prediction)}) {_event(prediction)}",
        lines,
        prediction,
        setting.alert.indicator,
        _suggestions(standing, category, setting),
    )


def _stale(standing: Standing, prediction: RiskPrediction, setting: Setting) -> _Said:
    word = thresholds.WORDS[thresholds.Category(prediction.category)]
    lines = [
        f"**This number is out of date:** {escape(standing.reason)}",
        *_answer(prediction, word),
        _freshness(standing, setting.now),
        *_missing(standing),
    ]
    summary = f"Stale: was {percent(prediction.risk)} ({word.lower()}) {_event(prediction)}"
    return _Said(CardKind.STALE, summary, lines, prediction)


def _suggestions(
    standing: Standing, category: thresholds.Category, setting: Setting
) -> tuple[Suggestion, ...]:
    """Orders for what the score did without; none at a low risk, where more tests would do more harm."""
    assessment = standing.assessment
    if assessment is None or not setting.may_suggest or category is thresholds.Category.LOW:
        return ()
    return ordering.suggest(
        [one for one in assessment.missing if one not in assessment.pending],
        assessment.missing_fields,
        patient=setting.patient,
        context=setting.context,
        because=f"Input missing for {standing.version.label}: {setting.label}",
        now=setting.now,
    )


def order_card(standing: Standing, setting: Setting, study: ordering.Imaging, known: Known) -> Shown:
    """The card about an imaging study being ordered: what the risk knows already, what it would add."""
    said = _said(standing, setting)
    number = said.prediction
    risk = f"risk {percent(number.risk)} ({_interval(number)})" if number is not None else "no risk yet"
    lines = list(said.lines)
    if number is not None and said.kind is CardKind.STALE:
        risk = f"risk was {percent(number.risk)}, stale"
    if not known.is_read:
        head = "would not change the risk"
        tell = [f"**The model does not read this kind of study:** {escape(study.label)} adds nothing to it."]
    elif known.is_used:
        head, when = "the risk already uses one", ""
        if known.taken_at is not None:
            age = _age(setting.now - known.taken_at)
            head, when = f"{head}, {age} old", f" of {_time(known.taken_at)} ({age} ago)"
        tell = [
            f"**Known already:** the score uses the latest of its kind{when}.",
            "A new one replaces it in the next score, as soon as it is here.",
        ]
    elif known.is_pending:
        head = "one is here and still being read"
        tell = ["**Known soon:** one is here and being read; the next score uses it."]
    else:
        head = "the risk was computed without one"
        tell = [
            "**It would add what the score does without.** The next score uses it, as soon as it is here."
        ]
    if known.is_read and known.without is not None and known.with_all is not None:
        tell.append(
            f"On patients held out, AUROC was {known.with_all:.2f} with every input and {known.without:.2f} "
            "without this one."
        )
    indicator = said.indicator
    summary = (
        f"{study.label}: {head}; {risk} {_event(number)}" if number else f"{study.label}: {head}; {risk}"
    )
    return _shown(
        _Said(CardKind.ORDER, summary, [*tell, *lines], number, indicator, said.suggestions),
        standing,
        setting,
    )


@dataclass(frozen=True, slots=True)
class Known:
    """What a version knows of a kind of imaging study for one patient.

    is_read     the model takes such studies;  is_used  the score shown used one, taken at `taken_at`
    with_all    AUROC on held-out patients with every input;  without  leaving this kind out; None: not known
    """

    is_read: bool
    is_used: bool = False
    is_pending: bool = False
    taken_at: datetime | None = None
    with_all: float | None = None
    without: float | None = None


def _shown(said: _Said, standing: Standing, setting: Setting) -> Shown:
    version = standing.version
    lines = [*said.lines, *_foot(standing, setting.patient, setting.not_supplied)]
    card = Card(
        uuid=uuid.uuid4(),
        summary=_shortened(said.summary),
        indicator=said.indicator,
        source=Source(
            f"Tessera {version.label}",
            url=f"{settings.PUBLIC_URL}/models/{version.pk}/card",
            topic=Coding(setting.outcome, f"{settings.PUBLIC_URL}/cds-services", setting.label),
        ),
        detail="\n".join(f"- {line}" for line in lines if line),
        suggestions=said.suggestions,
        selection_behavior="any" if said.suggestions else "",
        override_reasons=_override_reasons() if said.prediction is not None else (),
        links=_links(standing, setting),
    )
    return Shown(said.kind, card, said.prediction)


def _links(standing: Standing, setting: Setting) -> tuple[Link, ...]:
    """The panel, for a browser; and, where this site serves SMART launches, this very assessment."""
    panel = f"{settings.PUBLIC_URL}/patients/{setting.patient.pk}/risk?outcome={setting.outcome}"
    links: tuple[Link, ...] = (Link("Open the risk panel", panel),)
    launch = _launch_path()
    if launch and standing.assessment is not None:
        said = {"assessment": str(standing.assessment.pk), "outcome": setting.outcome}
        smart = Link("Open this score", settings.PUBLIC_URL + launch, "smart", orjson.dumps(said).decode())
        links = (smart, *links)
    return links


def _launch_path() -> str:
    try:
        return reverse("smart-launch")
    except NoReverseMatch:
        return ""


def _shortened(summary: str) -> str:
    longest = SUMMARY_LIMIT - 1
    return summary if len(summary) <= longest else summary[: longest - 1].rstrip() + "…"


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
        age = now - assessment.data_until
        said += f", from data to {_time(assessment.data_until)} ({_age(age)} ago)"
        if age > OLD and not assessment.retrospective:
            said += "; **nothing newer is known**"
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
        said += f" {driver['value']:.4g} {escape(catalogue.UNIT_WORDS.get(driver['unit'], driver['unit']))}"
    return f"{said} ({driver['points'] * 100:+.1f} points)"


def _missing(standing: Standing) -> list[str]:
    assessment = standing.assessment
    if assessment is None:
        return []
    said = [escape(MODALITY_WORDS.get(one, one).lower()) for one in assessment.missing]
    fields = [escape(_field(str(one))) for one in assessment.missing_fields]
    if len(fields) > FIELDS_SHOWN:
        fields = [*fields[:FIELDS_SHOWN], f"{len(fields) - FIELDS_SHOWN} more values"]
    return ["Missing: " + ", ".join([*said, *fields])] if said or fields else []


def _field(name: str) -> str:
    """A field in clinical words, in the middle of a sentence."""
    measured = catalogue.find_measurement(name)
    label = measured.label if measured is not None else name.replace("_", " ")
    return label if label[1:2].isupper() or label[1:2] == "-" else label[:1].lower() + label[1:]


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


@lru_cache(maxsize=1)
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
