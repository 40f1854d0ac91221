"""Transfer learning: a frozen image backbone, a new head on it, and stages thawed from the last one back.

none     the backbone stays frozen; its embeddings are all that is used
head     a linear head on the whole embedding is trained, with augmentation; the backbone stays frozen
gradual  after the head, one stage more is thawed every few epochs, the last stage first, and each earlier
         stage learns 2.6 times more slowly than the one after it (gradual unfreezing and discriminative
         rates: Howard & Ruder 2018)

Statistics of batch normalisation stay those of pretraining: small batches of few patients would only blur
them. Its gains and offsets are trained with their stage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fusion import parallel
from fusion.backbones import ImageBackbone
from fusion.backbones.image import FRAMES_AT_ONCE
from fusion.backbones.stages import stages
from fusion.config import FusionConfig
from fusion.errors import BadInput
from fusion.fitting import Fit, Tell, fit
from fusion.inputs import PatientInputs
from fusion.losses import masked_bce, weighed_bce
from fusion.numerics import without_denormals
from fusion.preparing import check_range

HOWS = ("none", "head", "gradual")
SLOWER = 2.6  # learning rate of a stage over that of the one before it (Howard & Ruder 2018)
HEAD_EPOCHS = 2  # with everything else frozen
DROPOUT = 0.3  # of the embedding, before the head
LEAST_TUNING = 20  # pictures of tuning patients before early stopping looks at them
DECAY = 1e-2  # decoupled weight decay

Change = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class Pictures:
    """Pictures at the size the backbone takes, with what is known of their patients.

    values   float16 [N, C, S, S], intensities in [0, 1]
    patient  int64 [N], row of the patient in the batch;  view  int64 [N], place among the patient's views
    """

    values: Tensor
    patient: Tensor
    view: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def of(self, patients: Tensor) -> Pictures:
        """Those of some patients, bool [B]."""
        keep = patients[self.patient]
        return Pictures(self.values[keep], self.patient[keep], self.view[keep])


@dataclass(frozen=True, eq=False, slots=True)
class Tuned:
    """The backbone (the very one that came in, where nothing of it was trained) and the head, [D, R]."""

    backbone: ImageBackbone
    head: Tensor


def read_pictures(inputs: Sequence[PatientInputs], backbone: ImageBackbone, config: FusionConfig) -> Pictures:
    """The views that the model looks at, read once. Pictures in colour among grey ones make all colour."""
    found: list[Tensor] = []
    places: list[tuple[int, int]] = []
    for row, patient in enumerate(inputs):
        for view, pixels in enumerate(patient.images[: config.max_images]):
            picture = pixels.read().values[:1]
            if picture.size:
                check_range(float(picture.min()), float(picture.max()), f"image {pixels.key!r}")
            found.append(backbone.resize(picture, config.image_size)[0].half())
            places.append((row, view))
    channels = max((len(one) for one in found), default=1)
    values = [one.expand(channels, -1, -1) for one in found]
    size = config.image_size
    where = torch.tensor(places, dtype=torch.long).reshape(-1, 2)
    return Pictures(
        torch.stack(values) if values else torch.zeros(0, channels, size, size, dtype=torch.float16),
        where[:, 0],
        where[:, 1],
    )


def finetune(
    backbone: ImageBackbone,
    train: Pictures,
    labels: Tensor,
    tuning: Pictures,
    tuning_labels: Tensor,
    config: FusionConfig,
    *,
    base_logit: Tensor,
    log_odds: Tensor,
    tell: Tell,
    augment: Change | None = None,
    checkpoint: Path | None = None,
    belongs_to: str = "",
) -> Tuned:
    """Train a head, and of the backbone what `config.finetune` says; the best epoch on the tuning split.

    labels     float32 [B, R] of the patients that `train.patient` counts, NaN = unknown
    log_odds   float32 [R], class weights (see `masked_bce`)
    augment    pictures [N, C, S, S] in [0, 1] and a generator → pictures; training pictures only
    Raises BadInput for a `finetune` that is none of `HOWS` and for a backbone whose stages are not known, and
    what `tell` raises.
    """
    if config.finetune not in HOWS[1:]:
        raise BadInput(f"finetune must be one of {', '.join(HOWS)}, not {config.finetune!r}")
    net = _Tuning(backbone, len(base_logit), is_frozen=config.finetune == "head")
    generator = torch.Generator().manual_seed(config.seed)
    said, watched = labels[train.patient], tuning_labels[tuning.patient]
    views = torch.bincount(train.patient).clamp(min=1)[train.patient].float()  # a patient counts once

    def logits(pictures: Tensor) -> Tensor:
        device = next(net.parameters()).device
        said: Tensor = net(pictures.to(device).float())
        return base_logit.to(device) + said

    def loss(index: Tensor) -> tuple[Tensor, Tensor]:
        pictures = train.values[index].float()
        if augment is not None:
            pictures = augment(pictures, generator).clamp(0, 1)
        answer = logits(pictures).float().cpu()
        return weighed_bce(answer, said[index], weight=1 / views[index], log_odds=log_odds)

    def tuning_loss() -> float | None:
        if len(tuning) < LEAST_TUNING:
            return None
        with without_denormals():
            parts = [logits(part).float().cpu() for part in tuning.values.split(FRAMES_AT_ONCE)]
        return float(masked_bce(torch.cat(parts), watched, log_odds=log_odds))

    fit(
        net,
        loss,
        tuning_loss,
        rows=len(train),
        how=_how(config),
        tell=tell,
        rates=net.rates(config.finetune_rate),
        at_epoch=lambda epoch: net.thaw(_thawed(epoch, config.finetune_epochs, len(net.stages))),
        generators=(generator,),
        checkpoint=checkpoint,
        belongs_to=belongs_to,
    )
    net.thaw(0)
    head = net.head.weight.detach().T.clone()
    if net.is_frozen:
        return Tuned(backbone, head)
    made = ImageBackbone(backbone.name, net.network, is_tuned=True, constants=backbone.constants)
    return Tuned(made, head)


def embed_pictures(backbone: ImageBackbone, pictures: Pictures) -> Tensor:
    """float32 [N, D]."""
    parts = [torch.zeros(0, backbone.width)]
    with torch.no_grad(), without_denormals():
        for some in pictures.values.split(FRAMES_AT_ONCE):
            parts.append(backbone.pool(backbone.maps(backbone.normalise(some.float()))))
    return torch.cat(parts)


class _Tuning(nn.Module):
    """Pictures [N, C, S, S] in [0, 1] → logits [N, R] about the base logit."""

    def __init__(self, backbone: ImageBackbone, outcomes: int, *, is_frozen: bool) -> None:
        super().__init__()
        self.network = copy.deepcopy(backbone.network)
        self.head = nn.Linear(backbone.width, outcomes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.is_frozen = is_frozen
        self.stages = [] if is_frozen else stages(self.network, backbone.name)
        self._backbone = backbone
        self.thaw(0)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.network(self._backbone.normalise(pictures))
        logits: Tensor = self.head(parallel.dropout(self._backbone.pool(maps), DROPOUT, self.training))
        return logits

    def train(self, mode: bool = True) -> _Tuning:
        """Batch normalisation keeps its statistics, and dropout within the network stays off."""
        super().train(mode)
        self.network.eval()
        return self

    def thaw(self, count: int) -> None:
        """Train the last `count` stages, and the head."""
        self.network.requires_grad_(False)
        for stage in self.stages[len(self.stages) - count :]:
            for module in stage:
                module.requires_grad_(True)

    def rates(self, rate: float) -> list[tuple[list[nn.Parameter], float]]:
        """The head at `rate`, the last stage 2.6 times slower, and so on back to the first."""
        found = [(list(self.head.parameters()), rate)]
        for depth, stage in enumerate(reversed(self.stages), start=1):
            found.append(([p for module in stage for p in module.parameters()], rate / SLOWER**depth))
        return found


def _thawed(epoch: int, epochs: int, stages_: int) -> int:
    """How many stages are trained in that epoch: none at first, all of them by two thirds of the epochs."""
    if epoch < HEAD_EPOCHS or not stages_:
        return 0
    every = max(1, (2 * epochs // 3 - HEAD_EPOCHS) // stages_)
    return min(stages_, 1 + (epoch - HEAD_EPOCHS) // every)


def _how(config: FusionConfig) -> Fit:
    return Fit(
        config.finetune_epochs,
        max(config.patience, config.finetune_epochs // 2),  # a thawed stage may first make it worse
        config.batch_size,
        config.finetune_rate,
        config.seed,
        weight_decay=DECAY,
        device=config.device,
        precision=config.precision,
        accumulate=config.accumulate,
    )
