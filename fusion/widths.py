"""How wide each backbone's embeddings are, known without loading it. No torch here."""

from __future__ import annotations

import json
from pathlib import Path

from fusion.config import FusionConfig, VolumeKind
from fusion.errors import BadInput

WIDTHS = {
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_lite0": 1280,
    "inception_v3": 2048,
    "resnet18": 512,
    "resnet50": 2048,
    "small_cnn": 32,
    "vgg16": 512,
    "hashing": 128,
    "minilm": 384,
}


def folder_name(backbone: str) -> str:
    """What a backbone is called wherever it lies: the last part of a folder's path, any other name itself."""
    return Path(backbone).absolute().name if backbone else ""


def width_of(backbone: str) -> int:
    """D of the embeddings that the backbone of that name makes."""
    base = backbone.removesuffix("+harmonised")
    if (Path(base) / "config.json").is_file():  # a transformers encoder in a folder of its own
        return int(json.loads((Path(base) / "config.json").read_text())["hidden_size"])
    if base not in WIDTHS:
        raise BadInput(f"no backbone {backbone!r}; known: {', '.join(sorted(WIDTHS))}")
    return WIDTHS[base]


def volume_width(config: FusionConfig) -> int:
    """D of a volume's tokens: one a slice (2.5D), or one of all its voxels (3D)."""
    if config.volume_kind == VolumeKind.VOXELS:
        return config.volume_slices * config.volume_size**2
    return width_of(config.volume_backbone)
