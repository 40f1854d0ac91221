"""Grey and colour pictures, published checkpoints, and the weights a hospital names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fusion
from fusion.backbones import convert
from fusion.backbones.first_layer import FirstLayer
from fusion.backbones.vgg import LAYERS
from fusion.embedding import WIDTHS

GREY = np.random.default_rng(1).random((2, 70, 90)).astype(np.float32)
COLOUR = np.random.default_rng(2).random((2, 3, 70, 90)).astype(np.float32)


@pytest.mark.parametrize("name", fusion.image_backbone_names())
def test_grey_costs_one_channel_and_gives_what_three_equal_ones_give(name: str) -> None:
    """Odd and even sides: the border, where zeros are padded, is the same, too."""
    backbone = fusion.load_backbone(name)
    sides = (79, 80) if name in ("small_cnn", "efficientnet_lite0") else (79,)
    for side in sides:
        one = backbone.embed(GREY, side)
        three = backbone.embed(np.repeat(GREY[:, None], 3, axis=1), side)
        assert backbone.prepare(GREY, side).shape == (2, 1, side, side)
        assert one.shape == (2, WIDTHS[name])
        assert one == pytest.approx(three, rel=1e-4, abs=1e-5 * max(1.0, float(np.abs(three).max())))
    assert np.array_equal(one, backbone.embed(GREY, side)), "the same twice"
    colour = backbone.embed(COLOUR, side)
    assert colour.shape == one.shape
    assert not np.allclose(colour, backbone.embed(COLOUR.mean(axis=1), side), rtol=1e-3)


def test_the_first_layer_takes_a_third_of_the_work_for_grey() -> None:
    backbone = fusion.load_backbone("small_cnn")
    first = next(m for m in backbone.network.modules() if isinstance(m, FirstLayer))
    seen: list[tuple[int, ...]] = []
    original = first._convolved
    first._convolved = lambda x, w, b: seen.append(tuple(w.shape)) or original(x, w, b)  # type: ignore[method-assign]
    backbone.embed(GREY, 40)
    backbone.embed(GREY, 40)
    assert seen.count((8, 1, 3, 3)) == 3, "twice the picture, and once the border, which is kept"
    assert not [shape for shape in seen if shape[1] == 3]


def test_folded_weights_follow_the_weights() -> None:
    """Also when an optimiser changes them in a way that torch does not count."""
    backbone = fusion.load_backbone("small_cnn")
    before = backbone.embed(GREY, 40)
    first = next(m for m in backbone.network.modules() if isinstance(m, FirstLayer))
    first.weight.data.mul_(1.5)
    after = backbone.embed(GREY, 40)
    assert not np.allclose(before, after)
    assert after == pytest.approx(backbone.embed(np.repeat(GREY[:, None], 3, axis=1), 40), abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 4, 8, 8), (1, 3, 0, 8), (8, 8)])
def test_other_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(fusion.BadInput, match=r"\[T, H, W\] \(grey\) or \[T, 3, H, W\] \(colour\)"):
        fusion.load_backbone("small_cnn").embed(np.zeros(shape, np.float32), 32)


# -- the names of published checkpoints --------------------------------------------------------------------
def vgg16_checkpoint() -> dict[str, list[int]]:
    """Keys and shapes of torchvision's vgg16: 13 convolutions at these places, and a classifier."""
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [w for w in LAYERS if w] == widths
    keys: dict[str, list[int]] = {}
    for place, before, width in zip(places, [3, *widths], widths, strict=False):
        keys[f"features.{place}.weight"], keys[f"features.{place}.bias"] = [width, before, 3, 3], [width]
    keys |= {"classifier.0.weight": [4096, 25088], "classifier.0.bias": [4096]}
    return keys


