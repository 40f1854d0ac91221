"""Workers encode through ONNX Runtime, with the same embeddings as torch's, under the same version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cds.features import encoding
from fusion import load_backbone
from fusion.serving import ServedBackbone


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    encoding.get_backbone.cache_clear()
    yield
    encoding.get_backbone.cache_clear()


def test_the_worker_is_served_by_onnx_runtime(settings: Any, tmp_path: Path) -> None:
    settings.ENCODER_RUNTIME, settings.ENCODER_STORE = "onnxruntime", tmp_path / "encoders"
    served, original = encoding.get_backbone("small_cnn"), load_backbone("small_cnn")
    frames = np.random.default_rng(0).random((3, 50, 40), dtype=np.float32)
    assert isinstance(served, ServedBackbone)
    assert served.version == original.version
    assert np.abs(served.embed(frames, 32) - original.embed(frames, 32)).max() <= 1e-4
    assert {path.suffix for path in (tmp_path / "encoders").iterdir()} == {".onnx", ".sha256", ".lock"}


def test_a_site_can_ask_for_torch(settings: Any) -> None:
    settings.ENCODER_RUNTIME = "torch"
    assert not isinstance(encoding.get_backbone("small_cnn"), ServedBackbone)
