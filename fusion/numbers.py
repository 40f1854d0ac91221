"""Numbers that torch is not needed for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sigmoid(logits: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Logits → probabilities, without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.minimum(np.maximum(logits, -60), 60))), np.float64)
