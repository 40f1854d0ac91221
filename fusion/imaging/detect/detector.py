"""A detector: trained on pictures with boxes, asked about frames, kept as a small folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusion import checkpoints
from fusion.backbones.image import ImageBackbone, load_backbone
from fusion.errors import BadInput, BundleMismatch, NotEnoughData
from fusion.fitting import Fit, fit
from fusion.imaging import kept
from fusion.imaging.detect.faster_rcnn import FasterRcnn, Found, Truth
from fusion.imaging.detect.pyramid import Pyramid
from fusion.imaging.detect.rt_detr import RtDetr
from fusion.imaging.kept import METADATA
from fusion.inputs import FloatArray, Frames
from fusion.numerics import without_denormals

FORMAT = 1
WEIGHTS = "detector.safetensors"
HELD_WIDTH, AT_ONCE = torch.float16, 8
LEAST_PICTURES = 4
Tell = Callable[[int, int, float, "float | None"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """What a detector is made of and how it is trained.

    labels    what it looks for, each named once
    kind      faster_rcnn | rt_detr
    backbone  a name of the registry; its weights stay as they are
    strides   of the feature maps it reads, rising
    size      pixels a side that pictures are resized to, whatever their shape
    copies    of every training picture, the first as it is, the others moved and scaled
    """

    labels: tuple[str, ...]
    kind: str = "faster_rcnn"
    backbone: str = "efficientnet_lite0"
    strides: tuple[int, ...] = (8, 16, 32)
    size: int = 256
    width: int = 96
    copies: int = 4
    epochs: int = 20
    patience: int = 5
    batch_size: int = 8
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """A frame with what a person saw in it.

    values  float32 [H, W] or [C, H, W] in [0, 1]
    boxes   float32 [N, 4], (y0, x0, y1, x1) in its own pixels; labels: N names
    """

    values: FloatArray
    boxes: FloatArray
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """One finding. y, x: its top left corner; h, w: its size, all in pixels of the frame as it was given.

    height_mm, width_mm  its size where the spacing is known, else None
    frame                which frame of the clip, from 0
    """

    label: str
    score: float
    y: float
    x: float
    h: float
    w: float
    height_mm: float | None = None
    width_mm: float | None = None
    frame: int = 0


class Detector:
    """A trained detector. Made by `train_detector` or `Detector.load`."""

    def __init__(self, config: DetectorConfig, *, backbone: ImageBackbone | None = None) -> None:
        _check(config)
        self.config = config
        self.backbone = backbone or load_backbone(config.backbone)
        self.pyramid = Pyramid(self.backbone, config.strides)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = _head(config, self.pyramid.channels)
        self.head.eval()

    def detect(self, frames: Frames, *, threshold: float = 0.5) -> list[Box]:
        """Findings scored at least `threshold`, frame by frame, the surest first.

        Raises BadInput for frames that are not [T, H, W] or [T, 3, H, W], or hold values that are not finite.
        """
        height, width = frames.values.shape[-2:]
        row_mm, column_mm = frames.spacing_mm or (None, None)
        boxes = []
        for place, found in enumerate(self.find(frames.values)):
            scale = torch.tensor([height, width, height, width]) / self.config.size
            for corners, label, score in zip(found.boxes * scale, found.labels, found.scores, strict=True):
                if float(score) < threshold:
                    continue
                y0, x0, y1, x1 = corners.tolist()
                boxes.append(
                    Box(
                        self.config.labels[int(label)],
                        float(score),
                        y0,
                        x0,
                        y1 - y0,
                        x1 - x0,
                        None if row_mm is None else (y1 - y0) * row_mm,
                        None if column_mm is None else (x1 - x0) * column_mm,
                        place,
                    )
                )
        return boxes

    def find(self, values: FloatArray) -> list[Found]:
        """All findings of each frame, in pixels of the resized square."""
        found: list[Found] = []
        self.head.eval()
        with torch.inference_mode(), without_denormals():
            for start in range(0, len(values), AT_ONCE):
                prepared = self.backbone.prepare(values[start : start + AT_ONCE], self.config.size)
                found += self.head.find(self.pyramid(prepared), self.config.size)  # type: ignore[operator]
        return found

    def save(self, folder: Path) -> str:
        """Write the folder; SHA-256 of its metadata, which holds that of its weights."""
        metadata = {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "backbone": self.backbone.version,
            "inputs": {
                "shape": ["T", "H", "W"],
                "dtype": "float32",
                "range": [0, 1],
                "resized_to": self.config.size,
            },
            "outputs": {"boxes": "y, x, h, w in pixels of the frame; mm where its spacing is known"},
        }
        return kept.write(folder, WEIGHTS, self.head.state_dict(), metadata)

    @classmethod
    def load(cls, folder: Path, *, digest: str | None = None, image_weights: Path | None = None) -> Detector:
        """The inverse. Raises BundleMismatch for files that are missing, changed or of another backbone.

        digest         what `save` answered, to refuse any other folder
        image_weights  the backbone's file, where its weights do not come with a package
        """
        metadata, weights = kept.read(folder, WEIGHTS, what="detector", form=FORMAT, digest=digest or "")
        try:
            config, version = _config(metadata["config"]), metadata["backbone"]
        except (ValueError, KeyError, TypeError) as fault:
            raise BundleMismatch(f"{METADATA} of {folder.name} describes no detector: {fault}") from fault
        backbone = load_backbone(config.backbone, weights=image_weights)
        if backbone.version != version:
            raise BundleMismatch(f"it reads maps of {version}; the backbone here is {backbone.version}")
        detector = cls(config, backbone=backbone)
        try:
            detector.head.load_state_dict(weights)
        except RuntimeError as fault:
            raise BundleMismatch(f"{WEIGHTS} of {folder.name} does not fit its config") from fault
        return detector


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """Pictures as a head is taught: maps float16 [N, C, h, w] a level, and what each holds."""

    maps: tuple[Tensor, ...]
    truths: tuple[Truth, ...]

    def rows(self, index: Sequence[int]) -> Prepared:
        """Some of them."""
        return Prepared(
            tuple(one[torch.as_tensor(list(index))] for one in self.maps),
            tuple(self.truths[i] for i in index),
        )

    def tensors(self) -> list[Tensor]:
        """All that is in them."""
        return [*self.maps, *(part for truth in self.truths for part in (truth.boxes, truth.labels))]


def train_detector(
    pictures: Sequence[Picture],
    config: DetectorConfig,
    *,
    tuning: Sequence[Picture] = (),
    tell: Tell | None = None,
    checkpoint: Path | None = None,
) -> Detector:
    """Pictures → Detector; early stopping on `tuning` when there is some. The same call, the same detector.

    checkpoint  file that says how far it is: a training that was killed goes on from there
    Raises NotEnoughData (fewer than 4 pictures, a label never seen) and BadInput (boxes that do not fit).
    """
    detector = Detector(config)
    taught, watched = prepare(detector, pictures, config.copies), prepare(detector, tuning, 1)
    return train_on(detector, taught, watched, tell=tell, checkpoint=checkpoint)


def prepare(detector: Detector, pictures: Sequence[Picture], copies: int) -> Prepared | None:
    """Maps of every picture, `copies` times: row i × copies + c is copy c of picture i. None without any."""
    config, draw = detector.config, np.random.default_rng(detector.config.seed)
    maps: list[list[Tensor]] = [[] for _ in config.strides]
    truths = []
    for picture in pictures:
        truth = _truth(picture, config)
        frame = detector.backbone.resize(np.asarray(picture.values, np.float32)[None], config.size)
        frames, held = [frame], [truth]
        for _ in range(copies - 1):
            moved, there = _moved(frame, truth, draw)
            frames.append(moved)
            held.append(there)
        truths += held
        with torch.no_grad(), without_denormals():
            for kept, one in zip(
                maps, detector.pyramid(detector.backbone.normalise(torch.cat(frames))), strict=True
            ):
                kept.append(one.to(HELD_WIDTH))
    return Prepared(tuple(torch.cat(kept) for kept in maps), tuple(truths)) if pictures else None


def train_on(
    detector: Detector,
    taught: Prepared | None,
    tuning: Prepared | None,
    *,
    tell: Tell | None = None,
    checkpoint: Path | None = None,
) -> Detector:
    """The same for pictures that were prepared before."""
    config, head = detector.config, detector.head
    if taught is None or len(taught.truths) < LEAST_PICTURES * config.copies:
        raise NotEnoughData(f"a detector needs at least {LEAST_PICTURES} pictures to learn from")
    seen = torch.cat([truth.labels for truth in taught.truths]).unique().tolist()
    if lacking := [name for place, name in enumerate(config.labels) if place not in seen]:
        raise NotEnoughData(f"no training picture holds a box labelled {', '.join(lacking)}")
    draw = torch.Generator().manual_seed(config.seed)

    def asked(held: Prepared, generator: torch.Generator) -> Tensor:
        maps = [one.float() for one in held.maps]
        return head.losses(maps, held.truths, config.size, generator)  # type: ignore[no-any-return,operator]

    def loss(index: Tensor) -> tuple[Tensor, Tensor]:
        part = taught.rows(index.tolist())
        return asked(part, draw), _weight(config, part.truths)

    def tuning_loss() -> float | None:
        if tuning is None:
            return None
        same = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            parts = [
                tuning.rows(range(len(tuning.truths))[i : i + AT_ONCE])
                for i in range(0, len(tuning.truths), AT_ONCE)
            ]
            return sum(float(asked(part, same)) * len(part.truths) for part in parts) / len(tuning.truths)

    how = Fit(
        config.epochs,
        config.patience,
        config.batch_size,
        config.learning_rate,
        config.seed,
        weight_decay=1e-4,
    )
    with torch.random.fork_rng(devices=[]), without_denormals():
        torch.manual_seed(config.seed)
        fit(
            head,
            loss,
            tuning_loss,
            rows=len(taught.truths),
            how=how,
            tell=tell or (lambda *_: None),
            rates=[(head.parameters(), config.learning_rate)],
            generators=(draw,),
            checkpoint=checkpoint,
            belongs_to="" if checkpoint is None else _digest(taught, tuning),
        )
    head.eval()
    return detector


def _head(config: DetectorConfig, channels: Sequence[int]) -> nn.Module:
    if config.kind == "rt_detr":
        return RtDetr(channels, config.strides, len(config.labels), config.width)
    return FasterRcnn(channels, len(config.labels), config.width)


def _digest(taught: Prepared, tuning: Prepared | None) -> str:
    return checkpoints.digest(*taught.tensors(), *(tuning.tensors() if tuning is not None else ()))


def _weight(config: DetectorConfig, truths: Sequence[Truth]) -> Tensor:
    """What the loss of those pictures is the mean over: pictures, or with RT-DETR boxes."""
    boxes = sum(len(truth.boxes) for truth in truths)
    return torch.tensor(float(max(1, boxes) if config.kind == "rt_detr" else len(truths)))


def _check(config: DetectorConfig) -> None:
    if not config.labels or len(set(config.labels)) != len(config.labels):
        raise BadInput("a detector needs at least one label, each named once")
    if config.kind not in ("faster_rcnn", "rt_detr"):
        raise BadInput(f"kind must be 'faster_rcnn' or 'rt_detr', not {config.kind!r}")
    if config.size < 2 * max(config.strides, default=0):
        raise BadInput(f"size must be at least twice the largest stride, not {config.size} pixels")


def _config(said: dict[str, Any]) -> DetectorConfig:
    return DetectorConfig(**{**said, "labels": tuple(said["labels"]), "strides": tuple(said["strides"])})


def _truth(picture: Picture, config: DetectorConfig) -> Truth:
    """Boxes in pixels of the resized square. Raises BadInput."""
    boxes: NDArray[np.float32] = np.asarray(picture.boxes, np.float32).reshape(-1, 4)
    height, width = picture.values.shape[-2:]
    if len(boxes) != len(picture.labels):
        raise BadInput(f"{len(boxes)} boxes and {len(picture.labels)} labels; one label a box is needed")
    if unknown := set(picture.labels) - set(config.labels):
        raise BadInput(f"labels {sorted(unknown)} are not among {list(config.labels)}")
    if not np.isfinite(boxes).all() or (boxes[:, 2:] - boxes[:, :2] <= 0).any():
        raise BadInput("boxes must be finite (y0, x0, y1, x1) in pixels, with y0 < y1 and x0 < x1")
    scale = np.array([height, width, height, width], np.float32)
    settled = torch.from_numpy(np.clip(boxes / scale, 0, 1) * config.size)
    return Truth(
        settled, torch.tensor([config.labels.index(name) for name in picture.labels], dtype=torch.int64)
    )


def _moved(frame: Tensor, truth: Truth, draw: np.random.Generator) -> tuple[Tensor, Truth]:
    """The picture scaled by 0.8 to 1.2, shifted by up to a tenth, brighter or darker; boxes go along.

    Never mirrored: left and right mean something in a body. A box that loses most of itself is left out.
    """
    size = frame.shape[-1]
    zoom, shift = draw.uniform(0.8, 1.2), draw.uniform(-0.1, 0.1, 2)
    to_source = torch.tensor([[1 / zoom, 0, shift[1] * 2], [0, 1 / zoom, shift[0] * 2]], dtype=torch.float32)
    grid = torch.nn.functional.affine_grid(to_source[None], list(frame.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(frame, grid, align_corners=False)
    moved = (moved.clamp(min=0) ** draw.uniform(0.7, 1.4)).clamp(0, 1)
    centre, offset = size / 2, torch.tensor([shift[0], shift[1]] * 2, dtype=torch.float32) * size
    whole = (truth.boxes - centre - offset) * zoom + centre
    cut = whole.clamp(0, size)
    kept = (cut[:, 2:] - cut[:, :2]).clamp(min=0).prod(1) > 0.4 * (whole[:, 2:] - whole[:, :2]).prod(1)
    return moved, Truth(cut[kept], truth.labels[kept])
