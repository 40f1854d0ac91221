"""The door of the room: what it exports is there, sorted, and loads neither Django nor torch."""

from __future__ import annotations

import subprocess
import sys

import ehr


def test_the_names_are_sorted_and_there() -> None:
    assert list(ehr.__all__) == sorted(set(ehr.__all__))
    assert [name for name in ehr.__all__ if not hasattr(ehr, name)] == []


def test_it_loads_neither_django_nor_torch() -> None:
    code = "import sys, ehr; print([m for m in ('django', 'torch', 'celery', 'pint') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