INCEPTION = """Conv2d_1a_3x3 32 3 3 3|Conv2d_2a_3x3 32 32 3 3|Conv2d_2b_3x3 64 32 3 3|Conv2d_3b_1x1 80 64 1 1
Conv2d_4a_3x3 192 80 3 3|Mixed_5b.branch1x1 64 192 1 1|Mixed_5b.branch5x5_1 48 192 1 1
Mixed_5b.branch5x5_2 64 48 5 5|Mixed_5b.branch3x3dbl_1 64 192 1 1|Mixed_5b.branch3x3dbl_2 96 64 3 3
Mixed_5b.branch3x3dbl_3 96 96 3 3|Mixed_5b.branch_pool 32 192 1 1|Mixed_5c.branch1x1 64 256 1 1
Mixed_5c.branch_pool 64 256 1 1|Mixed_5d.branch5x5_1 48 288 1 1|Mixed_5d.branch_pool 64 288 1 1
Mixed_6a.branch3x3 384 288 3 3|Mixed_6a.branch3x3dbl_1 64 288 1 1|Mixed_6a.branch3x3dbl_2 96 64 3 3
Mixed_6a.branch3x3dbl_3 96 96 3 3|Mixed_6b.branch1x1 192 768 1 1|Mixed_6b.branch7x7_1 128 768 1 1
Mixed_6b.branch7x7_2 128 128 1 7|Mixed_6b.branch7x7_3 192 128 7 1|Mixed_6b.branch7x7dbl_1 128 768 1 1
Mixed_6b.branch7x7dbl_2 128 128 7 1|Mixed_6b.branch7x7dbl_3 128 128 1 7|Mixed_6b.branch7x7dbl_4 128 128 7 1
Mixed_6b.branch7x7dbl_5 192 128 1 7|Mixed_6b.branch_pool 192 768 1 1|Mixed_6c.branch7x7_1 160 768 1 1
Mixed_6d.branch7x7dbl_5 192 160 1 7|Mixed_6e.branch7x7_1 192 768 1 1|Mixed_6e.branch7x7dbl_4 192 192 7 1
Mixed_7a.branch3x3_1 192 768 1 1|Mixed_7a.branch3x3_2 320 192 3 3|Mixed_7a.branch7x7x3_1 192 768 1 1
Mixed_7a.branch7x7x3_2 192 192 1 7|Mixed_7a.branch7x7x3_3 192 192 7 1|Mixed_7a.branch7x7x3_4 192 192 3 3
Mixed_7b.branch1x1 320 1280 1 1|Mixed_7b.branch3x3_1 384 1280 1 1|Mixed_7b.branch3x3_2a 384 384 1 3
Mixed_7b.branch3x3_2b 384 384 3 1|Mixed_7b.branch3x3dbl_1 448 1280 1 1|Mixed_7b.branch3x3dbl_2 384 448 3 3
Mixed_7b.branch3x3dbl_3a 384 384 1 3|Mixed_7b.branch3x3dbl_3b 384 384 3 1|Mixed_7b.branch_pool 192 1280 1 1
Mixed_7c.branch1x1 320 2048 1 1|Mixed_7c.branch3x3dbl_1 448 2048 1 1|Mixed_7c.branch_pool 192 2048 1 1"""


def test_vgg_has_the_keys_of_the_published_checkpoint() -> None:
    published = {k: v for k, v in vgg16_checkpoint().items() if not k.startswith("classifier")}
    own = {k: list(v.shape) for k, v in fusion.load_backbone("vgg16").network.state_dict().items()}
    assert own == published


def test_inception_has_the_keys_of_the_published_checkpoint() -> None:
    own = {k: list(v.shape) for k, v in fusion.load_backbone("inception_v3").network.state_dict().items()}
    for line in re.split(r"[|\n]", INCEPTION):
        name, *shape = line.split()
        assert own[f"{name}.conv.weight"] == [int(n) for n in shape]
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert own[f"{name}.bn.{part}"] == [int(shape[0])]
    convolutions = [key for key in own if key.endswith(".conv.weight")]
    assert len(convolutions) == 94, "as published, without the auxiliary classifier"
    assert len(own) == 94 * 6
    assert fusion.load_backbone("inception_v3").constants == ((0.5,) * 3, (0.5,) * 3)


def published(name: str) -> dict[str, torch.Tensor]:
    """Our weights under the names that torchvision publishes them by."""
    own = fusion.load_backbone(name).network.state_dict()
    state: dict[str, torch.Tensor] = {}
    for key, tensor in own.items():
        key = key.removeprefix("model.")
        if name.startswith("resnet"):
            key = re.sub(r"^embedder\.embedder\.convolution", "conv1", key)
            key = re.sub(r"^embedder\.embedder\.normalization", "bn1", key)
            found = re.match(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.*)", key)
            if found:
                layer, rest = f"layer{int(found[1]) + 1}.{found[2]}", found[3]
                rest = rest.replace("shortcut.convolution", "downsample.0")
                rest = rest.replace("shortcut.normalization", "downsample.1")
                rest = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", rest)
                rest = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", rest)
                key = f"{layer}.{rest}"
        elif name == "densenet121":
            key = key.replace(".layers.", ".")
        elif name == "convnext_tiny":
            key = key.replace("embeddings.patch_embeddings", "features.0.0")
            key = key.replace("embeddings.layernorm", "features.0.1")
            key = re.sub(r"^layernorm", "classifier.0", key)
            found = re.match(r"encoder\.stages\.(\d)\.downsampling_layer\.(\d)\.(.*)", key)
            if found:
                key = f"features.{2 * int(found[1])}.{found[2]}.{found[3]}"
            found = re.match(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.*)", key)
            if found:
                rest = found[3].replace("layer_scale_parameter", "layer_scale")
                for place, ours in (("0", "dwconv"), ("2", "layernorm"), ("3", "pwconv1"), ("5", "pwconv2")):
                    rest = rest.replace(f"{ours}.", f"block.{place}.")
                key = f"features.{2 * int(found[1]) + 1}.{found[2]}.{rest}"
                tensor = tensor.view(-1, 1, 1) if key.endswith("layer_scale") else tensor
        state[key] = tensor.clone()
    return state


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("resnet18", "layer2.0.downsample.1.running_var"),
        ("resnet50", "layer4.2.conv3.weight"),
        ("densenet121", "features.denseblock3.denselayer24.norm2.weight"),
        ("convnext_tiny", "features.5.8.block.3.weight"),
    ],
)
def test_checkpoints_of_torchvision_are_renamed(name: str, some: str, tmp_path: Path) -> None:
    state = published(name)
    assert some in state
    changed = {k: v + 0.01 if v.is_floating_point() else v for k, v in state.items()}
    wrapped = {f"module.{k}": v for k, v in changed.items()}
    torch.save({"state_dict": {**wrapped, "module.fc.weight": torch.zeros(3, 3)}}, tmp_path / "net.pth")
    out = tmp_path / "net.safetensors"
    assert convert.main([name, str(tmp_path / "net.pth"), str(out)]) == 0
    own = fusion.load_backbone(name).network.state_dict()
    found = fusion.load_backbone(name, weights=out).network.state_dict()
    for key, tensor in own.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.allclose(found[key], tensor + 0.01, atol=1e-6), key


