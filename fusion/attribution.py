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

from fusion.calibrate import sigmoid
from fusion.coalitions import chances, gains, subsets

Array = NDArray[np.float64]
ALL_ORDERS = 3  # parts up to which every order is tried
PAIRS, FEW_PAIRS, MANY = 4, 2, 16  # antithetic pairs of orders; fewer for more than MANY parts

Mask = NDArray[np.bool_]
Fuse = Callable[[Tensor, Tensor], Tensor]  # evidence [N, M, R], present [N, M] → logits [N, R]
Calibrate = Callable[[Array, Mask], Array]  # these, present [N, M] → calibrated logits [N, R]


@dataclass(frozen=True, eq=False, slots=True)
class Shares:
    """points, logit: float64 [M, R], zero for absent modalities."""

    points: Array
    logit: Array


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """One present modality whose tokens are to share its value.

    known  bool [L], which of its tokens are known
    speak  bool [U, L], tokens that are shown → its evidence float32 [U, R]
    fuse   bool [S, M], modalities that are present, and that evidence → logits [S, U, R]
    """

    place: int
    known: Mask
    speak: Callable[[Mask], Tensor]
    fuse: Callable[[Mask, Tensor], Tensor]


def shapley(evidence: Tensor, present: Tensor, fuse: Fuse, calibrate: Calibrate) -> Shares:
    """One patient: evidence [M, R], present [M] → each modality's Shapley value."""
    return valued(evidence, present, fuse, calibrate, ())[0]


def valued(
    evidence: Tensor, present: Tensor, fuse: Fuse, calibrate: Calibrate, parts: Sequence[Part]
) -> tuple[Shares, list[Array]]:
    """One patient, evidence [M, R], present [M]: Shapley values, and Owen values of the tokens of each part.

    Owen values are points, float64 [L, R], zero where a token is unknown. `calibrate` is asked once for all.
    """
    here = torch.nonzero(present).squeeze(1).tolist()
    masks = np.zeros((2 ** len(here), len(present)), bool)
    masks[:, here] = subsets(len(here))
    fused = [fuse(evidence.expand(len(masks), -1, -1), torch.from_numpy(masks)).double().numpy()]
    asked = [masks]
    for part in parts:
        beside = masks[masks[:, part.place]]
        told = part.fuse(beside, part.speak(_shown(part.known))).double().numpy()  # [S, U, R]
        fused.append(told.reshape(-1, told.shape[2]))
        asked.append(beside.repeat(told.shape[1], axis=0))
    logits = calibrate(np.concatenate(fused), np.concatenate(asked))
    risks = np.split(sigmoid(logits), np.cumsum([len(each) for each in asked])[:-1])
    shares = np.zeros((2, len(present), evidence.shape[1]))
    if here:
        shares[:, here] = gains(len(here)) @ np.stack([risks[0], logits[: len(masks)]])
    points = [
        _points(part.known, told, risks[0][~masks[:, part.place]])
        for part, told in zip(parts, risks[1:], strict=True)
    ]
    return Shares(*shares), points


def _shown(known: Mask) -> Mask:
    """Known tokens bool [L] → which of them are shown each time, bool [U, L]."""
    _, steps, _ = _revealed(int(known.sum()))
    shown = np.zeros((len(steps), len(known)), bool)
    shown[:, known] = steps
    return shown


def _points(known: Mask, told: Array, without: Array) -> Array:
    """Owen values of one modality's tokens, float64 [L, R], as they are shown one by one beside every subset
    of the other modalities. Points are linear in risks, so the subsets are averaged first.

    told     float64 [S x U, R], risks beside each subset, as `_shown` tells
    without  float64 [S, R], risks beside each subset when the modality is absent
    """
    places = np.flatnonzero(known)
    orders, steps, back = _revealed(len(places))
    weights = chances(len(without).bit_length())
    mean = (weights @ told.reshape(len(weights), -1)).reshape(len(steps), -1)
    worths = mean[back]  # [order, step, R]
    before = np.broadcast_to(weights @ without, worths[:, :1].shape)
    total = np.zeros((len(known), without.shape[1]))
    np.add.at(total, places[orders], np.diff(worths, axis=1, prepend=before) / len(orders))
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


def _orders(parts: int) -> list[list[int]]:
    if parts <= ALL_ORDERS:
        return [list(order) for order in itertools.permutations(range(parts))]
    rng = np.random.default_rng(parts)  # the same orders for the same number of parts, whoever asks
    drawn = [rng.permutation(parts).tolist() for _ in range(PAIRS if parts <= MANY else FEW_PAIRS)]
    return [order for one in drawn for order in (one, one[::-1])]
