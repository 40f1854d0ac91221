"""Every measurement can be found, and a table says which command printed it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import benchmarks.__main__ as listing
from benchmarks import fusion, measuring


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    listing.main()
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    home = Path(listing.__file__).parent
    own = {path.stem for path in home.glob("*.py") if "\ndef main(" in path.read_text()} - {"__main__"}
    own |= {path.parent.name for path in home.glob("*/__main__.py")}
    assert own | set(listing.NAMES) == listed


def test_a_table_of_fusion_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, str] = {}
    monkeypatch.setattr(sys, "argv", ["benchmarks.fusion", "growth", "--here"])
    monkeypatch.setitem(fusion.PARTS, "growth", lambda: measuring.Table("Growth", ("what", "ms")))
    monkeypatch.setattr(listing, "keep", kept.__setitem__)
    fusion.main()
    assert "- `python -m benchmarks.fusion growth`." in kept["fusion_growth"].splitlines()
