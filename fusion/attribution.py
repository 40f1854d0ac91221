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
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.batch import Tokens
from fusion.calibrate import sigmoid
from fusion.coalitions import gains, subsets, weight

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
    masks = _masks(here, len(present))
    logits = worth(evidence.expand(len(masks), -1, -1), torch.from_numpy(masks))
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
    orders, steps, back = _revealed(len(parts))
    revealed = np.zeros((len(steps), tokens.known.shape[1]), bool)
    revealed[:, parts] = steps
    alike = tokens.rows(torch.zeros(len(revealed), dtype=torch.long))
    said = speak(alike.hiding(torch.from_numpy(revealed)))
    others = [m for m in torch.nonzero(present).squeeze(1).tolist() if m != place]
    masks = _masks(others, len(present))
    together = masks.copy()
    together[:, place] = True
    # One batch: every subset of the others without this modality, then each with each way of revealing it.
    given = evidence.repeat(len(masks) * (1 + len(revealed)), 1, 1)
    given[len(masks) :, place] = said.repeat(len(masks), 1)
    asked = np.concatenate([masks, together.repeat(len(revealed), axis=0)])
    risks = sigmoid(worth(given, torch.from_numpy(asked)))
    without = risks[: len(masks), None, None]
    worths = risks[len(masks) :].reshape(len(masks), len(revealed), -1)[:, back]  # [subset, order, step, R]
    gains = np.diff(worths, axis=2, prepend=np.broadcast_to(without, worths[:, :, :1].shape))
    weights = np.array([weight(size, len(others) + 1) for size in masks.sum(axis=1).tolist()])
    shares = np.einsum("s,sotr->otr", weights, gains) / len(orders)
    total = np.zeros((tokens.known.shape[1], evidence.shape[1]))
    np.add.at(total, np.array(parts)[orders], shares)
    return total


@lru_cache(maxsize=128)
def _revealed(parts: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """How so many parts are revealed: the same for all patients who have as many.

    orders int [O, parts]; the distinct masks met on the way, bool [U, parts]; which, int [O, step]
    """
    orders = np.array(_orders(parts), np.int64).reshape(-1, parts)
    known = np.zeros((*orders.shape, parts), bool)
    for step in range(parts):
        known[np.arange(len(orders))[:, None], np.arange(step, parts), orders[:, [step]]] = True
    flat = known.reshape(-1, parts)
    _, first, back = np.unique(np.packbits(flat, axis=1), axis=0, return_index=True, return_inverse=True)
    return orders, flat[first], np.asarray(back).reshape(orders.shape)


def _masks(players: list[int], modalities: int) -> NDArray[np.bool_]:
    """bool [2^k, M]: every subset of the players; row s holds the bits of s."""
    masks = np.zeros((2 ** len(players), modalities), bool)
    masks[:, players] = subsets(len(players))
    return masks


def _orders(parts: int) -> list[list[int]]:
    if parts <= ALL_ORDERS:
        return [list(order) for order in itertools.permutations(range(parts))]
    rng = np.random.default_rng(parts)  # the same orders for the same number of parts, whoever asks
    drawn = [rng.permutation(parts).tolist() for _ in range(PAIRS if parts <= MANY else FEW_PAIRS)]
    return [order for one in drawn for order in (one, one[::-1])]
