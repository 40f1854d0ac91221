"""Where the research data lie that some tests read; a fresh clone has none, and those tests then skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TESSERA_SHARED") or Path(__file__).parents[2] / "shared")


def shared(path: str) -> Path:
    """The file or folder `path` of the shared data; skips the calling test, saying so, when it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"shared data not found: {path} (looked in {SHARED})")
    return found
