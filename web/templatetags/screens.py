"""How numbers and times are written on the screens."""

from __future__ import annotations

import re
from datetime import datetime

from django import template
from django.template.defaultfilters import date as format_date
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from web import words

register = template.Library()


@register.filter
def percent(value: float | None) -> str:
    """A probability as people read it."""
    return words.percent(value)


@register.filter
def points(value: float | None) -> str:
    """A signed share of the risk, in percentage points."""
    return words.points(value)


@register.filter
def decimals(value: float | None, places: int = 2) -> str:
    """A figure with a fixed number of decimals; an en dash when it is unknown."""
    return "–" if value is None else f"{value:.{places}f}"


@register.filter
def figure(value: float | None) -> str:
    """A clinical value, with as many digits as it needs."""
    return words.figure(value)


@register.filter
def unit(value: str) -> str:
    """A UCUM unit as people write it."""
    return words.unit(value)


@register.filter
def moment(value: datetime | None) -> SafeString | str:
    """Local time, with its zone on hover and for machines."""
    if value is None:
        return "unknown"
    local = timezone.localtime(value)
    same_day = local.date() == timezone.localdate()
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        local.isoformat(),
        format_date(local, "j F Y, H:i:s T"),
        format_date(local, "H:i") if same_day else format_date(local, "j M Y, H:i"),
    )


@register.filter
def age(value: datetime | None) -> str:
    """How long ago, by the server's clock."""
    return "never" if value is None else words.ago(timezone.now() - value)


@register.filter
def address(value: str) -> SafeString:
    """A web address that a narrow column breaks after a slash or a full stop, not within a name."""
    parts = re.split(r"(?<=[^/][/.])(?=[^/.])", value)
    return format_html_join(mark_safe("<wbr>"), "{}", ((part,) for part in parts))


@register.filter
def outcome_name(value: str) -> str:
    """A hyphenated key as words: `icu-admission` is "ICU admission"."""
    return words.outcome(value)


@register.filter
def minutes(seconds: float | str) -> int:
    """Seconds as whole minutes, rounded up."""
    return -(-int(float(seconds)) // 60)


@register.filter
def modality(value: str) -> str:
    """`tabular` is "Record"."""
    return words.modality(value)


@register.filter
def category_word(value: str) -> str:
    """`very-high` is "Very high"; no category is "Not scored", never "Low"."""
    return words.CATEGORIES.get(value, "Not scored")


@register.filter
def signed(value: float) -> str:
    """Percentage points already, with their sign."""
    return words.points(value / 100).removesuffix(".0")


@register.filter
def slug(value: str) -> str:
    """A state as a class name."""
    return value.lower().replace(" ", "-")


@register.filter
def percent_one(value: float) -> str:
    """With one decimal, where numbers are to be added up by eye."""
    return f"{value * 100:.1f} %"


@register.filter
def points_abs(value: float) -> str:
    """Percentage points without their sign."""
    return f"{abs(value) * 100:.1f}"


@register.filter
def lower_first(value: str) -> str:
    """For use within a sentence: "Heart rate" is "heart rate", "NT-proBNP" stays."""
    return value if value[1:2].isupper() or value[1:2] == "-" else value[:1].lower() + value[1:]


@register.filter
def when_used(value: str) -> str:
    """ "3 days ago" as a length of time: "for 3 days"."""
    return "since just now" if value == "just now" else f"for {value.removesuffix(' ago')}"
