"""How wide each backbone's embeddings are, known without loading it. No torch here."""

from __future__ import annotations

import json
from pathlib import Path

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


def width_of(backbone: str) -> int:
    """D of the embeddings that the backbone of that name makes."""
    base = backbone.removesuffix("+harmonised")
    if (Path(base) / "config.json").is_file():  # a transformers encoder in a folder of its own
        return int(json.loads((Path(base) / "config.json").read_text())["hidden_size"])
    if base not in WIDTHS:
        raise BadInput(f"no backbone {backbone!r}; known: {', '.join(sorted(WIDTHS))}")
    return WIDTHS[base]
