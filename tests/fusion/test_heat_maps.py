"""Grad-CAM finds what moves the estimate, and its sanity check tells model from picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import fusion
from fusion import Modality
from tests.fusion import simulated


def _picture(has_patch: bool, rng: np.random.Generator) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Noise, 64 x 64; events carry a bright patch at a random place."""
    picture = (0.25 * rng.random((1, 64, 64))).astype(np.float32)
    y, x = rng.integers(6, 38, size=2)
    place = (slice(y, y + 20), slice(x, x + 20))
    if has_patch:
        picture[(0, *place)] = 0.95
    return picture, place


def _example(i: int, rng: np.random.Generator) -> tuple[fusion.Example, tuple[slice, slice]]:
    event = i % 2
    picture, place = _picture(bool(event), rng)
    frames = fusion.Frames(picture, np.zeros(1, np.float32))
    pixels = fusion.PixelInput(f"p{i}", lambda: frames, np.zeros(1, np.float32))
    return fusion.Example(fusion.PatientInputs(key=str(i), images=(pixels,)), {"icu": event}, str(i)), place


@pytest.fixture(scope="module")
def trained() -> tuple[fusion.Bundle, list[tuple[fusion.Example, tuple[slice, slice]]]]:
    rng = np.random.default_rng(0)
    data = [_example(i, rng) for i in range(100)]
    config = simulated.make_config(
        modalities=(Modality.IMAGE,), outcomes=simulated.OUTCOMES[:1], image_size=64, epochs=20, folds=2
    )
    bundle = fusion.train([e for e, _ in data[:60]], [e for e, _ in data[60:80]], config)
    return bundle, data[80:]


def test_the_map_finds_a_planted_bright_patch(trained) -> None:
    bundle, held = trained
    hits = []
    for example, (rows, columns) in held:
        if not example.labels["icu"]:
            continue
        (pixels,) = example.inputs.images
        found = fusion.explain_image(bundle, example.inputs, pixels, outcome="icu")
        assert found.values.shape == (224, 224)
        assert found.values.dtype == np.float32
        assert found.values.min() >= 0
        assert found.values.max() == pytest.approx(1)
        y, x = np.unravel_index(found.values.argmax(), found.values.shape)
        slack = 6  # pixels: half the step of the feature maps
        hits.append(
            rows.start - slack <= y * 64 / 224 <= rows.stop + slack
            and columns.start - slack <= x * 64 / 224 <= columns.stop + slack
        )
    assert np.mean(hits) >= 0.8


def test_every_map_carries_its_sanity_check(trained) -> None:
    bundle, held = trained
    example = next(e for e, _ in held if e.labels["icu"])
    found = fusion.explain_image(bundle, example.inputs, example.inputs.images[0], outcome="icu")
    assert found.method == "Grad-CAM"
    assert -1 <= found.sanity["correlation"] <= 1
    assert found.sanity["passed"] is (abs(found.sanity["correlation"]) < 0.5)
    again = fusion.explain_image(bundle, example.inputs, example.inputs.images[0], outcome="icu")
    assert np.array_equal(found.values, again.values)
    assert found.sanity == again.sanity


def test_a_wide_image_gets_a_wide_map(trained) -> None:
    bundle, _ = trained
    frames = fusion.Frames(
        np.random.default_rng(0).random((1, 50, 100)).astype(np.float32), np.zeros(1, np.float32)
    )
    pixels = fusion.PixelInput("wide", lambda: frames, np.zeros(1, np.float32))
    found = fusion.explain_image(
        bundle, fusion.PatientInputs(key="w", images=(pixels,)), pixels, outcome="icu"
    )
    assert found.values.shape == (112, 224)


def test_what_cannot_be_explained_is_refused(trained) -> None:
    bundle, held = trained
    inputs = held[0][0].inputs
    with pytest.raises(fusion.BadInput, match="no outcome 'sepsis'"):
        fusion.explain_image(bundle, inputs, inputs.images[0], outcome="sepsis")
    other = dataclasses.replace(inputs.images[0], key="other")
    with pytest.raises(fusion.BadInput, match="not among those"):
        fusion.explain_image(bundle, inputs, other, outcome="icu")


def test_key_frames_of_a_cine_are_explained(bundle: fusion.Bundle, patient: fusion.PatientInputs) -> None:
    values = np.random.default_rng(0).random((12, 40, 40)).astype(np.float32)
    times = (np.arange(12) * 40).astype(np.float32)
    clip = fusion.PixelInput("clip", lambda: fusion.Frames(values, times), times)
    inputs = dataclasses.replace(patient, cines=(clip,))
    found = fusion.frames_explained(bundle, inputs, outcome="death", most=2)
    (prediction,) = fusion.predict(bundle, [inputs], explain=False)
    weights = prediction.frame_weights["clip"]
    best = prediction.frame_indices["clip"][int(np.argmax(weights))]
    assert len(found) == 2
    assert found[0].frame == best
    assert fusion.explain_image(bundle, inputs, clip, outcome="death").frame == best
    with pytest.raises(fusion.BadInput, match="frame 99"):
        fusion.explain_image(bundle, inputs, clip, outcome="death", frame=99)
