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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.batch import Tokens
from fusion.calibrate import sigmoid
from fusion.coalitions import gains, weight
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
    shares = np.zeros((2, len(present), evidence.shape[1]))
    if here:
        shares[:, here] = gains(len(here)) @ np.stack([sigmoid(logits), logits])
    return Shares(*shares)


def owen(place: int, tokens: Tokens, speak: Speak, evidence: Tensor, present: Tensor, worth: Worth) -> Array:
    """One patient, one present modality: points of each of its tokens, float64 [L, R] (zero where unknown).

    tokens  that modality's prepared Tokens, of one patient
    speak   prepared Tokens of U patients → that modality's evidence [U, R]
    """
    parts = torch.nonzero(tokens.known[0]).squeeze(1).tolist()
    orders = _orders(len(parts))
    revealed, back = _revealed(orders, parts, tokens.known.shape[1])
    said = speak(tokens.rows(torch.zeros(len(revealed), dtype=torch.long)).hiding(revealed))
    others = [m for m in torch.nonzero(present).squeeze(1).tolist() if m != place]
    masks = _masks(others, len(present))
    together = masks.clone()
    together[:, place] = True
    # One batch: every subset of the others without this modality, then each with each way of revealing it.
    given = evidence.repeat(len(masks) * (1 + len(revealed)), 1, 1)
    given[len(masks) :, place] = said.repeat(len(masks), 1)
    asked = torch.cat([masks, together.repeat_interleave(len(revealed), dim=0)])
    risks = sigmoid(worth(given, asked))
    without = risks[: len(masks), None, None]
    steps = risks[len(masks) :].reshape(len(masks), len(revealed), -1)[:, back]  # [subset, order, step, R]
    gains = np.diff(steps, axis=2, prepend=np.broadcast_to(without, steps[:, :, :1].shape))
    weights = np.array([weight(int(size), len(others) + 1) for size in masks.sum(dim=1)])
    shares = np.einsum("s,sotr->otr", weights, gains) / len(orders)
    total = np.zeros((tokens.known.shape[1], evidence.shape[1]))
    np.add.at(total, np.array(parts)[np.array(orders)], shares)
    return total


def _revealed(orders: list[list[int]], parts: list[int], tokens: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Distinct masks bool [U, L] met while parts are revealed in these orders; which, int [order, step]."""
    places = np.array(parts)[np.array(orders)]
    known = np.zeros((*places.shape, tokens), bool)
    for step in range(places.shape[1]):
        known[np.arange(len(orders))[:, None], np.arange(step, places.shape[1]), places[:, [step]]] = True
    flat = known.reshape(-1, tokens)
    _, first, back = np.unique(np.packbits(flat, axis=1), axis=0, return_index=True, return_inverse=True)
    return torch.from_numpy(flat[first]), np.asarray(back).reshape(places.shape)


def _masks(players: list[int], modalities: int) -> Tensor:
    """bool [2^k, M]: every subset of the players; row s holds the bits of s."""
    subsets = all_subsets(len(players))
    masks = torch.zeros(len(subsets), modalities, dtype=torch.bool)
    masks[:, players] = subsets
    return masks


def _orders(parts: int) -> list[list[int]]:
    if parts <= ALL_ORDERS:
        return [list(order) for order in itertools.permutations(range(parts))]
    rng = np.random.default_rng(parts)  # the same orders for the same number of parts, whoever asks
    drawn = [rng.permutation(parts).tolist() for _ in range(PAIRS if parts <= MANY else FEW_PAIRS)]
    return [order for one in drawn for order in (one, one[::-1])]
