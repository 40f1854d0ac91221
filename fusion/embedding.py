"""Embeddings of pixels and notes: taken from the inputs where they are, computed once and kept where not."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from fusion.backbones import (
    VOXELS,
    Grid,
    ImageBackbone,
    TextBackbone,
    VolumeBackbone,
    image_version,
    load_backbone,
    load_text_backbone,
    same_text,
    text_version,
    volume_name,
)
from fusion.config import FusionConfig, VolumeKind
from fusion.errors import BadInput
from fusion.inputs import FloatArray, Modality, NoteInput, PixelInput
from fusion.preparing import check_pixels
from fusion.widths import WIDTHS, volume_width, width_of

__all__ = ["WIDTHS", "Embedder", "backbone_versions", "volume_backbone_name", "width_of"]

KEPT = 4096  # computed embeddings held in memory


class Embedder:
    """Looks an embedding up by backbone version; reads pixels (or text) only when it is not there.

    versions  modality → backbone version, for the modalities of the config that have a backbone
    tuned     the image backbone, where it was fine-tuned: then images are embedded by it
    """

    def __init__(
        self,
        config: FusionConfig,
        versions: dict[Modality, str] | None = None,
        *,
        tuned: ImageBackbone | None = None,
    ) -> None:
        self._config = config
        self.tuned = tuned
        self.versions = versions if versions is not None else backbone_versions(config, tuned)
        self._made: dict[tuple[str, str, int], FloatArray] = {}

    @cached_property
    def image_width(self) -> int:
        """D of an image embedding."""
        return width_of(self._config.image_backbone)

    @cached_property
    def cine_width(self) -> int:
        """D of a frame's embedding."""
        return width_of(self._config.cine_backbone)

    @cached_property
    def text_width(self) -> int:
        """D of a sentence's embedding."""
        return width_of(self._config.text_backbone)

    @cached_property
    def volume_width(self) -> int:
        """D of a volume's token."""
        return volume_width(self._config)

    @property
    def volume_grid(self) -> Grid:
        """What volumes are resampled to."""
        c = self._config
        return Grid(c.volume_size, c.volume_extent_mm, c.volume_step_mm, c.volume_slices)

    @cached_property
    def volume_backbone(self) -> VolumeBackbone:
        """The volume backbone itself; loaded at the first use."""
        backbone = _volume_backbone(self._config)
        _check_version(backbone.version, self.versions[Modality.VOLUME])
        return backbone

    @cached_property
    def image_backbone(self) -> ImageBackbone:
        """The image backbone itself; loaded at the first use."""
        if self.tuned is not None:
            _check_version(self.tuned.version, self.versions[Modality.IMAGE])
            return self.tuned
        return _load(self._config, self._config.image_backbone, self.versions[Modality.IMAGE])

    @cached_property
    def cine_backbone(self) -> ImageBackbone:
        """The cine backbone itself; loaded at the first use."""
        if self.versions.get(Modality.IMAGE) == self.versions[Modality.CINE]:
            return self.image_backbone
        return _load(self._config, self._config.cine_backbone, self.versions[Modality.CINE])

    @cached_property
    def text_backbone(self) -> TextBackbone:
        """The text backbone itself; loaded at the first use."""
        backbone = load_text_backbone(self._config.text_backbone)
        if not same_text(backbone.version, self.versions[Modality.TEXT]):
            _check_version(backbone.version, self.versions[Modality.TEXT])
        return backbone

    def image(self, pixels: PixelInput) -> FloatArray:
        """float32 [T, D]."""
        held = pixels.embeddings.get(self.versions[Modality.IMAGE])
        if held is None:
            held = self._pixels(pixels, Modality.IMAGE, self.image_backbone, self._config.image_size)
        return _of_width(held, self.image_width, Modality.IMAGE, pixels.key)

    def cine(self, pixels: PixelInput) -> FloatArray:
        """float32 [T, D]."""
        held = pixels.embeddings.get(self.versions[Modality.CINE])
        if held is None:
            held = self._pixels(pixels, Modality.CINE, self.cine_backbone, self._config.cine_size)
        return _of_width(held, self.cine_width, Modality.CINE, pixels.key)

    def volume(self, pixels: PixelInput) -> FloatArray:
        """float32 [S, D]: a token a slice of the grid, or one of all voxels."""
        version, size = self.versions[Modality.VOLUME], self._config.volume_size
        held = pixels.embeddings.get(version)
        if held is None:
            held = self._made.get((pixels.key, version, size))
        if held is None:
            frames = pixels.read()
            check_pixels(frames.values, Modality.VOLUME, pixels.key)
            held = self._keep((pixels.key, version, size), self.volume_backbone.embed(frames, size))
        return _of_width(held, self.volume_width, Modality.VOLUME, pixels.key)

    def note(self, note: NoteInput) -> FloatArray:
        """float32 [L, D]."""
        version = self.versions[Modality.TEXT]
        held = note.embeddings.get(version)
        if held is None:
            held = self._made.get((note.key, version, 0))
        if held is None:
            held = self._keep((note.key, version, 0), self.text_backbone.embed(note.text))
        return _of_width(held, self.text_width, Modality.TEXT, note.key, least=0)

    def _pixels(
        self, pixels: PixelInput, modality: Modality, backbone: ImageBackbone, size: int
    ) -> FloatArray:
        key = (pixels.key, backbone.version, size)
        held = self._made.get(key)
        if held is None:
            values = pixels.read().values
            check_pixels(values, modality, pixels.key)
            held = self._keep(key, backbone.embed(values, size))
        return held

    def _keep(self, key: tuple[str, str, int], made: FloatArray) -> FloatArray:
        if len(self._made) >= KEPT:
            self._made.pop(next(iter(self._made)))
        self._made[key] = made
        return made


