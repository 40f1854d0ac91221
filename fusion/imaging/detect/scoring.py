"""How well boxes were found: average precision and FROC, by hand-checkable rules.

A finding is right when the box of its picture that it overlaps most, among those of its label, is overlapped
by at least `overlap` and was not claimed by a surer finding (the rule of Pascal VOC; Everingham 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fusion.imaging.detect.boxes import overlaps
from fusion.imaging.detect.faster_rcnn import Found, Truth

Floats = NDArray[np.float64]
FALSE_PER_PICTURE = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


@dataclass(frozen=True, eq=False, slots=True)
class Judged:
    """Every finding of some pictures, judged.

    scores float64 [N]; is_right bool [N]; labels, pictures int64 [N]; truths int64 [P, labels], boxes there
    are
    """

    scores: Floats
    is_right: NDArray[np.bool_]
    labels: NDArray[np.int64]
    pictures: NDArray[np.int64]
    truths: NDArray[np.int64]


def judge(found: Sequence[Found], truths: Sequence[Truth], *, labels: int, overlap: float = 0.5) -> Judged:
    """One Found and one Truth a picture → Judged."""
    rows: list[tuple[float, bool, int, int]] = []
    for picture, (said, truth) in enumerate(zip(found, truths, strict=True)):
        claimed: set[int] = set()
        shared = overlaps(said.boxes, truth.boxes)
        for place in torch.argsort(said.scores, descending=True, stable=True).tolist():
            label = int(said.labels[place])
            among = torch.nonzero(truth.labels == label).squeeze(1)
            is_right = False
            if len(among):
                best = int(among[int(shared[place, among].argmax())])
                is_right = float(shared[place, best]) >= overlap and best not in claimed
                claimed |= {best} if is_right else set()
            rows.append((float(said.scores[place]), is_right, label, picture))
    scores, right, label_of, picture_of = zip(*rows, strict=True) if rows else ((), (), (), ())
    counts = [np.bincount(truth.labels.numpy(), minlength=labels) for truth in truths]
    return Judged(
        np.array(scores, np.float64),
        np.array(right, np.bool_),
        np.array(label_of, np.int64),
        np.array(picture_of, np.int64),
        np.array(counts, np.int64).reshape(len(truths), labels),
    )


def average_precision(judged: Judged, label: int, weights: Floats | None = None) -> float | None:
    """Area under precision over recall, precision made falling first, at every recall there is (all-point
    interpolation: VOC from 2010 on; COCO samples the same curve at 101 recalls). None without a box to find.

    weights  float64 [P]: how often each picture counts
    """
    weights = np.ones(len(judged.truths)) if weights is None else weights
    there = float((judged.truths[:, label] * weights).sum())
    if not there:
        return None
    rows = np.flatnonzero(judged.labels == label)
    rows = rows[np.argsort(-judged.scores[rows], kind="stable")]
    weight = weights[judged.pictures[rows]]
    right = np.cumsum(weight * judged.is_right[rows])
    said = np.cumsum(weight)
    precision = np.divide(right, said, out=np.zeros(len(rows)), where=said > 0)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(right / there, prepend=0.0) * falling).sum())


def mean_average_precision(judged: Judged, weights: Floats | None = None) -> float | None:
    """Mean over the labels that have a box to find: mAP at the overlap that `judge` was given."""
    each = [average_precision(judged, label, weights) for label in range(judged.truths.shape[1])]
    known = [value for value in each if value is not None]
    return float(np.mean(known)) if known else None


def froc(
    judged: Judged, rates: Sequence[float] = FALSE_PER_PICTURE, weights: Floats | None = None
) -> list[float | None]:
    """Free-response ROC (Chakraborty 1989): the share of boxes found at the lowest threshold that calls at
    most `rate` findings a picture that are none, for each rate; all labels together."""
    weights = np.ones(len(judged.truths)) if weights is None else weights
    there = float((judged.truths.sum(axis=1) * weights).sum())
    if not there:
        return [None for _ in rates]
    order = np.argsort(-judged.scores, kind="stable")
    weight = weights[judged.pictures[order]]
    last = np.append(np.diff(judged.scores[order]) != 0, True)[: len(order)]  # ties share one threshold
    wrong = np.cumsum(weight * ~judged.is_right[order])[last] / weights.sum()
    right = np.cumsum(weight * judged.is_right[order])[last] / there
    return [float(right[wrong <= rate + 1e-12].max(initial=0.0)) for rate in rates]
