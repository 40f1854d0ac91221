"""A CDS Hooks card as an EHR would show it: Markdown made HTML, and nothing in it that could run or load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nh3
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

TAGS = {
    "p", "br", "hr", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol", "li",
    "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "a",
}  # fmt: skip
_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])


def detail(card: Mapping[str, Any]) -> SafeString:
    """`Card.detail` as harmless HTML: no images, scripts, styles or addresses but https ones."""
    rendered = _MARKDOWN.render(str(card.get("detail", "")))
    clean = nh3.clean(
        rendered, tags=TAGS, attributes={"a": {"href"}}, url_schemes={"https"}, link_rel="noopener noreferrer"
    )
    return mark_safe(clean)  # noqa: S308  (nh3 has just cleaned it)
