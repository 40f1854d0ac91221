"""Heat maps find what moves the estimate, and their checks tell a map of the model from a map of anything."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import fusion
from fusion import HeatMapMethod, Modality, heat_maps
from fusion.batch import collate
from fusion.heat_maps import GRID, Look, attributions, blurred, curves, half_random, rank_correlation
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


def look_at(bundle: fusion.Bundle, example: fusion.Example) -> Look:
    """The picture's place in the estimate of the first outcome."""
    backbone = bundle.embedder.image_backbone
    batch = collate([example.inputs], bundle.config, bundle.embedder)
    prepared = backbone.prepare(example.inputs.images[0].read().values, bundle.config.image_size)
    return Look(bundle, batch, Modality.IMAGE, 0, 0, backbone, prepared)


@pytest.mark.parametrize("method", list(HeatMapMethod))
def test_the_map_finds_a_planted_bright_patch(trained, method: HeatMapMethod) -> None:
    bundle, held = trained
    hits = []
    for example, (rows, columns) in held:
        if not example.labels["icu"]:
            continue
        (pixels,) = example.inputs.images
        found = fusion.explain_image(bundle, example.inputs, pixels, outcome="icu", method=method)
        assert found.method == method.value
        assert found.sanity["direction"] == "raises"
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
    passed = abs(found.sanity["correlation"]) < 0.5 and found.sanity["faithful"]
    assert found.sanity["passed"] is passed
    assert (found.sanity["why"] == "") is passed
    for name in ("deletion", "insertion", "random_deletion", "random_insertion"):
        assert 0 <= found.sanity[name] <= 1
    again = fusion.explain_image(bundle, example.inputs, example.inputs.images[0], outcome="icu")
    assert np.array_equal(found.values, again.values)
    assert found.sanity == again.sanity


def test_integrated_gradients_sum_to_what_the_picture_adds(trained) -> None:
    """Completeness (Sundararajan 2017): exact in the limit, so finer steps leave a smaller gap."""
    bundle, held = trained
    for example, _ in held[:4]:
        look = look_at(bundle, example)
        with_it, without = look.logits(torch.cat([look.prepared, blurred(look.prepared)])).tolist()
        gaps = [abs(float(attributions(look, points).sum()) - (with_it - without)) for points in (4, 64)]
        assert gaps[1] <= 0.05 * max(1.0, abs(with_it - without))
        assert gaps[1] <= gaps[0] + 1e-3
    found = fusion.explain_image(
        bundle,
        example.inputs,
        example.inputs.images[0],
        outcome="icu",
        method=HeatMapMethod.INTEGRATED_GRADIENTS,
    )
    assert 0 <= found.sanity["completeness_gap"] < 0.25


def test_a_path_is_made_finer_until_the_parts_sum_to_the_difference(trained, monkeypatch) -> None:
    bundle, held = trained
    asked: list[int] = []
    whole = heat_maps._gradients

    def counted(look, steps):
        asked.append(len(steps))
        return whole(look, steps)

    monkeypatch.setattr(heat_maps, "_gradients", counted)
    look = look_at(bundle, held[0][0])
    monkeypatch.setattr(heat_maps, "NEAR", 0.0)  # never near enough: as fine as it may be
    finest, gap = heat_maps.integrated_gradients(look, 1.0, points=4, finest=36)
    assert asked == [4, 8, 24], "what is known of the coarser path is not asked again"
    asked.clear()
    same = torch.relu(
        torch.nn.functional.adaptive_avg_pool2d(attributions(look, 36).sum(dim=0)[None, None], GRID)[0, 0]
    )
    assert torch.allclose(finest, same, atol=1e-6)
    monkeypatch.setattr(heat_maps, "NEAR", 1e9)
    asked.clear()
    _, rough = heat_maps.integrated_gradients(look, 1.0, points=4, finest=36)
    assert asked == [4]
    assert gap <= rough + 0.05


def test_a_pixel_that_does_not_differ_from_the_baseline_gets_no_share(trained) -> None:
    bundle, held = trained
    look = look_at(bundle, held[0][0])
    flat = dataclasses.replace(look, prepared=blurred(look.prepared))
    same = dataclasses.replace(flat, prepared=torch.full_like(look.prepared, 0.3))
    assert float(attributions(same).abs().max()) < 1e-4


def test_a_true_map_beats_random_orders_and_an_empty_or_reversed_one_does_not(trained) -> None:
    """Deletion and insertion (Petsiuk 2018): the patch carries the estimate, the rest does not."""
    bundle, held = trained
    won = []
    for example, (rows, columns) in [one for one in held if one[0].labels["icu"]][:6]:
        look = look_at(bundle, example)
        truth = torch.zeros(64, 64)
        truth[rows, columns] = 1
        grid = torch.nn.functional.adaptive_avg_pool2d(truth[None, None], GRID)[0, 0]
        right, wrong = curves(look, grid, 1.0), curves(look, -grid, 1.0)
        won.append(right.beats_random)
        assert right.insertion - right.deletion > wrong.insertion - wrong.deletion
        assert not wrong.beats_random
        assert right.random == wrong.random, "the same random orders for every map"
    assert np.mean(won) >= 0.8


def test_weights_are_randomised_from_the_last_layer_on(trained) -> None:
    bundle, _ = trained
    backbone = bundle.embedder.image_backbone
    own = backbone.network.state_dict()
    changed = [
        [name for name, value in half_random(backbone, share, 0).network.state_dict().items()
         if not torch.equal(value, own[name])]
        for share in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    names = list(own)
    assert changed[0] == []
    assert changed[1]
    assert all(names.index(name) >= len(names) // 2 for name in changed[1])
    assert set(changed[2]) > set(changed[1])


def test_rank_correlation_is_one_with_itself_and_zero_with_nothing() -> None:
    ramp = torch.arange(9.0).view(3, 3)
    assert rank_correlation(ramp, ramp.exp()) == pytest.approx(1)
    assert rank_correlation(ramp, -ramp) == pytest.approx(-1)
    assert rank_correlation(ramp, torch.ones(3, 3)) == 0


def test_a_picture_that_lowers_the_estimate_is_explained_by_where_it_does(trained) -> None:
    bundle, held = trained
    lowered = 0
    for example, _ in [one for one in held if not one[0].labels["icu"]][:4]:
        found = fusion.explain_image(bundle, example.inputs, example.inputs.images[0], outcome="icu")
        look = look_at(bundle, example)
        with_it, without = look.logits(torch.cat([look.prepared, blurred(look.prepared)])).tolist()
        assert found.sanity["direction"] == ("raises" if with_it >= without else "lowers")
        lowered += found.sanity["direction"] == "lowers"
    nearly = np.full((1, 64, 64), 0.5, np.float32)
    nearly[0, 0, 0] += 1e-3
    blank = fusion.PixelInput(
        "blank", lambda: fusion.Frames(nearly, np.zeros(1, np.float32)), np.zeros(1, np.float32)
    )
    found = fusion.explain_image(bundle, fusion.PatientInputs(key="b", images=(blank,)), blank, outcome="icu")
    assert found.sanity["passed"] is False, "a picture with nothing in it has no map to be trusted"
    assert found.sanity["why"]


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