def backbone_versions(config: FusionConfig, tuned: ImageBackbone | None = None) -> dict[Modality, str]:
    """Modality → version of its backbone as installed here. Raises UnknownEncoder and BadInput (weights)."""
    versions: dict[Modality, str] = {}
    if Modality.IMAGE in config.modalities:
        name = config.image_backbone
        versions[Modality.IMAGE] = tuned.version if tuned else image_version(name, _weights(config, name))
    if Modality.CINE in config.modalities:
        versions[Modality.CINE] = image_version(config.cine_backbone, _weights(config, config.cine_backbone))
    if Modality.VOLUME in config.modalities:
        versions[Modality.VOLUME] = _volume_backbone(config).version
    if Modality.TEXT in config.modalities:
        versions[Modality.TEXT] = text_version(config.text_backbone)
    return versions


def volume_backbone_name(config: FusionConfig) -> str:
    """The name of the config's `VolumeBackbone`: what it looks with, and the grid it looks at."""
    kind = VOXELS if config.volume_kind == VolumeKind.VOXELS else config.volume_backbone
    return volume_name(kind, config.volume_extent_mm, config.volume_step_mm, config.volume_slices)


def _volume_backbone(config: FusionConfig) -> VolumeBackbone:
    return VolumeBackbone(volume_backbone_name(config), weights=_weights(config, config.volume_backbone))


def _of_width(held: FloatArray, width: int, modality: Modality, key: str, *, least: int = 1) -> FloatArray:
    """The embedding, where it is [n, width] numbers, n >= least: a note may be without sentences."""
    wanted = f"float32 [n, {width}], n at least {least}, is expected"
    if not isinstance(held, np.ndarray) or held.dtype.kind not in "fiu":
        found = held.dtype if isinstance(held, np.ndarray) else type(held).__name__
        raise BadInput(f"{modality.value}: embedding of {key!r} is {found} where {wanted}")
    if held.ndim != 2 or held.shape[1] != width or len(held) < least:
        raise BadInput(f"{modality.value}: embedding of {key!r} has shape {list(held.shape)} where {wanted}")
    return held


def _weights(config: FusionConfig, name: str) -> Path | None:
    """The file of `image_weights`: for the image backbone, and a cine backbone of that architecture."""
    same = name.partition("+")[0] == config.image_backbone.partition("+")[0]
    return Path(config.image_weights) if config.image_weights and same else None


def _load(config: FusionConfig, name: str, wanted: str) -> ImageBackbone:
    backbone = load_backbone(name, weights=_weights(config, name))
    _check_version(backbone.version, wanted)
    return backbone


def _check_version(found: str, wanted: str) -> None:
    if found != wanted:
        raise BadInput(f"the model was trained with backbone {wanted}; installed here is {found}")
