"""The front door of fusion: sorted, complete, and the only one."""

from __future__ import annotations

import subprocess
import sys

import fusion


def test_all_is_sorted_and_everything_in_it_exists() -> None:
    assert fusion.__all__ == sorted(fusion.__all__)
    for name in fusion.__all__:
        assert getattr(fusion, name).__doc__, f"{name} has no docstring"


def test_importing_fusion_loads_no_heavy_optional_library() -> None:
    code = "import sys, fusion; print([m for m in ('monai', 'transformers', 'django') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_inputs_digest_ignores_order_and_missing_values() -> None:
    a = fusion.PatientInputs(key="a", fields={"x": 1.0, "y": None})
    b = fusion.PatientInputs(key="b", fields={"x": 1.0})
    c = fusion.PatientInputs(key="a", fields={"x": 1.5})
    assert a.digest() == b.digest() != c.digest()
