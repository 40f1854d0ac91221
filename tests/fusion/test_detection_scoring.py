"""Average precision and FROC against cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusion.imaging.detect.faster_rcnn import Found, Truth
from fusion.imaging.detect.scoring import average_precision, froc, judge, mean_average_precision

HERE, THERE, NOWHERE = [0.0, 0, 10, 10], [20.0, 20, 30, 30], [50.0, 50, 60, 60]


def found(*rows: tuple[list[float], float], label: int = 0) -> Found:
    boxes = torch.tensor([b for b, _ in rows]).reshape(-1, 4)
    return Found(boxes, torch.full((len(rows),), label), torch.tensor([s for _, s in rows]))


def truth(*boxes: list[float], label: int = 0) -> Truth:
    return Truth(torch.tensor(boxes).reshape(-1, 4), torch.full((len(boxes),), label))


def test_average_precision_of_a_case_counted_by_hand() -> None:
    """Right, wrong, right, right of four boxes: precision 1, 1/2, 2/3, 3/4 at recall 1/4, 1/4, 2/4, 3/4."""
    judged = judge(
        [found((HERE, 0.9), (NOWHERE, 0.8), (THERE, 0.7)), found((HERE, 0.6))],
        [truth(HERE, THERE), truth(HERE, THERE)],
        labels=1,
    )
    assert judged.is_right.tolist() == [True, False, True, True]
    assert average_precision(judged, 0) == pytest.approx(0.25 * 1 + 0.25 * 0.75 + 0.25 * 0.75)


def test_a_second_finding_of_one_box_is_wrong() -> None:
    judged = judge([found((HERE, 0.9), (HERE, 0.8))], [truth(HERE)], labels=1)
    assert judged.is_right.tolist() == [True, False]
    assert average_precision(judged, 0) == pytest.approx(1.0)


def test_overlap_decides_and_the_label_too() -> None:
    near = [0.0, 0, 10, 6]  # 0.6 of it
    assert judge([found((near, 0.9))], [truth(HERE)], labels=1).is_right.all()
    assert not judge([found((near, 0.9))], [truth(HERE)], labels=1, overlap=0.75).is_right.any()
    assert not judge([found((HERE, 0.9), label=1)], [truth(HERE)], labels=2).is_right.any()
    assert not judge([found((HERE, 0.9)), found()], [truth(), truth(HERE)], labels=1).is_right.any()


def test_the_mean_is_over_labels_that_are_there() -> None:
    said, true = found((HERE, 0.9)), truth(HERE)
    judged = judge([said], [true], labels=3)
    assert mean_average_precision(judged) == 1.0
    assert average_precision(judged, 2) is None
    assert mean_average_precision(judge([found((HERE, 0.9))], [truth()], labels=1)) is None
    assert mean_average_precision(judge([found()], [truth(HERE)], labels=1)) == 0.0


def test_froc_of_a_case_counted_by_hand() -> None:
    """Two pictures, four boxes; falling scores: right, wrong, right, wrong, right."""
    judged = judge(
        [found((HERE, 0.9), (NOWHERE, 0.8), (THERE, 0.7)), found((NOWHERE, 0.6), (HERE, 0.5))],
        [truth(HERE, THERE), truth(HERE, THERE)],
        labels=1,
    )
    assert froc(judged, (1 / 8, 1 / 2, 1, 8)) == pytest.approx([0.25, 0.5, 0.75, 0.75])
    assert froc(judge([found()], [truth()], labels=1), (1,)) == [None]


def test_equal_scores_are_called_together() -> None:
    judged = judge([found((HERE, 0.5), (NOWHERE, 0.5))], [truth(HERE)], labels=1)
    assert froc(judged, (0.5, 1)) == [0.0, 1.0]


def test_a_picture_that_counts_twice_is_as_two_of_it() -> None:
    rng = np.random.default_rng(0)
    said, true = [], []
    for _ in range(6):
        places = rng.integers(0, 3, 3)
        said.append(found(*[([HERE, THERE, NOWHERE][p], float(rng.random())) for p in places]))
        true.append(truth(HERE, THERE))
    judged, weights = judge(said, true, labels=1), np.array([2.0, 0, 1, 1, 3, 0])
    often = [i for i, w in enumerate(weights) for _ in range(int(w))]
    again = judge([said[i] for i in often], [true[i] for i in often], labels=1)
    assert froc(judged, weights=weights) == pytest.approx(froc(again))
    # Copies of one picture tie in score, so they are one step of the curve only up to their order.
    assert average_precision(judged, 0, weights) == pytest.approx(average_precision(again, 0), abs=0.08)
