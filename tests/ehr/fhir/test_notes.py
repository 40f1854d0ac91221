# ruff: noqa: E501 - tables are read by row
"""Notes: which attachments can be read, and that the others are said, not lost."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ehr.fhir.notes import text_of_html
from tests.ehr.fhir.resources_for_tests import coded, read_all, read_one, resource


def attachment(
    text: str | bytes = "Chest pain.", content_type: str = "text/plain", **changes: Any
) -> dict[str, Any]:
    raw = text.encode() if isinstance(text, str) else text
    return {"contentType": content_type, "data": base64.b64encode(raw).decode()} | changes


def document(*attachments: dict[str, Any], **changes: Any) -> dict[str, Any]:
    content = [{"attachment": item} for item in attachments]
    return resource("DocumentReference", status="current", date="2020-05-03T10:00:00Z", content=content,
                    type=coded("11506-3", display="Progress note")) | changes  # fmt: skip


def test_a_note_with_its_kind_and_title() -> None:
    (note,) = read_one(document(attachment(), author=[{"display": "Dr A"}])).notes
    assert (note.text, note.title, note.author) == ("Chest pain.", "Progress note", "Dr A")
    assert note.kind
    assert note.kind.code == "11506-3"


def test_html_becomes_words() -> None:
    page = "<html><head><title>x</title><style>p{}</style></head><body><h1>CXR</h1><p>No&nbsp;effusion &amp; clear</p>"
    page += "<script>alert(1)</script><table><tr><td>Na</td><td>140</td></tr></table></body></html>"
    (note,) = read_one(document(attachment(page, "text/html; charset=utf-8"))).notes
    assert note.text.split("\n") == ["CXR", "", "No effusion & clear", "", "Na 140"]


@pytest.mark.parametrize(
    "page", ["<p", "<<<>>>", "a & b < c", "<p>" * 5000, "</script>x", "<!DOCTYPE", "<![CDATA[x"]
)
def test_broken_html_does_not_stop_us(page: str) -> None:
    assert isinstance(text_of_html(page), str)


def test_xhtml_under_its_short_name() -> None:
    assert read_one(document(attachment("<p>Fine</p>", "application/xhtml"))).notes[0].text == "Fine"


def test_another_charset() -> None:
    (note,) = read_one(
        document(attachment("Müdigkeit".encode("latin-1"), "text/plain; charset=ISO-8859-1"))
    ).notes
    assert note.text == "Müdigkeit"


def test_several_attachments_have_parts_and_one_bad_one_does_not_stop_the_rest() -> None:
    record = read_one(
        document(attachment("one"), attachment(b"%PDF", "application/pdf"), attachment("three"))
    )
    assert [(note.part, note.text) for note in record.notes] == [("", "one"), ("3", "three")]
    assert "application/pdf is not a text" in record.set_aside[0].reason


def test_a_report_gives_conclusion_and_form() -> None:
    report = resource("DiagnosticReport", status="final", code=coded("36643-5", display="Chest X-ray"), conclusion="Normal.",
                      effectiveDateTime="2020-05-03", issued="2020-05-04T08:00:00Z", presentedForm=[attachment("Full text")])  # fmt: skip
    notes = read_one(report).notes
    assert [(note.part, note.text) for note in notes] == [("conclusion", "Normal."), ("form-1", "Full text")]
    assert notes[0].available_at
    assert notes[0].available_at.isoformat() == "2020-05-04T08:00:00+00:00"


def test_a_report_without_words_is_counted_only() -> None:
    assert read_all(resource("DiagnosticReport", status="final", code=coded("36643-5"))) == []


def test_a_binary_that_was_read_too() -> None:
    binary = {"resourceType": "Binary", "id": "b1"} | attachment("From afar")
    note = document({"contentType": "text/plain", "url": "Binary/b1"})
    bundle = {"resourceType": "Bundle", "entry": [{"resource": note}, {"resource": binary}]}
    assert read_one(bundle).notes[0].text == "From afar"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (attachment(data="!!!"), "is not base64"),
        (attachment(b"\xff\xfe\xfa"), "is not text in utf-8"),
        (attachment(content_type="text/plain; charset=klingon"), "is not text in klingon"),
        (attachment(""), "neither data nor url"),
        (attachment("   "), "holds no words"),
        (attachment(content_type=""), "(missing) is not a text"),
        ({"url": "https://elsewhere.example/note"}, "points outside what was read"),
        (attachment(data="A" * 3_000_000), "is larger than 2000000 bytes"),
        (attachment(contentType=7), "contentType must be a string"),
    ],
)
def test_what_cannot_be_read_is_said(bad: dict[str, Any], reason: str) -> None:
    record = read_one(document(bad))
    assert record.notes == ()
    assert reason in record.set_aside[0].reason
