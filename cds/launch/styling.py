"""The EHR's colours on our pages (`smart_style_url`, SMART App Launch 2.2): only what stays readable.

A colour is taken when it is `#rrggbb` and text on it, or it as text, keeps the contrast of WCAG 2.2 AA. The
categories of risk keep their own colours whatever an EHR asks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

INK, WHITE = "#10222f", "#ffffff"
LEAST_CONTRAST = 4.5
# SMART's name → (our CSS custom property, what it must stand out from)
TAKEN = {
    "color_background": ("--bg", INK),
    "color_highlight": ("--accent", WHITE),
}
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def properties(said: Mapping[str, Any]) -> dict[str, str]:
    """CSS custom properties from a SMART style document; what does not fit is left out."""
    found = {}
    for name, (ours, against) in TAKEN.items():
        colour = said.get(name)
        if (
            isinstance(colour, str)
            and _COLOUR.fullmatch(colour)
            and contrast(colour, against) >= LEAST_CONTRAST
        ):
            found[ours] = colour.lower()
    return found


def stylesheet(found: Mapping[str, str]) -> str:
    """`properties` as a stylesheet; whatever is not one of ours, or not a colour, is dropped."""
    known = {ours for ours, _ in TAKEN.values()}
    lines = [
        f"{name}: {colour};"
        for name, colour in sorted(found.items())
        if name in known and _COLOUR.fullmatch(str(colour))
    ]
    return ":root { " + " ".join(lines) + " }\n" if lines else ""


def contrast(one: str, other: str) -> float:
    """Contrast of two `#rrggbb` colours, 1 to 21 (WCAG 2.2, "contrast ratio")."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
