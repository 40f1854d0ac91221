"""What is taken out of free text, and, in so many words, what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr.scrubbing import Known, Scrubber

KNOWN = Known(frozenset({"Müller", "Ana", "O'Neil", "Li"}), frozenset({"MRN-77", "4711"}))


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Mrs. Müller improved", "Mrs. [NAME] improved"),
        ("MULLER, Ana: stable", "[NAME], [NAME]: stable"),
        ("analysis of Li and lithium", "analysis of [NAME] and lithium"),
        ("O'NEIL seen", "[NAME] seen"),
        ("no. mrn-77 / 4711.", "no. [ID] / [ID]."),
        ("seen 12.03.2024, again 2024-03-13T10:15", "seen [DATE], again [DATE]"),
        ("since March 5, 2024 or 5th of May", "since [DATE] or [DATE]"),
        ("call 555-123-4567 or a.b@c.org", "call [PHONE] or [ADDRESS]"),
        ("account 00123456, sample AB12345", "account [NUMBER], sample [ID]"),
        ("Dr Jane Foster signed", "[NAME] signed"),
        ("Name: Somebody Else\nBP 120/80", "[LABELLED]\nBP 120/80"),
        ("lives at 12 Green Hill Road", "lives at [STREET]"),
        ("wohnt Lindenstraße 12", "wohnt [STREET]"),
        ("a 94-year-old woman", "a 90+-year-old woman"),
        ("a 64-year-old woman, EF 55 %, K 4.1, SpO2 97 %", "a 64-year-old woman, EF 55 %, K 4.1, SpO2 97 %"),
        ("pO2 12.3 kPa, pH 7.35, 150 mg twice, BP 120/80", "pO2 12.3 kPa, pH 7.35, 150 mg twice, BP 120/80"),
    ],
)
def test_what_is_taken_out(text: str, scrubbed: str) -> None:
    assert Scrubber(KNOWN).scrub(text) == scrubbed


def test_what_a_rule_cannot_know_stays() -> None:
    """Written down so that nobody believes otherwise (docs/guides/research.md)."""
    text = "her brother Tom, mayor of Smallville, brought her in"
    assert Scrubber(KNOWN).scrub(text) == text


@given(st.text(max_size=80), st.text(max_size=80))
def test_a_known_number_never_survives(before: str, after: str) -> None:
    known = Known(frozenset(), frozenset({"Q7788"}))
    assert "Q7788" not in Scrubber(known).scrub(f"{before}Q7788{after}")
