"""Fine-tuning within a training: the pictures, read once, and what is tuned on some of the patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fusion.augment import augmentation
from fusion.backbones.stages import stages
from fusion.batch import Tokens
from fusion.config import FusionConfig
from fusion.embedding import Embedder
from fusion.errors import NotEnoughData
from fusion.finetune import Pictures, Tuned, embed_pictures, finetune, read_pictures
from fusion.fitting import Tell
from fusion.inputs import PatientInputs


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """Patients of one split: their inputs, and labels float32 [B, R], NaN = unknown."""

    inputs: Sequence[PatientInputs]
    labels: Tensor


class ImageTuning:
    """The pictures of a training, read once, and what is tuned on some of them."""

    def __init__(self, train: Split, tuning: Split, config: FusionConfig, embedder: Embedder) -> None:
        self._config = config
        self._base = embedder.image_backbone
        if config.finetune == "gradual":  # said before any picture is read
            stages(self._base.network, self._base.name)
        self._train, self._tuning = train, tuning
        self.pictures = read_pictures(train.inputs, self._base, config)
        self.watched = read_pictures(tuning.inputs, self._base, config)
        channels = {p.values.shape[1] for p in (self.pictures, self.watched) if len(p)}
        if len(channels) > 1:
            self.pictures, self.watched = (_in_colour(p) for p in (self.pictures, self.watched))

    def tuned(
        self,
        seen: Tensor,
        base_logit: Tensor,
        log_odds: Tensor,
        tell: Tell,
        *,
        checkpoint: Path | None,
        belongs_to: str,
    ) -> Tuned:
        """Tune on the pictures of the `seen` patients, bool [B]."""
        pictures = self.pictures.of(seen)
        if not len(pictures):
            raise NotEnoughData("no training patient has an image to fine-tune the image backbone on")
        return finetune(
            self._base,
            pictures,
            self._train.labels,
            self.watched,
            self._tuning.labels,
            self._config,
            base_logit=base_logit,
            log_odds=log_odds,
            tell=tell,
            augment=augmentation(self._config.augment),
            checkpoint=checkpoint,
            belongs_to=belongs_to,
        )

    def embedded(self, tuned: Tuned, tokens: Tokens, watched: Tokens) -> tuple[Tokens, Tokens]:
        """The tokens of both splits with the tuned backbone's embeddings in place of the frozen one's."""
        if tuned.backbone is self._base:
            return tokens, watched
        return (
            _with(tokens, self.pictures, embed_pictures(tuned.backbone, self.pictures)),
            _with(watched, self.watched, embed_pictures(tuned.backbone, self.watched)),
        )


def _with(tokens: Tokens, pictures: Pictures, embeddings: Tensor) -> Tokens:
    values = tokens.values.clone()
    values[pictures.patient, pictures.view, : embeddings.shape[1]] = embeddings
    return replace(tokens, values=torch.where(tokens.known[..., None], values, 0.0))


def _in_colour(pictures: Pictures) -> Pictures:
    return replace(pictures, values=pictures.values.expand(-1, 3, -1, -1))
