"""Detectors learn, answer in pixels and millimetres of what they were given, and are kept unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.backbones.image import load_backbone
from fusion.errors import BadInput, BundleMismatch, NotEnoughData
from fusion.imaging.detect import Box, Detector, DetectorConfig, Picture, train_detector
from fusion.imaging.detect.detector import _moved, _truth, _weight
from fusion.imaging.detect.faster_rcnn import Truth
from fusion.imaging.detect.pyramid import Pyramid
from fusion.imaging.detect.scoring import judge, mean_average_precision
from fusion.inputs import Frames

CONFIG = DetectorConfig(
    labels=("bright", "dark"),
    backbone="small_cnn",
    strides=(4, 8),
    size=48,
    width=24,
    copies=1,
    epochs=10,
    learning_rate=4e-3,
)


def pictures(count: int, seed: int, *, shape: tuple[int, int] = (48, 48)) -> list[Picture]:
    """Grey noise with one bright and one dark box each."""
    draw, made = np.random.default_rng(seed), []
    for _ in range(count):
        values = draw.normal(0.35, 0.03, shape).astype(np.float32)
        boxes = []
        for shade in (0.98, 0.02):
            h, w = draw.integers(12, 22, 2)
            y, x = draw.integers(0, shape[0] - h), draw.integers(0, shape[1] - w)
            values[y : y + h, x : x + w] = shade
            boxes.append((y, x, y + h, x + w))
        made.append(Picture(values.clip(0, 1), np.array(boxes, np.float32), ("bright", "dark")))
    return made


def score(detector: Detector, held: list[Picture]) -> float:
    found = detector.find(np.stack([p.values for p in held]))
    judged = judge(found, [_truth(p, detector.config) for p in held], labels=2)
    return mean_average_precision(judged) or 0.0


@pytest.fixture(scope="module")
def detector() -> Detector:
    return train_detector(pictures(40, 1), CONFIG)


def test_it_learns_to_find_what_it_was_shown(detector: Detector) -> None:
    held = pictures(16, 2)
    assert score(Detector(CONFIG), held) < 0.1
    assert score(detector, held) > 0.5


def test_the_same_call_gives_the_same_detector(detector: Detector) -> None:
    short = replace(CONFIG, epochs=1)
    one, two = train_detector(pictures(8, 1), short), train_detector(pictures(8, 1), short)
    for a, b in zip(one.head.state_dict().values(), two.head.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_findings_are_in_pixels_and_millimetres_of_the_frame_given(detector: Detector) -> None:
    small = pictures(1, 5)[0].values
    large = np.kron(small, np.ones((2, 4), np.float32))
    frames = Frames(small[None], np.zeros(1, np.float32))
    wide = Frames(large[None], np.zeros(1, np.float32), spacing_mm=(0.5, 0.25))
    plain, scaled = detector.detect(frames, threshold=0.2), detector.detect(wide, threshold=0.2)
    assert plain
    assert plain[0].height_mm is None
    assert [b.score for b in plain] == sorted((b.score for b in plain), reverse=True)
    twins = [same for one in plain for same in scaled if _is_twin(one, same)]
    assert twins, "nothing was found in the same place of the larger picture"
    for same in scaled:
        assert same.height_mm == pytest.approx(same.h * 0.5)
        assert same.width_mm == pytest.approx(same.w * 0.25)


def _is_twin(one: Box, same: Box) -> bool:
    """The same finding, to half a pixel, where the picture is twice as high and four times as wide."""
    places = (2 * one.y - same.y, 2 * one.h - same.h, (4 * one.x - same.x) / 2, (4 * one.w - same.w) / 2)
    return one.label == same.label and max(map(abs, places)) <= 1


def test_a_detector_is_kept_and_answers_the_same(detector: Detector, tmp_path: Path) -> None:
    digest = detector.save(tmp_path)
    back = Detector.load(tmp_path, digest=digest)
    frames = Frames(np.stack([p.values for p in pictures(2, 7)]), np.zeros(2, np.float32))
    assert back.detect(frames, threshold=0.05) == detector.detect(frames, threshold=0.05)


@pytest.mark.parametrize("harm", ["weights", "metadata", "missing", "digest", "backbone"])
def test_a_folder_that_was_changed_is_refused(detector: Detector, tmp_path: Path, harm: str) -> None:
    digest = detector.save(tmp_path)
    weights, metadata = tmp_path / "detector.safetensors", tmp_path / "metadata.json"
    if harm == "weights":
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    elif harm == "metadata":
        metadata.write_text(metadata.read_text().replace('"width": 24', '"width": "x"'))
    elif harm == "missing":
        weights.unlink()
    elif harm == "digest":
        digest = "0" * 64
    else:
        metadata.write_text(metadata.read_text().replace("small_cnn:", "small_cnn:0"))
        digest = None  # type: ignore[assignment]
    with pytest.raises(BundleMismatch):
        Detector.load(tmp_path, digest=digest)


def test_the_transformer_learns_too() -> None:
    taught = pictures(24, 1)
    config = replace(CONFIG, kind="rt_detr", epochs=6, width=32)
    losses: list[float] = []
    train_detector(taught, config, tell=lambda epoch, of, loss, tuning: losses.append(loss))
    assert losses[-1] < 0.85 * losses[0]


def test_tuning_pictures_stop_it_early() -> None:
    seen: list[float | None] = []
    train_detector(
        pictures(8, 1),
        replace(CONFIG, epochs=2),
        tuning=pictures(4, 3),
        tell=lambda epoch, of, loss, tuning: seen.append(tuning),
    )
    assert all(value is not None and value > 0 for value in seen)


def test_boxes_move_with_the_picture() -> None:
    """A bright square stays inside its box, whatever is done to the picture."""
    frame = torch.zeros(1, 1, 64, 64)
    frame[..., 20:40, 10:30] = 1.0
    truth = Truth(torch.tensor([[20.0, 10, 40, 30]]), torch.tensor([0]))
    for seed in range(10):
        moved, there = _moved(frame, truth, np.random.default_rng(seed))
        lit = torch.nonzero(moved[0, 0] > 0.6)
        expected = torch.cat([lit.min(0).values, lit.max(0).values + 1]).float()
        torch.testing.assert_close(there.boxes[0], expected, atol=1.2, rtol=0)


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "efficientnet_lite0"])
def test_maps_come_from_the_strides_asked_for(name: str) -> None:
    pyramid = Pyramid(load_backbone(name), (4, 8))
    with torch.no_grad():
        maps = pyramid(torch.rand(2, 1, 96, 96))
    assert [round(96 / m.shape[2]) for m in maps] == pytest.approx([4, 8], abs=1)
    assert tuple(m.shape[1] for m in maps) == pyramid.channels
    assert all(m.shape[0] == 2 for m in maps)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": ()}, "at least one label"),
        ({"kind": "yolo"}, "faster_rcnn"),
        ({"strides": (3,)}, "strides"),
        ({"size": 8}, "twice the largest stride"),
    ],
)
def test_configs_that_cannot_be_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Detector(replace(CONFIG, **change))


def test_bad_pictures_are_refused() -> None:
    good = pictures(6, 1)
    inverted = np.array([[5, 5, 1, 9], [0, 0, 4, 4]], np.float32)
    with pytest.raises(BadInput, match="y0 < y1"):
        train_detector([replace(good[0], boxes=inverted), *good], CONFIG)
    with pytest.raises(BadInput, match="not among"):
        train_detector([replace(good[0], labels=("bright", "grey")), *good], CONFIG)
    with pytest.raises(BadInput, match="one label a box"):
        train_detector([replace(good[0], labels=("bright",)), *good], CONFIG)
    with pytest.raises(NotEnoughData, match="at least 4"):
        train_detector(good[:2], CONFIG)
    one_label = [replace(p, boxes=p.boxes[:1], labels=p.labels[:1]) for p in good]
    with pytest.raises(NotEnoughData, match="dark"):
        train_detector(one_label, CONFIG)
    with pytest.raises(BadInput, match="finite"):
        Detector(CONFIG).detect(Frames(np.full((1, 8, 8), np.nan, np.float32), np.zeros(1, np.float32)))


def test_parts_of_a_minibatch_weigh_as_their_loss_counts() -> None:
    """Faster R-CNN's loss is a mean over pictures, RT-DETR's over boxes."""
    truths = [Truth(torch.zeros(n, 4), torch.zeros(n, dtype=torch.int64)) for n in (0, 3, 1)]
    assert float(_weight(CONFIG, truths)) == 3
    assert float(_weight(replace(CONFIG, kind="rt_detr"), truths)) == 4
    assert float(_weight(replace(CONFIG, kind="rt_detr"), truths[:1])) == 1
