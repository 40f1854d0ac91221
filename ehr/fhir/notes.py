"""The text of DocumentReference attachments and of DiagnosticReports → NoteRecords.

Read: text/plain, text/markdown, text/html and application/xhtml+xml, inline (base64) or in a Binary that was
read too. Anything else, such as a PDF or an address elsewhere, is set aside: a note that cannot be read is
not an empty one.
"""

from __future__ import annotations

import base64
import binascii
import re
from html.parser import HTMLParser

from ehr.codes import Code
from ehr.errors import BadResource
from ehr.fhir.dates import get_choice, get_period, get_span, latest
from ehr.fhir.elements import Json, get_concept, get_list, get_object, get_text, storable
from ehr.fhir.subject import About, Unused
from ehr.records import Fact, NoteRecord

MAX_NOTE_BYTES = 2_000_000
_PLAIN = frozenset({"text/plain", "text/markdown", "text/x-markdown", "text"})
_HTML = frozenset({"text/html", "application/xhtml+xml", "application/xhtml"})
_BLOCKS = frozenset({
    "p", "div", "br", "li", "ul", "ol", "tr", "table", "h1", "h2", "h3", "h4", "h5", "h6", "section",
    "article", "header", "footer", "dl", "dt", "dd", "pre", "hr",
})  # fmt: skip


def read_document(about: About) -> list[Fact]:
    """Read a DocumentReference: a note per attachment, the second and later ones with `part` "2", "3" …"""
    resource, kind = about.resource, "DocumentReference"
    about.status()
    about.status("docStatus")
    contents = get_list(resource, "content", kind)
    if not contents:
        raise BadResource("DocumentReference.content is required")
    context = get_object(resource, "context", kind) or {}
    start, end = get_period(context, "period", f"{kind}.context")
    available = latest(end or start, get_span(resource, "date", kind))
    concept = get_concept(resource, "type", kind)
    title = get_text(resource, "description", kind)
    facts: list[Fact] = []
    for index, content in enumerate(contents, 1):
        attachment = get_object(content, "attachment", f"{kind}.content") or {}
        try:
            text = _read_attachment(about, attachment, f"{kind}.content.attachment")
            label = get_text(attachment, "title", f"{kind}.content.attachment")
        except BadResource as error:
            about.keep_apart(str(error))
            continue
        facts.append(
            NoteRecord(
                resource_type=kind,
                resource_id=about.identity,
                part="" if index == 1 else str(index),
                available_at=available,
                kind=concept.code if concept else None,
                title=(label or title or (concept.text if concept else ""))[:300],
                text=text,
                author=_author(resource, "author", kind),
            )
        )
    return facts


def read_report(about: About) -> list[Fact]:
    """Read a DiagnosticReport: its conclusion (`part` "conclusion") and its presented forms ("form-1" …)."""
    resource, kind = about.resource, "DiagnosticReport"
    about.status(retracted=frozenset({"cancelled"}))
    concept = get_concept(resource, "code", kind)
    start, end = get_choice(resource, "effective", kind)
    available = latest(end or start, get_span(resource, "issued", kind))
    texts: list[tuple[str, str]] = []
    conclusion = get_text(resource, "conclusion", kind).strip()
    if conclusion:
        texts.append(("conclusion", conclusion))
    for index, form in enumerate(get_list(resource, "presentedForm", kind), 1):
        try:
            texts.append((f"form-{index}", _read_attachment(about, form, f"{kind}.presentedForm")))
        except BadResource as error:
            about.keep_apart(str(error))
    if not texts and not about.set_aside:
        raise Unused("DiagnosticReport (no text)")
    return [
        NoteRecord(
            resource_type=kind,
            resource_id=about.identity,
            part=part,
            available_at=available,
            kind=concept.code if concept else _category(resource),
            title=(concept.text if concept else "")[:300],
            text=text,
            author=_author(resource, "performer", kind),
        )
        for part, text in texts
    ]


def _category(resource: Json) -> Code | None:
    for item in get_list(resource, "category", "DiagnosticReport"):
        concept = get_concept({"category": item}, "category", "DiagnosticReport")
        if concept:
            return concept.code
    return None


def _author(resource: Json, name: str, kind: str) -> str:
    people = get_list(resource, name, kind)
    return get_text(people[0], "display", f"{kind}.{name}")[:200] if people else ""


def _read_attachment(about: About, attachment: Json, element: str) -> str:
    """The words of an Attachment. Raises BadResource saying what stands in the way."""
    content_type = get_text(attachment, "contentType", element)
    data = get_text(attachment, "data", element)
    url = get_text(attachment, "url", element)
    if not data and url:
        binary = about.scope.find(url, about.resource)
        if binary is None or binary.get("resourceType") != "Binary":
            raise BadResource(
                f"{element}.url points outside what was read (no Binary/[id] of the server, or one that did "
                "not come): have the source keep the text in a Binary of its server, or in data"
            )
        content_type = get_text(binary, "contentType", "Binary") or content_type
        data = get_text(binary, "data", "Binary")
    if not data:
        raise BadResource(f"{element} has neither data nor url")
    media, _, parameters = content_type.partition(";")
    media = media.strip().lower()
    if media not in _PLAIN | _HTML:
        raise BadResource(f"{element}.contentType {media[:60] or '(missing)'} is not a text Tessera reads")
    if len(data) > MAX_NOTE_BYTES * 4 // 3 + 4:
        raise BadResource(
            f"{element}.data is larger than {MAX_NOTE_BYTES} bytes: have the source send the text without "
            "its pictures"
        )
    try:
        raw = base64.b64decode(re.sub(r"\s+", "", data), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadResource(f"{element}.data is not base64") from error
    named = re.search(r"charset=\"?([\w.:-]+)", parameters, re.IGNORECASE)
    charset = named[1][:40] if named else "utf-8"
    try:
        text = raw.decode(charset)
    except (LookupError, UnicodeError) as error:
        raise BadResource(f"{element}.data is not text in {charset}") from error
    text = storable(text_of_html(text) if media in _HTML else text).strip()
    if not text:
        raise BadResource(f"{element}.data holds no words")
    return text


class _TextOfHtml(HTMLParser):
    """Collects the words of a page; blocks start new lines, scripts and styles are left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style", "head", "title"):
            self._silent += 1
        elif tag in _BLOCKS:
            self.words.append("\n")
        elif tag in ("td", "th"):
            self.words.append("\t")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "head", "title"):
            self._silent = max(0, self._silent - 1)
        elif tag in _BLOCKS:
            self.words.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words.append(data)


def text_of_html(page: str) -> str:
    """The words of an HTML page, one block a line, without tags, scripts and styles."""
    parser = _TextOfHtml()
    parser.feed(page)
    parser.close()
    lines = (re.sub(r"[ \t\r\f\v\u00a0]+", " ", line).strip() for line in "".join(parser.words).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
