"""Networks that turn pixels and sentences into embeddings, by name. Frozen; used once, at arrival."""

from fusion.backbones.image import (
    ImageBackbone,
    image_backbone_names,
    image_version,
    load_backbone,
    tuned_backbone,
)
from fusion.backbones.text import (
    TextBackbone,
    load_text_backbone,
    split_sentences,
    text_backbone_names,
    text_version,
)

__all__ = [
    "ImageBackbone",
    "TextBackbone",
    "image_backbone_names",
    "image_version",
    "load_backbone",
    "load_text_backbone",
    "split_sentences",
    "text_backbone_names",
    "text_version",
    "tuned_backbone",
]
