"""The parts of a detector against plain loops: overlap, suppression, coding, RoIAlign, anchors, matching."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion.imaging.detect import boxes as box
from fusion.imaging.detect import regions
from fusion.imaging.detect.roi_align import roi_align

seeds = st.integers(0, 2**31 - 1)


def random_boxes(count: int, draw: np.random.Generator, size: float = 50.0, *, least: float = 0.0) -> Tensor:
    corners = draw.uniform(0, size, (count, 2))
    return torch.tensor(
        np.concatenate([corners, corners + draw.uniform(least, size / 2, (count, 2))], 1)
    ).float()


def plain_overlap(a: list[float], b: list[float]) -> float:
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union if union > 0 else 0.0


def plain_suppression(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor) -> list[int]:
    left = sorted(range(len(boxes)), key=lambda i: -float(scores[i]))
    kept: list[int] = []
    for i in left:
        near = [
            labels[i] == labels[k] and plain_overlap(boxes[i].tolist(), boxes[k].tolist()) > threshold
            for k in kept
        ]
        if not any(near):
            kept.append(i)
    return kept


def plain_roi_align(
    maps: np.ndarray, boxes: np.ndarray, scale: tuple[float, float], bins: int, samples: int
) -> np.ndarray:
    """Every sample of every bin, one after the other (He 2017, aligned)."""
    channels, height, width = maps.shape

    def at(c: int, y: float, x: float) -> float:
        if y < -1 or y > height or x < -1 or x > width:
            return 0.0
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        y0, x0 = math.floor(y), math.floor(x)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        b, a = y - y0, x - x0
        top = maps[c, y0, x0] * (1 - a) + maps[c, y0, x1] * a
        bottom = maps[c, y1, x0] * (1 - a) + maps[c, y1, x1] * a
        return float(top * (1 - b) + bottom * b)

    found = np.zeros((len(boxes), channels, bins, bins))
    for n, (y0, x0, y1, x1) in enumerate(boxes):
        y0, y1, x0, x1 = y0 * scale[0] - 0.5, y1 * scale[0] - 0.5, x0 * scale[1] - 0.5, x1 * scale[1] - 0.5
        high, wide = (y1 - y0) / bins, (x1 - x0) / bins
        for c in range(channels):
            for p in range(bins):
                for q in range(bins):
                    points = [
                        at(c, y0 + high * (p + (i + 0.5) / samples), x0 + wide * (q + (j + 0.5) / samples))
                        for i in range(samples)
                        for j in range(samples)
                    ]
                    found[n, c, p, q] = np.mean(points)
    return found


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_overlaps_are_those_of_a_plain_loop(seed: int) -> None:
    draw = np.random.default_rng(seed)
    one, other = random_boxes(5, draw), random_boxes(4, draw)
    plain = [[plain_overlap(a, b) for b in other.tolist()] for a in one.tolist()]
    torch.testing.assert_close(box.overlaps(one, other), torch.tensor(plain), atol=1e-5, rtol=1e-4)


def test_a_box_overlaps_itself_wholly_and_an_empty_one_not_at_all() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5], [0, 5, 10, 15]])
    shared = box.overlaps(boxes, boxes)
    assert shared[0].tolist() == pytest.approx([1, 0, 1 / 3])
    assert shared[1].tolist() == [0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0.1, 0.9))
def test_suppression_is_that_of_a_plain_loop(seed: int, threshold: float) -> None:
    draw = np.random.default_rng(seed)
    boxes, scores = random_boxes(20, draw), torch.tensor(draw.random(20)).float()
    labels = torch.tensor(draw.integers(0, 3, 20))
    assert box.suppress(boxes, scores, threshold, labels).tolist() == plain_suppression(
        boxes, scores, threshold, labels
    )
    alone = torch.zeros(20, dtype=torch.int64)
    assert box.suppress(boxes, scores, threshold).tolist() == plain_suppression(
        boxes, scores, threshold, alone
    )


def test_of_equal_scores_the_earlier_row_stays() -> None:
    same = torch.tensor([[0.0, 0, 4, 4]] * 3)
    assert box.suppress(same, torch.ones(3), 0.5).tolist() == [0]
    assert box.suppress(same[:0], torch.ones(0), 0.5).tolist() == []


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_decoding_undoes_coding(seed: int) -> None:
    draw = np.random.default_rng(seed)
    boxes, references = random_boxes(9, draw, least=1), random_boxes(9, draw, least=1)
    back = box.decode(box.encode(boxes, references), references)
    torch.testing.assert_close(back, boxes, atol=1e-3, rtol=1e-4)
    assert box.encode(references, references).abs().max() < 1e-5


def test_a_step_is_in_sizes_of_its_reference() -> None:
    moved = box.decode(torch.tensor([[1.0, 0, 0, math.log(2)]]), torch.tensor([[0.0, 0, 10, 20]]))
    torch.testing.assert_close(moved, torch.tensor([[10.0, -10, 20, 30]]))


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_roi_align_is_that_of_a_plain_loop(seed: int, bins: int, samples: int) -> None:
    draw = np.random.default_rng(seed)
    maps = torch.tensor(draw.normal(size=(2, 5, 7)))
    boxes = (random_boxes(4, draw, size=48) - 8).double()  # some reach beyond the picture
    scale = (5 / 40, 7 / 40)
    plain = plain_roi_align(maps.numpy(), boxes.numpy(), scale, bins, samples)
    found = roi_align(maps, boxes, scale=scale, bins=bins, samples=samples)
    np.testing.assert_allclose(found.numpy(), plain, atol=1e-6)


def test_gradients_of_roi_align_are_those_of_small_differences() -> None:
    draw = np.random.default_rng(3)
    maps = torch.tensor(draw.normal(size=(2, 4, 5)), requires_grad=True)
    boxes = (random_boxes(3, draw, size=30) - 4).double()
    assert torch.autograd.gradcheck(lambda m: roi_align(m, boxes, scale=(0.13, 0.17), bins=3), (maps,))


def test_roi_align_reads_a_ramp_where_it_lies() -> None:
    """Cell i, centred at i + 0.5, holds i + 0.5: a bin then holds the coordinate of its own centre."""
    ramp = (torch.arange(16) + 0.5).view(1, 16, 1).expand(1, 16, 16)
    found = roi_align(ramp, torch.tensor([[4.0, 4, 12, 12]]), scale=(1.0, 1.0), bins=4)
    torch.testing.assert_close(found[0, 0, :, 0], torch.tensor([5.0, 7, 9, 11]))
    doubled = roi_align(ramp, torch.tensor([[8.0, 8, 24, 24]]), scale=(0.5, 0.5), bins=4)
    torch.testing.assert_close(doubled, found)


def test_anchors_stand_on_cells_with_the_stated_areas_and_ratios() -> None:
    found = regions.anchors((2, 4), 64).view(2, 4, 6, 4)
    middle = (found[..., :2] + found[..., 2:]) / 2
    torch.testing.assert_close(middle[1, 2, 0], torch.tensor([48.0, 40.0]))
    size = found[..., 2:] - found[..., :2]
    for place, (scale, ratio) in enumerate((s, r) for s in regions.SCALES for r in regions.RATIOS):
        height, width = size[0, 0, place].tolist()
        assert height * width == pytest.approx((4 * scale) ** 2 * 32 * 16, rel=1e-5)
        assert height / width == pytest.approx(ratio * 32 / 16, rel=1e-5)


def test_candidates_stand_for_what_they_overlap() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [40, 40, 44, 44]])
    candidates = torch.tensor(
        [[0.0, 0, 10, 9], [0, 0, 10, 5], [0, 0, 10, 2], [30, 30, 50, 50], [60, 60, 70, 70]]
    )
    asked = {"low": 0.3, "high": 0.7}
    found = regions.match(candidates, truth, **asked, each_truth_has_one=False)
    assert found.tolist() == [0, regions.IGNORED, regions.BACKGROUND, regions.BACKGROUND, regions.BACKGROUND]
    found = regions.match(candidates, truth, **asked, each_truth_has_one=True)
    assert found.tolist() == [0, regions.IGNORED, regions.BACKGROUND, 1, regions.BACKGROUND]
    assert regions.match(candidates, truth[:0], **asked, each_truth_has_one=True).tolist() == [-1] * 5


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(0, 30), st.integers(0, 30))
def test_sampling_takes_what_it_may_and_no_more(seed: int, with_truth: int, ignored: int) -> None:
    matched = torch.tensor([0] * with_truth + [regions.IGNORED] * ignored + [regions.BACKGROUND] * 20)
    some, none = regions.sample(matched, 16, 0.25, torch.Generator().manual_seed(seed))
    assert len(some) == min(with_truth, 4)
    assert len(none) == 16 - len(some)
    assert (matched[some] >= 0).all()
    assert (matched[none] == regions.BACKGROUND).all()
    assert len(set(none.tolist())) == len(none)


def test_larger_regions_are_read_from_coarser_levels() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 60, 60], [0, 0, 200, 250]])
    assert regions.level_of(boxes, [(64, 64), (32, 32), (8, 8)], 256).tolist() == [0, 1, 2]
