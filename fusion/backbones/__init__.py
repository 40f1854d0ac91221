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
    same_text,
    split_sentences,
    text_backbone_names,
    text_version,
)
from fusion.backbones.volume import VOXELS, Grid, VolumeBackbone, kept_slices, volume_name

__all__ = [
    "VOXELS",
    "Grid",
    "ImageBackbone",
    "TextBackbone",
    "VolumeBackbone",
    "image_backbone_names",
    "image_version",
    "kept_slices",
    "load_backbone",
    "load_text_backbone",
    "same_text",
    "split_sentences",
    "text_backbone_names",
    "text_version",
    "tuned_backbone",
    "volume_name",
]
