"""From a standing to a card: what the clinician reads inside the EHR.

A number always comes with its interval, category, horizon, average, moment and version. What is not known
gets a card of its own that says so: an empty answer would read as "low risk" (INTEROP 11). The lines, and the
escaping of text of others, are in `wording`; the card about an imaging study being ordered in `order_cards`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from uuid import UUID

from django.conf import settings

from cds.hooks import linking, ordering, wording
from cds.hooks.alerting import Alert
from cds.hooks.contexts import Context
from cds.hooks.replies import Card, Coding, Indicator, OverrideReason, Source, Suggestion
from cds.patients.models import Patient
from cds.registry.outcomes import OUTCOMES, reason_without_number
from cds.risk import responding, thresholds
from cds.risk.models import RiskPrediction
from cds.risk.standing import DataState, Standing


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
    may_launch    whether the EHR may launch us by SMART for this patient (`linking.may_launch`)
    """

    outcome: str
    patient: Patient
    context: Context
    now: datetime
    not_supplied: tuple[str, ...] = ()
    alert: Alert = field(default_factory=Alert)
    may_suggest: bool = False
    may_launch: bool = False

    @property
    def label(self) -> str:
        """What the outcome is called."""
        return OUTCOMES[self.outcome].label if self.outcome in OUTCOMES else self.outcome


def card_for(standing: Standing, setting: Setting) -> Shown:
    """The card about one outcome; there is one for every standing."""
    return shown_as(said_of(standing, setting), standing, setting)


def as_held(standing: Standing, patient: Patient) -> Standing:
    """The standing while the patient's source is paused: no number is Current, and the card says why."""
    since = (
        f" since {wording.moment(patient.source.paused_at)}" if patient.source.paused_at is not None else ""
    )
    reason = f"Tessera takes nothing in from this EHR{since} (paused); what came with this call was not read"
    shows = standing.state in (DataState.CURRENT, DataState.PARTIAL, DataState.UPDATING, DataState.STALE)
    return replace(standing, state=DataState.STALE if shows else standing.state, reason=reason)


def number_of(standing: Standing, outcome: str) -> RiskPrediction | None:
    """The stored number of an outcome, or None. Of its explanation only the drivers are at hand."""
    assessment = standing.assessment
    if assessment is None:
        return None
    try:
        return _number(assessment.pk, outcome)
    except RiskPrediction.DoesNotExist:
        return None


@lru_cache(maxsize=1024)
def _number(assessment_id: UUID, outcome: str) -> RiskPrediction:
    """A prediction is never edited once it is made, so it is read once; of its drivers those a card names are
    kept, for there are dozens."""
    found = RiskPrediction.objects.get(assessment_id=assessment_id, outcome=outcome)
    found.explanation = {"drivers": wording.strongest_drivers(found.explanation)}
    return found


@dataclass(frozen=True, slots=True)
class Said:
    """What a card says, before it becomes one. `lines` are five at most: six with the foot (UI 7)."""

    kind: CardKind
    summary: str
    lines: list[str]
    prediction: RiskPrediction | None = None
    indicator: Indicator = Indicator.INFO
    suggestions: tuple[Suggestion, ...] = ()


def said_of(standing: Standing, setting: Setting) -> Said:
    """What there is to say of an outcome, before it becomes a card."""
    prediction = number_of(standing, setting.outcome)
    state = standing.state
    if prediction is not None and state in (DataState.CURRENT, DataState.PARTIAL):
        return _risk(standing, prediction, setting)
    if prediction is not None and state in (DataState.STALE, DataState.UPDATING):
        return _stale(standing, prediction, setting)
    return _without_a_number(standing, setting)


def _without_a_number(standing: Standing, setting: Setting) -> Said:
    state, reason = standing.state, standing.reason
    if state is DataState.FAILED:
        kind, words = CardKind.FAILED, "could not be computed"
    elif state is DataState.ABSTAINED:
        kind, words = CardKind.OUT_OF_SCOPE, "not scored, outside what the model may judge"
    elif state in (DataState.NOT_ELIGIBLE, DataState.CURRENT, DataState.PARTIAL):
        kind, words = CardKind.OUT_OF_SCOPE, "not scored, the patient is not eligible"
        reason = reason or reason_without_number(setting.outcome)
    else:
        kind, words = CardKind.NOT_YET_KNOWN, "not yet known"
    lines = ["**No risk is given. This is not a low risk.**"]
    if reason:
        lines.append(f"Reason: {wording.escape(reason)}")
    if kind is CardKind.NOT_YET_KNOWN:
        lines.append("Open the panel, or the chart again in a few seconds.")
    lines.append(wording.not_supplied(setting.not_supplied))
    return Said(kind, f"{setting.label}: {words}", lines)


def _risk(standing: Standing, prediction: RiskPrediction, setting: Setting) -> Said:
    category = thresholds.Category(prediction.category)
    policy = wording.escape(thresholds.policy_text(prediction.outcome, category))
    word = thresholds.WORDS[category]
    partial = ""
    if standing.state is DataState.PARTIAL:
        assessment = standing.assessment
        is_settled = assessment is not None and bool(assessment.left_out) and not assessment.pending
        partial = f"{'Partial' if is_settled else 'Preliminary'}: {wording.escape(standing.reason)}"
    lines = [
        wording.answer(prediction, word),
        wording.sentences(partial, wording.freshness(standing, setting.now)),
        wording.drivers(prediction),
        wording.sentences(wording.missing(standing), wording.not_supplied(setting.not_supplied)),
        wording.sentences(policy, setting.alert.note),
    ]
    number = f"{wording.percent(prediction.risk)} ({wording.interval(prediction)})"
    return Said(
        CardKind.RISK,
        f"{word}: {number} {wording.event(prediction)}",
        lines,
        prediction,
        setting.alert.indicator,
        _suggestions(standing, category, setting),
    )


def _stale(standing: Standing, prediction: RiskPrediction, setting: Setting) -> Said:
    word = thresholds.WORDS[thresholds.Category(prediction.category)]
    lines = [
        f"**This number is out of date:** {wording.escape(standing.reason)}",
        wording.answer(prediction, word),
        wording.freshness(standing, setting.now),
        wording.sentences(wording.missing(standing), wording.not_supplied(setting.not_supplied)),
    ]
    summary = f"Stale: was {wording.percent(prediction.risk)} ({word.lower()}) {wording.event(prediction)}"
    return Said(CardKind.STALE, summary, lines, prediction)


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
        context=setting.context,
        because=f"Input missing for {standing.version.label}: {setting.label}",
        now=setting.now,
    )


def shown_as(said: Said, standing: Standing, setting: Setting) -> Shown:
    """The card that says so, with source, foot, links and override reasons."""
    version = standing.version
    lines = [*said.lines, wording.foot(version, setting.patient)]
    card = Card(
        uuid=uuid.uuid4(),
        summary=wording.shortened(said.summary),
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
        links=linking.links(
            standing, setting.patient, outcome=setting.outcome, may_launch=setting.may_launch
        ),
    )
    return Shown(said.kind, card, said.prediction)


@lru_cache(maxsize=1)
def _override_reasons() -> tuple[OverrideReason, ...]:
    return tuple(
        OverrideReason(code=reason.code, system=reason.system, display=reason.display)
        for reason in responding.OVERRIDE_REASONS.values()
    )
