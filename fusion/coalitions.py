"""Coalitions of players and their Shapley weights (Shapley 1953), as arrays. No torch here."""

from __future__ import annotations

from functools import lru_cache
from math import factorial

import numpy as np
from numpy.typing import NDArray


def subsets(players: int) -> NDArray[np.bool_]:
    """bool [2^players, players]; row s holds the bits of s, so that row 0 is empty and the last is full."""
    return (np.arange(2**players)[:, None] >> np.arange(players) & 1).astype(bool)


def weight(size: int, players: int) -> float:
    """Shapley's weight of a coalition of `size` others, among `players`."""
    return factorial(size) * factorial(players - size - 1) / factorial(players)


@lru_cache(maxsize=16)
def chances(players: int) -> NDArray[np.float64]:
    """float64 [2^(players - 1)]: Shapley's weight of each subset of the other players; they sum to 1."""
    return np.array([weight(size, players) for size in subsets(players - 1).sum(axis=1).tolist()])


@lru_cache(maxsize=16)
def gains(players: int) -> NDArray[np.float64]:
    """float64 [players, 2^players]: times the worth of every subset, each player's Shapley value."""
    held = subsets(players).T
    sizes = held.sum(axis=0)
    weights = np.array([weight(size, players) if size < players else 0.0 for size in range(players + 1)])
    return np.asarray(np.where(held, weights[np.maximum(sizes - 1, 0)], -weights[sizes]), np.float64)
