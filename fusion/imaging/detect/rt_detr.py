"""RT-DETR (Zhao 2024) from transformers, on the same backbone: a transformer that answers with a set of
boxes.

A small configuration with random weights (only the backbone's are pretrained), beside Faster R-CNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.errors import UnknownEncoder
from fusion.imaging.detect.boxes import clipped
from fusion.imaging.detect.faster_rcnn import LEAST, MOST, Found, Truth

QUERIES = 30


class RtDetr(nn.Module):
    """Maps of a Pyramid → findings; the same seam as FasterRcnn."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], labels: int, width: int) -> None:
        super().__init__()
        try:
            from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig
        except ImportError as fault:
            raise UnknownEncoder("rt_detr needs transformers ≥ 5 (a dependency of tessera)") from fault
        stages = [f"stage{place + 1}" for place in range(len(channels))]
        config = RTDetrConfig(  # type: ignore[call-arg]
            backbone_config=RTDetrResNetConfig(  # type: ignore[call-arg]
                embedding_size=8,
                hidden_sizes=list(channels),
                depths=[1] * len(channels),
                layer_type="basic",
                out_features=stages,
            ),
            encoder_in_channels=list(channels),
            feat_strides=list(strides),
            encoder_hidden_dim=width,
            encoder_ffn_dim=2 * width,
            encoder_attention_heads=4,
            encode_proj_layers=[len(channels) - 1],
            d_model=width,
            decoder_in_channels=[width] * len(channels),
            decoder_ffn_dim=2 * width,
            decoder_attention_heads=4,
            decoder_layers=2,
            num_feature_levels=len(channels),
            num_queries=QUERIES,
            num_denoising=20,
            num_labels=labels,
            hidden_expansion=0.5,
        )
        self.model = RTDetrForObjectDetection(config)
        self.model.model.backbone = _Given(channels)

    def losses(
        self, maps: Sequence[Tensor], truths: Sequence[Truth], size: int, draw: torch.Generator
    ) -> Tensor:
        """The set loss of the paper (Hungarian matching; varifocal, L1 and GIoU), denoising queries
        included."""
        asked = [{"class_labels": truth.labels, "boxes": _centred(truth.boxes / size)} for truth in truths]
        return self._asked(maps, size, asked).loss  # type: ignore[no-any-return]

    def find(self, maps: Sequence[Tensor], size: int) -> list[Found]:
        """One Found per picture; no suppression is needed."""
        said = self._asked(maps, size, None)
        found = []
        for logits, boxes in zip(said.logits.sigmoid(), said.pred_boxes, strict=True):
            scores, place = logits.flatten().sort(descending=True, stable=True)
            kept = scores[:MOST] >= LEAST
            scores, place = scores[:MOST][kept], place[:MOST][kept]
            corners = _cornered(boxes[place // logits.shape[1]]) * size
            found.append(Found(clipped(corners, size), place % logits.shape[1], scores))
        return found

    def _asked(self, maps: Sequence[Tensor], size: int, labels: list[dict[str, Tensor]] | None) -> Any:
        self.model.model.backbone.maps = _doubling(maps)
        try:
            return self.model(pixel_values=maps[0].new_zeros(len(maps[0]), 3, size, size), labels=labels)
        finally:
            self.model.model.backbone.maps = []


class _Given(nn.Module):
    """Stands where RT-DETR's own backbone would: hands on maps that were made before."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        self.intermediate_channel_sizes = list(channels)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(one, torch.ones(len(one), *one.shape[2:], dtype=torch.bool)) for one in self.maps]


def _doubling(maps: Sequence[Tensor]) -> list[Tensor]:
    """Each level twice as fine as the next, as the network's own fusion wants them; padding rules of a
    backbone may have made 13 cells where 12 are wanted."""
    height, width = maps[-1].shape[2:]
    sizes = [(height << up, width << up) for up in range(len(maps) - 1, -1, -1)]
    return [
        one
        if tuple(one.shape[2:]) == size
        else F.interpolate(one, size=size, mode="bilinear", align_corners=False)
        for one, size in zip(maps, sizes, strict=True)
    ]


def _centred(boxes: Tensor) -> Tensor:
    """(y0, x0, y1, x1) → (x, y, width, height) about the centre."""
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([middle.flip(1), size.flip(1)], dim=1)


def _cornered(boxes: Tensor) -> Tensor:
    middle, size = boxes[:, :2].flip(1), boxes[:, 2:].flip(1)
    return torch.cat([middle - size / 2, middle + size / 2], dim=1)
