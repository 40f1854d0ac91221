"""What is said of the method in a de-identified instance and in a manifest: PS3.16 CID 7050."""

from __future__ import annotations

EDITION = "2026c"  # of PS3.15 table E.1-1
BASIC, MODIFIED_DATES, CHARACTERISTICS = "113100", "113107", "113108"
MEANINGS = {
    BASIC: "Basic Application Confidentiality Profile",
    MODIFIED_DATES: "Retain Longitudinal Temporal Information Modified Dates Option",
    CHARACTERISTICS: "Retain Patient Characteristics Option",
}


def applied(*, characteristics: bool) -> list[str]:
    """The codes of the profile and of the options that were applied."""
    return [BASIC, MODIFIED_DATES, *([CHARACTERISTICS] if characteristics else [])]


def describe_deidentification(*, characteristics: bool) -> list[dict[str, str]]:
    """The method as codes with their meanings, for people who get a copy."""
    return [
        {"system": "DCM", "code": code, "meaning": MEANINGS[code]}
        for code in applied(characteristics=characteristics)
    ]
