"""Segmentation by U-Net, Attention U-Net and 3D U-Net: trained on pictures with masks, kept as a folder.

U-Net (Ronneberger 2015), Attention U-Net (Oktay 2018) and 3D U-Net (Çiçek 2016) are MONAI's; the loss is Dice
plus cross-entropy over known pixels. Pictures are resized to a square (a cube's slices likewise), masks back
to the picture's own size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fusion import checkpoints
from fusion.errors import BadInput, BundleMismatch, NotEnoughData, UnknownEncoder
from fusion.fitting import Fit, fit
from fusion.imaging import kept
from fusion.imaging.kept import METADATA
from fusion.inputs import FloatArray
from fusion.numerics import without_denormals
from fusion.preparing import check_range

FORMAT = 1
WEIGHTS = "segmenter.safetensors"
LEAST_PICTURES = 4
Tell = Callable[[int, int, float, "float | None"], None]


class SegmenterKind(StrEnum):
    """Which network."""

    UNET = "unet"
    ATTENTION_UNET = "attention_unet"
    UNET_3D = "unet_3d"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmenterConfig:
    """What a segmenter is made of and how it is trained.

    structures  what it finds, in the order of its channels; structures may overlap
    channels    of a picture: 1 grey, 3 colour or three sequences of one slice
    size        pixels a side that pictures are resized to; slices: of a volume (3D only)
    widths      channels of each level of the network
    """

    structures: tuple[str, ...]
    kind: SegmenterKind = SegmenterKind.UNET
    channels: int = 1
    size: int = 128
    slices: int = 16
    widths: tuple[int, ...] = (16, 32, 64, 128)
    epochs: int = 30
    patience: int = 8
    batch_size: int = 8
    learning_rate: float = 2e-3
    seed: int = 0

    @property
    def is_3d(self) -> bool:
        """Whether it looks at a whole volume [C, D, H, W] at once."""
        return self.kind == SegmenterKind.UNET_3D


@dataclass(frozen=True, eq=False, slots=True)
class Drawn:
    """A picture and what a person (or a simulation) drew in it.

    values  float32 [C, H, W] in [0, 1], or [C, D, H, W] for a volume
    masks   bool [structures, H, W] or [structures, D, H, W]
    """

    values: FloatArray
    masks: NDArray[np.bool_]


class Segmenter:
    """A trained segmenter. Made by `train_segmenter` or `Segmenter.load`."""

    def __init__(self, config: SegmenterConfig) -> None:
        if not config.structures or len(set(config.structures)) != len(config.structures):
            raise BadInput("structures must be named, each once")
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = _network(config)
        self.network.eval()

    @property
    def digest(self) -> str:
        """SHA-256 over weights and settings: equal digests, equal masks."""
        held = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for name, values in sorted(self.network.state_dict().items()):
            held.update(name.encode() + values.contiguous().numpy().tobytes())
        return held.hexdigest()

    def probabilities(self, values: FloatArray) -> FloatArray:
        """float32 [C, (D,) H, W] in [0, 1] → [structures, (D,) H, W], at its own size. Raises BadInput."""
        prepared = _prepared(values, self.config)
        with torch.inference_mode(), without_denormals():
            logits = self.network(prepared[None])
            mode = "trilinear" if self.config.is_3d else "bilinear"
            whole = F.interpolate(logits, size=values.shape[1:], mode=mode, align_corners=False)
        return np.asarray(torch.sigmoid(whole[0]).numpy(), np.float32)

    def masks(self, values: FloatArray) -> dict[str, NDArray[np.bool_]]:
        """Structure → bool mask at the picture's own size."""
        found = self.probabilities(values) >= 0.5
        return dict(zip(self.config.structures, found, strict=True))

    def save(self, folder: Path) -> str:
        """Write the folder; SHA-256 of its metadata, which holds that of its weights."""
        about = {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "intended_use": "Measurements shown beside their picture, checked by a person.",
        }
        return kept.write(folder, WEIGHTS, self.network.state_dict(), about)

    @classmethod
    def load(cls, folder: Path, *, digest: str = "") -> Segmenter:
        """Read and check a folder. Raises BundleMismatch, saying what differs."""
        about, weights = kept.read(folder, WEIGHTS, what="segmenter", form=FORMAT, digest=digest)
        try:
            said = about["config"]
            config = SegmenterConfig(
                **{
                    **said,
                    "kind": SegmenterKind(said["kind"]),
                    "structures": tuple(said["structures"]),
                    "widths": tuple(said["widths"]),
                }
            )
            segmenter = cls(config)
            segmenter.network.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as fault:
            raise BundleMismatch(f"{METADATA} does not describe these weights") from fault
        return segmenter


