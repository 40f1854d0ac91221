"""Who adds what: Shapley values of modalities, Owen values of their parts. Exact sums, by construction.

Players are the present modalities; the worth of a subset is the calibrated risk (points) or its logit when
only that subset is given. All 2^M subsets are evaluated in one batch (Shapley 1953). Within a modality, its
parts (fields, channels, sentences) share the modality's value: for every subset of the *other* modalities,
weighted as in the Shapley value, parts are revealed one by one in a few permutations and their reverses
(Owen 1977; antithetic sampling). Parts therefore sum to the modality's contribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from math import factorial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.batch import Tokens
from fusion.calibrate import sigmoid
from fusion.patterns import all_subsets

Array = NDArray[np.float64]
ALL_ORDERS = 3  # parts up to which every order is tried
PAIRS, FEW_PAIRS, MANY = 4, 2, 16  # antithetic pairs of orders; fewer for more than MANY parts

Speak = Callable[[Tokens], Tensor]
Worth = Callable[[Tensor, Tensor], Array]  # evidence [N, M, R], present [N, M] → calibrated logits [N, R]


@dataclass(frozen=True, eq=False, slots=True)
class Shares:
    """points, logit: float64 [M, R], zero for absent modalities."""

    points: Array
    logit: Array


def shapley(evidence: Tensor, present: Tensor, worth: Worth) -> Shares:
    """One patient: evidence [M, R], present [M] → each modality's Shapley value."""
    here = torch.nonzero(present).squeeze(1).tolist()
    subsets = _masks(here, len(present))
    logits = worth(evidence.expand(len(subsets), -1, -1), subsets)
    worths = {"points": sigmoid(logits), "logit": logits}
    shares = {name: np.zeros((len(present), evidence.shape[1])) for name in worths}
    sizes = [bin(s).count("1") for s in range(len(subsets))]
    for bit, place in enumerate(here):
        for subset in range(len(subsets)):
            if subset >> bit & 1:
                continue
            weight = _weight(sizes[subset], len(here))
            for name, value in worths.items():
                shares[name][place] += weight * (value[subset | 1 << bit] - value[subset])
    return Shares(shares["points"], shares["logit"])


def owen(place: int, tokens: Tokens, speak: Speak, evidence: Tensor, present: Tensor, worth: Worth) -> Array:
    """One patient, one present modality: points of each of its tokens, float64 [L, R] (zero where unknown).

    tokens  that modality's prepared Tokens, of one patient
    speak   prepared Tokens of U patients → that modality's evidence [U, R]
    """
    parts = torch.nonzero(tokens.known[0]).squeeze(1).tolist()
    total = np.zeros((tokens.known.shape[1], evidence.shape[1]))
    orders = _orders(len(parts))
    known = torch.zeros(len(orders), len(parts) + 1, tokens.known.shape[1], dtype=torch.bool)
    for o, order in enumerate(orders):
        for step, index in enumerate(order):
            known[o, step + 1 :, parts[index]] = True
    flat = known[:, 1:].reshape(-1, known.shape[2])
    unique, back = torch.unique(flat, dim=0, return_inverse=True)
    repeated = tokens.rows(torch.zeros(len(unique), dtype=torch.long)).hiding(unique)
    said = speak(repeated)
    others = [m for m in torch.nonzero(present).squeeze(1).tolist() if m != place]
    masks = _masks(others, len(present))
    for mask in masks:
        weight = _weight(int(mask.sum()), len(others) + 1)
        without = sigmoid(worth(evidence[None], mask[None]))[0]
        given = evidence.expand(len(unique), -1, -1).clone()
        given[:, place] = said
        together = mask.clone()
        together[place] = True
        risks = sigmoid(worth(given, together.expand(len(unique), -1)))[back.numpy()]
        risks = risks.reshape(len(orders), len(parts), -1)
        steps = np.diff(np.concatenate([np.tile(without, (len(orders), 1, 1)), risks], axis=1), axis=1)
        for o, order in enumerate(orders):
            for step, index in enumerate(order):
                total[parts[index]] += weight * steps[o, step] / len(orders)
    return total


def _masks(players: list[int], modalities: int) -> Tensor:
    """bool [2^k, M]: every subset of the players; row s holds the bits of s."""
    subsets = all_subsets(len(players))
    masks = torch.zeros(len(subsets), modalities, dtype=torch.bool)
    masks[:, players] = subsets
    return masks


def _weight(size: int, players: int) -> float:
    """Shapley's weight of a subset of `size` others."""
    return factorial(size) * factorial(players - size - 1) / factorial(players)


def _orders(parts: int) -> list[list[int]]:
    if parts <= ALL_ORDERS:
        return [list(order) for order in itertools.permutations(range(parts))]
    rng = np.random.default_rng(parts)  # the same orders for the same number of parts, whoever asks
    drawn = [rng.permutation(parts).tolist() for _ in range(PAIRS if parts <= MANY else FEW_PAIRS)]
    return [order for one in drawn for order in (one, one[::-1])]
