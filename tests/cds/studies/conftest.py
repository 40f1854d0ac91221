"""A store of its own for every test, and files to put into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import generate_uid

from tests.ehr.dicom.making import make_file

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, settings: Any) -> Path:
    """An empty STUDY_STORE."""
    settings.STUDY_STORE = tmp_path / "store"
    return tmp_path / "store"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(value=…, **elements): a DICOM file of 8 x 8 pixels of that value, in one Study and Series."""
    study, series = generate_uid(), generate_uid()
    made = 0

    def _make(value: int = 100, pixels: np.ndarray | None = None, **elements: Any) -> Path:
        nonlocal made
        made += 1
        chosen = np.full((8, 8), value, np.uint8) if pixels is None else pixels
        known = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        return make_file(tmp_path, chosen, f"{made}.dcm", **{**known, **elements})

    return _make
