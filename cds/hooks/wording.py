"""The lines of a card, and text of others inside them.

A card's `detail` is GitHub-flavoured Markdown that the EHR renders, with whatever renderer it has. Text that
comes from a record, an order, a model or a site's settings passes through `escape`: it is shown literally, on
one line, and becomes neither markup nor a link, in strict renderers and in those that link bare addresses.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.utils import timezone

from cds import catalogue
from cds.catalogue import MODALITY_WORDS
from cds.hooks.replies import SUMMARY_LIMIT
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk.models import RiskPrediction
from cds.risk.standing import Standing

DRIVERS_SHOWN = 3
FIELDS_SHOWN = 4
LONGEST = 300  # characters of one text of others: what must be read stands below it
OLD = timedelta(hours=24)  # the newest fact behind a score of somebody who is here
_MARKUP = re.compile(r"([\\`*_\[\]<>#|~!&:@{}$]|\.(?=[^\W\d_])|^[-+=]|^\d{1,9}[.)](?=\s|$))")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # invisible, and needed to write Persian, Hindi or an emoji


def plain(text: object) -> str:
    """Text of others on one line, without characters that are not seen or that turn the line around."""
    said = str(text)
    return _plain(said) if len(said) <= LONGEST else _plain.__wrapped__(said)


@lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    line = " ".join(text.split())
    if line.isascii() and line.isprintable():
        return line
    return "".join(one for one in line if one in _JOINERS or unicodedata.category(one) not in _UNSEEN)


def escape(text: object) -> str:
    """Text of others as Markdown that shows it literally; a long one is cut, and says so."""
    said = str(text)
    return _escape(said) if len(said) <= LONGEST else _escape.__wrapped__(said)


@lru_cache(maxsize=4096)  # labels, units and reasons are few, and stand on every card
def _escape(text: str) -> str:
    line = plain(text)
    if len(line) > LONGEST:
        line = line[: LONGEST - 1].rstrip() + "…"
    return _MARKUP.sub(_escaped, line)


def _escaped(found: re.Match[str]) -> str:
    return f"{found[0][:-1]}\\{found[0][-1]}"


def shortened(summary: str) -> str:
    """A summary within the limit (INTEROP 13); it is plain text, not Markdown."""
    said, longest = plain(summary), SUMMARY_LIMIT - 1
    return said if len(said) <= longest else said[: longest - 1].rstrip() + "…"


def percent(share: float) -> str:
    """A probability in words of the screen; the ends are never rounded to certainty."""
    if 0 < share < 0.01:
        return "under 1 %"
    if 0.99 < share < 1:
        return "over 99 %"
    return f"{share * 100:.0f} %"


def event(prediction: RiskPrediction) -> str:
    """What may happen, in the middle of a sentence; plain text, for a summary."""
    return prediction.label[:1].lower() + prediction.label[1:]


def interval(prediction: RiskPrediction) -> str:
    """The interval of a risk, in per cent."""
    return f"{prediction.low * 100:.0f}–{prediction.high * 100:.0f} %"


def answer(prediction: RiskPrediction, word: str) -> str:
    """The number with its interval, category, horizon and average."""
    label = prediction.label
    if "within" not in label:
        days = prediction.horizon_hours / 24
        label += f" within {days:.0f} days" if days >= 2 else f" within {prediction.horizon_hours:.0f} hours"
    return (
        f"**{percent(prediction.risk)}**, {word.lower()}: {escape(label)} "
        f"({prediction.level * 100:.0f} % interval {interval(prediction)}; "
        f"average {percent(prediction.base_rate)})"
    )


def freshness(standing: Standing, now: datetime) -> str:
    """As of when the number is, and how old the newest fact behind it."""
    assessment = standing.assessment
    if assessment is None:
        return ""
    said = f"As of {moment(assessment.as_of)}"
    if assessment.data_until is not None:
        age = now - assessment.data_until
        said += f", from data to {moment(assessment.data_until)} ({age_in_words(age)} ago)"
        if age > OLD and not assessment.retrospective:
            said += "; **nothing newer is known**"
    return said + ("; looking back at a finished stay" if assessment.retrospective else "")


def strongest_drivers(explanation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that a card names."""
    every: list[dict[str, Any]] = explanation.get("drivers", [])
    return sorted(every, key=lambda one: -abs(one["points"]))[:DRIVERS_SHOWN]


def drivers(prediction: RiskPrediction) -> str:
    """What moved the estimate most, up and down."""
    strongest = strongest_drivers(prediction.explanation)
    raising = [_driver(one) for one in strongest if one["points"] > 0]
    lowering = [_driver(one) for one in strongest if one["points"] < 0]
    said = []
    if raising:
        said.append("Raises the estimate: " + ", ".join(raising))
    if lowering:
        said.append(("Lowers it: " if said else "Lowers the estimate: ") + ", ".join(lowering))
    return ". ".join(said)


def _driver(driver: dict[str, Any]) -> str:
    said = escape(driver["label"])
    if driver.get("value") is not None and driver.get("unit", "1") not in ("", "1"):
        said += f" {driver['value']:.4g} {escape(catalogue.UNIT_WORDS.get(driver['unit'], driver['unit']))}"
    return f"{said} ({driver['points'] * 100:+.1f} points)"


def missing(standing: Standing) -> str:
    """What the score did without."""
    assessment = standing.assessment
    if assessment is None:
        return ""
    said = [escape(MODALITY_WORDS.get(one, one).lower()) for one in assessment.missing]
    fields = [escape(_field(str(one))) for one in assessment.missing_fields]
    if len(fields) > FIELDS_SHOWN:
        fields = [*fields[:FIELDS_SHOWN], f"{len(fields) - FIELDS_SHOWN} more values"]
    return "Missing: " + ", ".join([*said, *fields]) if said or fields else ""


def not_supplied(keys: tuple[str, ...]) -> str:
    """The prefetch keys that nobody gave us."""
    return "Not supplied by the EHR: " + ", ".join(escape(key) for key in keys) if keys else ""


@lru_cache(maxsize=512)
def _field(name: str) -> str:
    """A field in clinical words, in the middle of a sentence."""
    label = catalogue.label_of(name)
    return label if label[1:2].isupper() or label[1:2] == "-" else label[:1].lower() + label[1:]


def foot(version: ModelVersion, patient: Patient) -> str:
    """What stands below every card: whether the patient is simulated, regulatory label, model."""
    simulated = "**Simulated patient.** " if patient.source.simulated else ""
    trained = " (trained on simulated patients)" if version.simulated else ""
    label = f"{escape(settings.REGULATORY_LABEL)}. Model {escape(version.label)}{trained}"
    return f"{simulated}{label}. Association, not cause."


def sentences(*said: str) -> str:
    """Those there are, one after the other on one line."""
    parts = [one for one in said if one]
    return " ".join(part if part.endswith((".", "…")) or part is parts[-1] else f"{part}." for part in parts)


def moment(at: datetime) -> str:
    """A moment as the site's clocks show it."""
    return _moment(at, timezone.get_current_timezone())


@lru_cache(maxsize=4096)
def _moment(at: datetime, zone: tzinfo) -> str:
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M %Z")


def age_in_words(span: timedelta) -> str:
    """How long ago, in minutes, hours or days."""
    minutes = max(0, int(span.total_seconds() // 60))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days"
