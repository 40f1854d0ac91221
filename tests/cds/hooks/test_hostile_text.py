# ruff: noqa: E501 - hostile texts are read by row
"""Text of others on a card: it is shown as it is written, and never becomes markup or a link. INTEROP 13."""

from __future__ import annotations

import html as entities
import re
import unicodedata
from html.parser import HTMLParser
from typing import Any

import nh3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cds.hooks import cards, wording
from cds.hooks.order_cards import Known, order_card
from cds.hooks.ordering import Imaging
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk.models import RiskPrediction
from cds.risk.standing import DataState
from tests.cds.hooks.test_cards import setting_for, standing_as
from tests.factories import make_patient

HOSTILE = (
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "</li></ul><h1>Low risk</h1>", "<!-- ", "&lt;b&gt;",
    "[click](javascript:alert(1))", "[a]: http://evil.example", "![x](http://evil.example/p.png)", "<http://evil.example>",
    "http://evil.example", "https://evil.example/a?b=c", "www.evil.example", "WWW.EVIL.EXAMPLE", "evil.example/x",
    "mailto:a@evil.example", "a@evil.example", "ftp://evil.example", "javascript:alert(1)", "data:text/html,x",
    "**Low risk**", "__low__", "~~High~~", "`code`", "```\nblock", "# head", "## head", "> quote", "- item", "+ item", "1. item",
    "1) item", "* item", "| a | b |\n|---|---|\n| 1 | 2 |", "---", "===", "- [x] done", "a\n\nb", "a  \nb", "\\", "\\<b>", "\\\\*a*",
    "$x$", "@everyone", "#1", ":skull:", "{{context.patientId}}", "[^1]", "\u202e% 9 ksir", "\u200blow\u200b", "\x00\x07\x1b[31m",
    "\ufeffx", "\u2028x\u2029", "\U000e0041", "x" * 5000, "*" * 300, "[" * 300, "é ß ж 中 🙂", "",
)  # fmt: skip
LINK = re.compile(
    r"https?://|ftp://|www\.|mailto:|\b[\w.-]+@[\w-]+\.\w|\b[a-z][\w-]*\.[a-z]{2,}", re.IGNORECASE
)


@pytest.fixture
def patient(db: None) -> Patient:
    """A patient of an ordinary source."""
    return make_patient("p1")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def tags_of(markdown: str) -> set[str]:
    """The elements a renderer that lets HTML and all of GitHub's markup through makes of it."""
    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    read = _Tags()
    read.feed(rendered)
    assert not read.links
    assert nh3.clean(rendered, tags=set(read.tags)) == nh3.clean(
        rendered
    )  # a sanitiser has nothing to take out
    return set(read.tags)


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_a_paragraph_and_no_link(text: str) -> None:
    for before in ("", "said: ", "**bold:** "):
        assert tags_of(f"- {before}{wording.escape(text)}") <= {"ul", "li", "strong"}
    assert tags_of(f"- {wording.escape(text)}") <= {"ul", "li"}
    assert not LINK.search(wording.escape(text)), "a renderer that links bare addresses would"
    assert "\n" not in wording.escape(text)
    assert len(wording.escape(text)) <= 2 * wording.LONGEST


def visible(text: str) -> str:
    """What is left when characters are gone that nobody sees or that turn the line around."""
    kept = (
        one
        for one in " ".join(text.split())
        if one in "\u200c\u200d" or unicodedata.category(one) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    )
    return "".join(kept)


@given(st.text(max_size=wording.LONGEST))
def test_escaped_text_renders_as_itself(text: str) -> None:
    rendered = MarkdownIt("commonmark").render("x " + wording.escape(text))
    shown = entities.unescape(re.sub(r"</?p>", "", rendered)).strip()
    assert shown == ("x " + visible(text)).strip()


def plant(text: str, version: ModelVersion, settings: Any) -> None:
    """The text wherever a site, a model or a record could put it."""
    RiskPrediction.objects.update(
        label=text[:200].replace("\x00", ""),
        explanation={"drivers": [{"label": text.replace("\x00", ""), "points": 0.1, "value": 3.0, "unit": text[:9].replace("\x00", "")}]},
    )  # fmt: skip
    version.name = text[:80]
    settings.REGULATORY_LABEL = text


ALLOWED = {"ul", "li", "strong"}


@pytest.mark.parametrize("text", HOSTILE[::4])
def test_a_card_full_of_it_is_still_a_list_of_lines(
    text: str, patient: Patient, version: ModelVersion, settings: Any
) -> None:
    for state, risk in ((DataState.PARTIAL, 0.31), (DataState.STALE, 0.31), (DataState.ABSTAINED, None)):
        standing = standing_as(state, patient, version, reason=text, risk=risk)
        plant(text, version, settings)
        if standing.assessment is not None:
            standing.assessment.missing = [text]
            standing.assessment.missing_fields = [text, text]
        setting = setting_for(patient, not_supplied=(text,))
        study = Imaging("", text or "study")
        for shown in (
            cards.card_for(standing, setting),
            order_card(standing, setting, study, Known(False)),
        ):
            assert tags_of(shown.card.detail) <= ALLOWED
            assert shown.card.detail.count("\n") < 16
            assert shown.card.summary.isprintable()
            assert not LINK.search(shown.card.detail)
        cards._number.cache_clear()