def train_segmenter(
    train: Sequence[Drawn],
    tuning: Sequence[Drawn],
    config: SegmenterConfig,
    *,
    tell: Tell | None = None,
    checkpoint: Path | None = None,
) -> Segmenter:
    """Pictures with masks → Segmenter; the best state by tuning loss. Raises NotEnoughData and BadInput.

    checkpoint  file that says how far it is: a training that was killed goes on from there
    """
    if len(train) < LEAST_PICTURES:
        raise NotEnoughData(f"{len(train)} pictures with masks; at least {LEAST_PICTURES} are needed")
    segmenter = Segmenter(config)
    pictures, masks = _stacked(train, config)
    watched = _stacked(tuning, config) if tuning else None
    generator = torch.Generator().manual_seed(config.seed)

    def loss(index: Tensor) -> Tensor:
        shown, drawn = _moved(pictures[index], masks[index], generator)
        return dice_and_entropy(segmenter.network(shown), drawn)

    def tuning_loss() -> float | None:
        if watched is None:
            return None
        parts = [
            float(dice_and_entropy(segmenter.network(x), y)) * len(x)
            for x, y in zip(*(part.split(config.batch_size) for part in watched), strict=True)
        ]
        return sum(parts) / len(watched[0])

    how = Fit(config.epochs, config.patience, config.batch_size, config.learning_rate, config.seed)
    with torch.random.fork_rng(devices=[]), without_denormals():
        torch.manual_seed(config.seed)
        fit(
            segmenter.network,
            loss,
            tuning_loss,
            rows=len(pictures),
            how=how,
            tell=tell or _silent,
            generators=(generator,),
            checkpoint=checkpoint,
            belongs_to="" if checkpoint is None else checkpoints.digest(pictures, masks, *(watched or ())),
        )
    segmenter.network.eval()
    return segmenter


def dice_and_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over structures of 1 - soft Dice (Milletari 2016), plus binary cross-entropy.

    logits, masks  float32 [B, structures, …]
    """
    said, axes = torch.sigmoid(logits), tuple(range(2, logits.ndim))
    together = 2 * (said * masks).sum(axes) + 1
    overlap = together / (said.sum(axes) + masks.sum(axes) + 1)
    return 1 - overlap.mean() + F.binary_cross_entropy_with_logits(logits, masks)


def _network(config: SegmenterConfig) -> nn.Module:
    try:
        from monai.networks.nets.attentionunet import AttentionUnet
        from monai.networks.nets.unet import UNet
    except ImportError as fault:
        raise UnknownEncoder("segmentation needs the extra: pip install 'tessera[encoders]'") from fault
    shape: dict[str, Any] = {
        "in_channels": config.channels,
        "out_channels": len(config.structures),
        "channels": config.widths,
        "strides": (2,) * (len(config.widths) - 1),
    }
    if config.kind == SegmenterKind.ATTENTION_UNET:
        return AttentionUnet(spatial_dims=2, **shape)
    if config.kind == SegmenterKind.UNET_3D:  # few slices: halve rows and columns only at the first level
        shape["strides"] = ((1, 2, 2), *((2, 2, 2),) * (len(config.widths) - 2))
        return UNet(spatial_dims=3, num_res_units=1, norm="INSTANCE", **shape)
    return UNet(spatial_dims=2, num_res_units=1, norm="INSTANCE", **shape)


def _prepared(values: FloatArray, config: SegmenterConfig) -> Tensor:
    axes = 4 if config.is_3d else 3
    if values.ndim != axes or values.shape[0] != config.channels or 0 in values.shape:
        wanted = f"[{config.channels}, D, H, W]" if axes == 4 else f"[{config.channels}, H, W]"
        raise BadInput(f"a picture must be {wanted} with intensities in [0, 1], not {list(values.shape)}")
    check_range(float(values.min()), float(values.max()), "picture")
    picture = torch.from_numpy(np.array(values, np.float32))
    return _resized(picture.clamp(0, 1), config)


def _resized(picture: Tensor, config: SegmenterConfig) -> Tensor:
    """float32 [K, (D,) H, W] → [K, (slices,) size, size]."""
    if config.is_3d:
        size = (config.slices, config.size, config.size)
        return F.interpolate(picture[None], size=size, mode="trilinear", align_corners=False)[0]
    size2 = (config.size, config.size)
    return F.interpolate(picture[None], size=size2, mode="bilinear", antialias=True, align_corners=False)[0]


def _stacked(drawn: Sequence[Drawn], config: SegmenterConfig) -> tuple[Tensor, Tensor]:
    pictures, masks = [], []
    for one in drawn:
        if one.masks.shape != (len(config.structures), *one.values.shape[1:]) or one.masks.dtype != bool:
            wanted = [len(config.structures), *one.values.shape[1:]]
            raise BadInput(f"masks must be bool {wanted}, not {one.masks.dtype} {list(one.masks.shape)}")
        pictures.append(_prepared(one.values, config))
        masks.append((_resized(torch.from_numpy(one.masks.astype(np.float32)), config) >= 0.5).float())
    return torch.stack(pictures), torch.stack(masks)


def _moved(pictures: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch shifted, zoomed and brightened at random, pictures and masks alike."""
    draw = torch.rand(4, generator=generator)
    zoom, bright = 0.9 + 0.2 * float(draw[0]), 0.85 + 0.3 * float(draw[3])
    side = pictures.shape[-1]
    rows, columns = (int((float(d) - 0.5) * 0.16 * side) for d in draw[1:3])
    flat = [x.flatten(0, x.ndim - 4) if x.ndim == 5 else x for x in (pictures, masks)]
    moved = []
    for part, mode in zip(flat, ("bilinear", "nearest"), strict=True):
        theta = torch.tensor([[1 / zoom, 0, -2 * columns / side], [0, 1 / zoom, -2 * rows / side]])
        grid = F.affine_grid(theta.expand(len(part), 2, 3), list(part.shape), align_corners=False)
        moved.append(F.grid_sample(part, grid, mode=mode, align_corners=False))
    shown, drawn = (x.reshape(whole.shape) for x, whole in zip(moved, (pictures, masks), strict=True))
    return (shown * bright).clamp(0, 1), drawn


def _silent(epoch: int, epochs: int, training: float, tuning: float | None) -> None:
    """Nobody listens."""
