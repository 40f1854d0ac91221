"""A published checkpoint → the safetensors file that `FusionConfig.image_weights` names.

    python -m fusion.backbones.convert NAME FILE OUT.safetensors [--range LOW HIGH]

NAME   an image backbone: vgg16, inception_v3, resnet18, resnet50, convnext_tiny, densenet121, …
FILE   a checkpoint of torchvision, transformers or MONAI (.pth, .pt, .bin or .safetensors)
range  intensities it was trained with instead of ImageNet's mean and scale: `--range -1024 1024` for
       torchxrayvision's chest radiographs. Kept in the file

A .pth file is read with torch's weights_only loading, which takes tensors and refuses everything else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusion.backbones.image import image_backbone_names, load_backbone
from fusion.errors import BadInput, FusionError

WRAPPERS = ("module.", "backbone.", "densenet121.", "resnet.", "convnext.", "model.")
LAYER = r"^layer(\d)\.(\d+)\."
RESNET = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (LAYER + r"conv(\d)\.", lambda m: f"{_layer(m)}layer.{int(m[3]) - 1}.convolution."),
    (LAYER + r"bn(\d)\.", lambda m: f"{_layer(m)}layer.{int(m[3]) - 1}.normalization."),
    (LAYER + r"downsample\.0\.", lambda m: f"{_layer(m)}shortcut.convolution."),
    (LAYER + r"downsample\.1\.", lambda m: f"{_layer(m)}shortcut.normalization."),
)
BLOCK = r"^features\.([1357])\.(\d+)\."
PARTS = {"0": "dwconv", "2": "layernorm", "3": "pwconv1", "5": "pwconv2"}
CONVNEXT = (
    (r"^features\.0\.0\.", "embeddings.patch_embeddings."),
    (r"^features\.0\.1\.", "embeddings.layernorm."),
    (BLOCK + r"block\.([0235])\.", lambda m: f"{_stage(m)}{PARTS[m[3]]}."),
    (BLOCK + r"layer_scale$", lambda m: f"{_stage(m)}layer_scale_parameter"),
    (
        r"^features\.([246])\.([01])\.",
        lambda m: f"encoder.stages.{int(m[1]) // 2}.downsampling_layer.{m[2]}.",
    ),
    (r"^classifier\.0\.", "layernorm."),
)
DENSENET = (
    (r"(denselayer\d+)\.(norm|relu|conv)\.?([12])\.", r"\1.layers.\2\3."),  # also names from before torch 0.4
)
RULES: dict[str, tuple[tuple[str, Any], ...]] = {
    "resnet18": RESNET,
    "resnet50": RESNET,
    "convnext_tiny": CONVNEXT,
    "densenet121": DENSENET,
}


def convert(name: str, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published checkpoint's tensors → those of `load_backbone(name)`, by its parameter names.

    Classifiers are left out. A first layer of one channel becomes three that sum to it. Raises BadInput: a
    tensor is missing or of another shape.
    """
    own = load_backbone(name).network.state_dict()
    prefix = "model." if next(iter(own)).startswith("model.") else ""
    renamed = {_renamed(key, RULES.get(name, ()), prefix): value for key, value in source.items()}
    found: dict[str, Tensor] = {}
    for key, tensor in own.items():
        if key not in renamed:
            if key.endswith("num_batches_tracked"):
                continue
            raise BadInput(f"{key} is not in this checkpoint of {name}; it holds {_some(source)}")
        given = renamed[key]
        if given.ndim == 4 and given.shape[1] == 1 and tensor.shape[1] == 3:
            given = given.expand(-1, 3, -1, -1) / 3
        if given.numel() == tensor.numel():
            given = given.reshape(tensor.shape)  # torchvision keeps ConvNeXt's layer scale as [C, 1, 1]
        if given.shape != tensor.shape:
            raise BadInput(
                f"{key} is {list(given.shape)} in this checkpoint, and {list(tensor.shape)} in {name}"
            )
        found[key] = given.to(tensor.dtype).contiguous().clone()
    return found


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file, out of whatever they are wrapped in. Raises BadInput."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Tensors only: weights_only refuses any other content. Read once, by a person's command.
        held = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as fault:  # torch and safetensors raise a dozen kinds for a file that is not theirs
        raise BadInput(f"{path.name} cannot be read as a checkpoint of tensors: {fault}") from fault
    for wrapper in ("state_dict", "model_state_dict", "model", "network"):
        if isinstance(held, dict) and isinstance(held.get(wrapper), dict):
            held = held[wrapper]
    if not isinstance(held, dict):
        raise BadInput(f"{path.name} holds no named tensors")
    return {key: value for key, value in held.items() if isinstance(value, Tensor)}


def _renamed(key: str, rules: tuple[tuple[str, Any], ...], prefix: str) -> str:
    is_wrapped = True
    while is_wrapped:
        wrapper = next((w for w in WRAPPERS if key.startswith(w)), "")
        key, is_wrapped = key.removeprefix(wrapper), bool(wrapper)
    for pattern, replacement in rules:
        key, hits = re.subn(pattern, replacement, key)
        if hits:
            break
    return prefix + key


def _layer(match: re.Match[str]) -> str:
    return f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."


def _stage(match: re.Match[str]) -> str:
    return f"encoder.stages.{int(match[1]) // 2}.layers.{match[2]}."


def _some(source: Mapping[str, Tensor]) -> str:
    return f"{len(source)} tensors, the first of them {', '.join(list(source)[:3])}"


def main(arguments: list[str] | None = None) -> int:
    asked = argparse.ArgumentParser(
        prog="python -m fusion.backbones.convert",
        description="A published checkpoint → safetensors for FusionConfig.image_weights.",
    )
    asked.add_argument("name", choices=image_backbone_names())
    asked.add_argument("file", type=Path)
    asked.add_argument("out", type=Path)
    asked.add_argument(
        "--range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="instead of ImageNet's constants"
    )
    given = asked.parse_args(arguments)
    try:
        if given.out.suffix != ".safetensors":
            raise BadInput(f"{given.out.name} must end in .safetensors")
        found = convert(given.name, read_checkpoint(given.file))
        said = {}
        if given.range:
            low, high = given.range
            if not high > low:
                raise BadInput(f"--range {low:g} {high:g}: the second must be the larger")
            said = {"constants": json.dumps([[-low / (high - low)] * 3, [1 / (high - low)] * 3])}
        save_file(found, given.out, metadata=said)
        print(f"{given.out}: {len(found)} tensors, {load_backbone(given.name, weights=given.out).version}")
    except FusionError as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