def test_a_checkpoint_that_does_not_fit_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    out = str(tmp_path / "o.safetensors")
    assert convert.main(["small_cnn", str(tmp_path / "x.safetensors"), out]) == 1
    assert "layers.0.weight is not in this checkpoint of small_cnn" in capsys.readouterr().err
    (tmp_path / "y.pth").write_bytes(b"not a checkpoint")
    assert convert.main(["small_cnn", str(tmp_path / "y.pth"), out]) == 1
    assert "y.pth cannot be read as a checkpoint of tensors" in capsys.readouterr().err


def test_a_checkpoint_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(fusion.BadInput, match="cannot be read as a checkpoint of tensors"):
        convert.read_checkpoint(tmp_path / "module.pth")


def test_a_network_for_one_channel_of_other_intensities_gives_its_own_embeddings(tmp_path: Path) -> None:
    """As torchxrayvision's: one channel, intensities in [-1024, 1024]."""
    own = fusion.load_backbone("small_cnn").network
    single = {k: v.clone() for k, v in own.state_dict().items()}
    single["layers.0.weight"] = single["layers.0.weight"][:, :1] / 1000
    save_file(single, tmp_path / "one.safetensors")
    out = tmp_path / "three.safetensors"
    asked = ["small_cnn", str(tmp_path / "one.safetensors"), str(out), "--range", "-1024", "1024"]
    assert convert.main(asked) == 0
    backbone = fusion.load_backbone("small_cnn", weights=out)
    grey = backbone.resize(GREY, 40)
    x = torch.nn.functional.conv2d(
        grey * 2048 - 1024, single["layers.0.weight"], single["layers.0.bias"], stride=2, padding=1
    )
    with torch.no_grad():
        for layer in own.layers[1:]:
            x = layer(torch.relu(x))
    assert backbone.embed(GREY, 40) == pytest.approx(torch.relu(x).mean((2, 3)).numpy(), rel=1e-3, abs=1e-3)
    assert convert.main([*asked[:3], "--range", "5", "5"]) == 1


def test_weights_that_are_not_there_or_not_right_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(fusion.BadInput, match=r"not at .*w.safetensors; put them there, or make it with"):
        fusion.load_backbone("vgg16", weights=path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(fusion.BadInput, match=r"python -m fusion.backbones.convert small_cnn FILE"):
        fusion.load_backbone("small_cnn", weights=path)
    state = fusion.load_backbone("small_cnn").network.state_dict()
    save_file({**state, "layers.0.bias": torch.full((8,), torch.nan)}, path)
    with pytest.raises(fusion.BadInput, match="not finite"):
        fusion.load_backbone("small_cnn", weights=path)
    save_file({**state, "layers.0.bias": torch.zeros(9)}, path)
    with pytest.raises(fusion.BadInput, match=r"of another shape \['layers.0.bias'\]"):
        fusion.load_backbone("small_cnn", weights=path)
    save_file(state, path, metadata={"constants": json.dumps([[0.1] * 3, [0.2] * 3])})
    other = fusion.load_backbone("small_cnn", weights=path)
    assert other.constants == ((0.1,) * 3, (0.2,) * 3)
    assert other.version != fusion.load_backbone("small_cnn").version, "constants are part of the version"


def test_loading_a_backbone_draws_no_random_number() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    fusion.load_backbone("small_cnn").randomised(1)
    assert torch.equal(torch.rand(2), wanted)
