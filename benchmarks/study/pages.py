"""Keeps each study's table in its own part of docs/experiments.md, so that a rerun replaces only it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"


def find(name: str) -> str | None:
    """The part called `name` without its marks; None where the page has none."""
    page = PAGE.read_text() if PAGE.exists() else ""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end {name} -->\n", page, re.DOTALL)
    return found[1] if found else None


def keep(name: str, said: str) -> None:
    """Replace the part called `name` (letters, digits, `_`) by Markdown `said`; append it when it is new.

    A part begins with its heading and names the command that printed it.
    """
    page = PAGE.read_text() if PAGE.exists() else "# Experiments\n"
    part = f"<!-- {name} -->\n{said.strip()}\n<!-- end {name} -->\n"
    found = re.compile(rf"<!-- {name} -->\n.*?<!-- end {name} -->\n", re.DOTALL)
    page = found.sub(lambda _: part, page) if found.search(page) else f"{page.rstrip()}\n\n{part}"
    PAGE.write_text(page)
