"""Encoders: the tokens of one modality → an embedding [B, E] and unimodal logits [B, R]."""

from __future__ import annotations

from fusion.config import FusionConfig, VolumeKind
from fusion.embedding import width_of
from fusion.encoders.base import Encoded, Encoder
from fusion.encoders.cine import CineEncoder
from fusion.encoders.image import ImageEncoder
from fusion.encoders.pooled import PooledEncoder
from fusion.encoders.record import RecordEncoder
from fusion.encoders.series import SeriesEncoder
from fusion.encoders.volume import VoxelEncoder
from fusion.inputs import Modality
from fusion.rows import view_columns

__all__ = ["Encoded", "Encoder", "build_encoder"]


def build_encoder(modality: Modality, config: FusionConfig) -> Encoder:
    """An untrained encoder for one modality of a model."""
    e, r = config.width, len(config.outcomes)
    if modality == Modality.TABULAR:
        return RecordEncoder(len(config.fields), 1, e, r)
    if modality == Modality.GENOMICS:
        return RecordEncoder(len(config.genomics), 1, e, r)
    if modality == Modality.SERIES:
        return SeriesEncoder(len(config.channels), e, r)
    if modality == Modality.TEXT:
        return PooledEncoder(width_of(config.text_backbone), e, r)
    if modality == Modality.IMAGE:
        heads = r if config.finetune != "none" else 0
        return ImageEncoder(
            width_of(config.image_backbone),
            e,
            r,
            components=config.image_components,
            flags=view_columns(config),
            heads=heads,
        )
    if modality == Modality.VOLUME:
        if config.volume_kind == VolumeKind.VOXELS:
            return VoxelEncoder(config.volume_slices, config.volume_size, e, r)
        return PooledEncoder(width_of(config.volume_backbone), e, r)
    return CineEncoder(width_of(config.cine_backbone), e, r, config.cine_pooling)
