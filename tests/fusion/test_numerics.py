"""A library leaves the processor as it found it."""

from __future__ import annotations

import numpy as np

import fusion
from fusion.numerics import without_denormals

SUBNORMAL = np.float64(5e-324)


def test_embedding_leaves_ieee_754_in_force() -> None:
    assert SUBNORMAL / 1.0 > 0
    fusion.load_backbone("small_cnn").embed(np.zeros((1, 32, 32), np.float32), 32)
    assert SUBNORMAL / 1.0 > 0


def test_a_block_within_a_block_leaves_the_outer_one_as_it_was() -> None:
    with without_denormals():
        with without_denormals():
            assert SUBNORMAL / 1.0 == 0
        assert SUBNORMAL / 1.0 == 0
    assert SUBNORMAL / 1.0 > 0
