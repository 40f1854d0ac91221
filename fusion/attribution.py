"""Who adds what: Shapley values of modalities, Owen values of their parts. Exact sums, by construction.

Players are the present modalities; the worth of a subset is the calibrated risk (points) or its logit when
only that subset is given. All 2^M subsets are evaluated in one batch (Shapley 1953). Within a modality, its
parts (fields, channels, sentences) share the modality's value: for every subset of the *other* modalities,
weighted as in the Shapley value, parts are revealed one by one in a few permutations and their reverses
(Owen 1977; antithetic sampling). Parts therefore sum to the modality's contribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """One present modality whose tokens are to share its value.

    tokens  its prepared Tokens, of one patient
    speak   prepared Tokens of U patients → its evidence [U, R]
    """

    place: int
    tokens: Tokens
    speak: Speak


def shapley(evidence: Tensor, present: Tensor, worth: Worth) -> Shares:
    """One patient: evidence [M, R], present [M] → each modality's Shapley value."""
    return valued(evidence, present, worth, ())[0]


def valued(
    evidence: Tensor, present: Tensor, worth: Worth, parts: Sequence[Part]
) -> tuple[Shares, list[Array]]:
    """One patient, evidence [M, R], present [M]: Shapley values, and Owen values of the tokens of each part.

    Owen values are points, float64 [L, R], zero where a token is unknown. `worth` is asked once for all.
    """
    here = torch.nonzero(present).squeeze(1).tolist()
    masks = _masks(here, len(present))
    questions = [_revealing(part, evidence, here, len(present)) for part in parts]
    given = torch.cat([evidence.expand(len(masks), -1, -1), *(q.given for q in questions)])
    logits = worth(given, torch.from_numpy(np.concatenate([masks, *(q.asked for q in questions)])))
    risks = sigmoid(logits)
    shares = np.zeros((2, len(present), evidence.shape[1]))
    if here:
        shares[:, here] = gains(len(here)) @ np.stack([risks[: len(masks)], logits[: len(masks)]])
    ends = len(masks) + np.cumsum([len(q.asked) for q in questions], dtype=int)
    points = [q.points(risks[end - len(q.asked) : end]) for q, end in zip(questions, ends, strict=True)]
    return Shares(*shares), points


@dataclass(frozen=True, eq=False, slots=True)
class _Revealing:
    """One modality's tokens, revealed one by one beside every subset of the other modalities.

    given    float32 [N, M, R] and asked bool [N, M]: every subset of the others without this modality, then
             each with each way of revealing it
    places   which of its `tokens` are known;  orders, back: as `_revealed` tells
    weights  float64 [subsets], of Shapley
    """

    given: Tensor
    asked: NDArray[np.bool_]
    tokens: int
    places: NDArray[np.int64]
    orders: NDArray[np.int64]
    back: NDArray[np.int64]
    weights: Array

    def points(self, risks: Array) -> Array:
        """Risks of what was asked, float64 [N, R] → points of each token, float64 [tokens, R]."""
        subsets = len(self.weights)
        without = risks[:subsets, None, None]
        worths = risks[subsets:].reshape(subsets, -1, risks.shape[1])[
            :, self.back
        ]  # [subset, order, step, R]
        steps = np.diff(worths, axis=2, prepend=np.broadcast_to(without, worths[:, :, :1].shape))
        shares = np.einsum("s,sotr->otr", self.weights, steps) / len(self.orders)
        total = np.zeros((self.tokens, risks.shape[1]))
        np.add.at(total, self.places[self.orders], shares)
        return total


def _revealing(part: Part, evidence: Tensor, here: Sequence[int], modalities: int) -> _Revealing:
    place, known = part.place, part.tokens.known
    places = np.flatnonzero(known[0].numpy())
    orders, steps, back = _revealed(len(places))
    revealed = np.zeros((len(steps), known.shape[1]), bool)
    revealed[:, places] = steps
    alike = part.tokens.rows(torch.zeros(len(revealed), dtype=torch.long))
    said = part.speak(alike.hiding(torch.from_numpy(revealed)))
    masks = _masks([m for m in here if m != place], modalities)
    together = masks.copy()
    together[:, place] = True
    given = evidence.repeat(len(masks) * (1 + len(revealed)), 1, 1)
    given[len(masks) :, place] = said.repeat(len(masks), 1)
    asked = np.concatenate([masks, together.repeat(len(revealed), axis=0)])
    weights = np.array([weight(size, len(here)) for size in masks.sum(axis=1).tolist()])
    return _Revealing(given, asked, known.shape[1], places, orders, back, weights)


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


def _masks(players: Sequence[int], modalities: int) -> NDArray[np.bool_]:
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
