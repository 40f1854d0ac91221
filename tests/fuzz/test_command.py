"""The nightly command fails when a test does, and when memory goes over its ceiling."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fuzz import __main__ as command


@pytest.mark.parametrize(
    ("tests", "memory", "exit_code", "verdict"),
    [(0, "100000", 0, "good"), (0, "1", 1, "OVER 1 MiB"), (2, "100000", 2, "BROKEN")],
)
def test_what_it_ends_with(
    tests: int,
    memory: str,
    exit_code: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*_: Any) -> int:
        return tests

    monkeypatch.setattr("tests.fuzz.__main__.pytest.main", run)
    monkeypatch.setattr("sys.argv", ["fuzz", "fhir", "--examples", "7", "--memory", memory])
    monkeypatch.setenv("TESSERA_FUZZ_EXAMPLES", "60")
    assert command.main() == exit_code
    assert capsys.readouterr().out.strip().endswith(verdict)
