"""Numbers, times and codes in the words of the screens. No database, no request."""

from __future__ import annotations

from datetime import timedelta

from cds.catalogue import MODALITY_WORDS, UNIT_WORDS

CATEGORIES = {"low": "Low", "moderate": "Moderate", "high": "High", "very-high": "Very high"}
STEPS = {"tuning_loss": "Tuning loss", "train_loss": "Training loss"}
ACRONYMS = {"icu": "ICU", "auroc": "AUROC", "auprc": "AUPRC"}


def percent(value: float | None) -> str:
    """`0.2345` is "23 %"; below 1 % one decimal is kept, and a risk is never rounded to 0 or 100."""
    if value is None:
        return "–"
    shown = value * 100
    if shown < 0.1:
        return "< 0.1 %" if value > 0 else "0 %"
    if shown < 1 or (99 < shown < 100):
        return f"{shown:.1f} %"
    return f"{shown:.0f} %"


def points(value: float | None) -> str:
    """`0.0421` is "+4.2": percentage points with a true minus sign."""
    if value is None:
        return "–"
    shown = round(value * 100, 1)
    return "0.0" if shown == 0 else f"{'+' if shown > 0 else '−'}{abs(shown):.1f}"


def figure(value: float | None) -> str:
    """Up to four significant digits, without exponent or trailing zeros."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value)}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def unit(code: str) -> str:
    """A UCUM code as it is printed on a report."""
    return UNIT_WORDS.get(code, code)


def size(value: float, unit_code: str) -> str:
    """A measured size to what the picture allows: ratios to two decimals, else whole numbers from 10 on."""
    if unit_code == "1":
        return f"{value:.2f}"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"


def signed_percent(change: float) -> str:
    """`-4.2` is "−4 %"."""
    shown = round(change)
    return "0 %" if shown == 0 else f"{'+' if shown > 0 else '−'}{abs(shown)} %"


def outcome(key: str) -> str:
    """`icu-admission` is "ICU admission"."""
    parts = [ACRONYMS.get(part, part) for part in key.replace("_", "-").split("-")]
    text = " ".join(parts)
    return text[:1].upper() + text[1:]


def modality(key: str) -> str:
    """`tabular` is "Record"."""
    return MODALITY_WORDS.get(key, outcome(key))


def horizon(hours: float) -> str:
    """336 hours are "14 days"; 24 hours stay hours."""
    if hours > 48 and hours % 24 == 0:
        return f"{hours / 24:.0f} days"
    return f"{hours:.0f} hours"


def ago(past: timedelta) -> str:
    """An age in the largest unit that says enough."""
    return f"{span(past)} ago" if past.total_seconds() >= 60 else "just now"


def span(past: timedelta) -> str:
    """A length of time: "12 min", "5 h", "3 days", "2 years"."""
    minutes = abs(past.total_seconds()) / 60
    if minutes < 90:
        return f"{max(1, round(minutes))} min"
    hours = minutes / 60
    if hours < 36:
        return f"{round(hours)} h"
    days = hours / 24
    if days < 60:
        return f"{round(days)} days"
    if days < 730:
        return f"{round(days / 30.4)} months"
    return f"{days / 365.25:.0f} years"


def in_hundred(risk: float) -> str:
    """A risk as a natural frequency: "23 in 100", "4 in 1,000", "Fewer than 1 in 1,000"."""
    if risk >= 0.995:
        return "More than 99 in 100"
    if risk >= 0.01:
        return f"{risk * 100:.0f} in 100"
    if risk >= 0.001:
        return f"{risk * 1000:.0f} in 1,000"
    return "Fewer than 1 in 1,000"
