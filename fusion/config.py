"""What a model is made of and how it is trained. Every field says what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fusion.inputs import Modality


class FieldKind(StrEnum):
    """How a tabular field is encoded."""

    NUMERIC = "numeric"
    BINARY = "binary"  # 0 or 1


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One named input of the tabular, genomics or series encoder.

    low, high   plausible range in `unit`; a value outside it is refused as missing, and counted
    code        `system|code` of what is measured, for people and for the bundle's metadata
    """

    name: str
    label: str
    unit: str = "1"  # UCUM
    kind: FieldKind = FieldKind.NUMERIC
    low: float | None = None
    high: float | None = None
    code: str = ""


@dataclass(frozen=True, slots=True)
class OutcomeSpec:
    """What is predicted: the chance that `name` happens within `horizon_hours` of as_of.

    event  outcomes that name the same event are horizons of one survival curve (see `fusion.survival`): they
           are learned from censored patients too, and a later one is never less likely. "": stands alone
    """

    name: str
    label: str
    horizon_hours: float
    event: str = ""


class FusionKind(StrEnum):
    """How modalities are combined."""

    LATE = "late"  # masked logistic over out-of-fold modality logits: the simplest that wins (SCIENCE 6)
    GATED = "gated"
    ATTENTION = "attention"  # attention over modality tokens
    STACKING = "stacking"  # a meta-learner with weights of its own for every pattern of present modalities


class CinePooling(StrEnum):
    """How the frames of a clip become one: a recurrent network, attention, or, to compare with, less."""

    GRU = "gru"
    LSTM = "lstm"
    ATTENTION = "attention"
    MEAN = "mean"  # of the frames, whatever their order
    FRAME = "frame"  # the middle one alone


USUAL = tuple(modality for modality in Modality if modality != Modality.VOLUME)


class VolumeKind(StrEnum):
    """How a CT or MR volume is looked at."""

    SLICES = "2.5d"  # each slice with its neighbours through `volume_backbone`, then attention over slices
    VOXELS = "3d"  # a 3D CNN on the resampled voxels


class Imbalance(StrEnum):
    """What is done about an outcome that is rarer than its absence, where an encoder is trained by steps."""

    NONE = "none"
    CLASS_WEIGHTS = "class-weights"
    FOCAL = "focal"
    BALANCED_SAMPLING = "balanced-sampling"


class Augment(StrEnum):
    """How pictures are changed while the image backbone is tuned (amounts: `fusion.augment`)."""

    NONE = "none"
    UPRIGHT = "upright"  # moved a little, lit otherwise, another scanner's blur and noise: radiographs
    ANY_WAY_UP = "any-way-up"  # likewise, turned and mirrored at will: skin; nothing that has a left side


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """A model and its training, complete: the same config, data and seed give the same model."""

    outcomes: tuple[OutcomeSpec, ...]
    fields: tuple[FieldSpec, ...] = ()
    genomics: tuple[FieldSpec, ...] = ()
    channels: tuple[FieldSpec, ...] = ()  # series
    modalities: tuple[Modality, ...] = USUAL
    image_backbone: str = "efficientnet_lite0"
    cine_backbone: str = "efficientnet_lite0"
    text_backbone: str = "minilm"
    image_size: int = 224  # pixels a side
    image_components: int = 32  # principal components kept of an image's embedding; 128 where rows are many
    cine_size: int = 112
    cine_frames: int = 16  # frames kept per clip, evenly spread over its time
    cine_pooling: CinePooling = CinePooling.GRU
    volume_kind: VolumeKind = VolumeKind.SLICES
    volume_backbone: str = "efficientnet_lite0"
    volume_size: int = 112  # pixels a side of the grid a volume is resampled to
    volume_extent_mm: float = 240.0  # that those pixels cover
    volume_step_mm: float = 5.0  # between slices of the grid
    volume_slices: int = 32  # at most
    imbalance: Imbalance = Imbalance.CLASS_WEIGHTS
    series_hours: float = 168.0  # how far back series are read
    max_images: int = 2
    max_notes: int = 5
    width: int = 16  # E, the width of a modality's embedding
    fusion: FusionKind = FusionKind.LATE
    folds: int = 5  # for out-of-fold encoder outputs; of 10,000 patients and more at most 3 (see `folds_for`)
    epochs: int = 60
    patience: int = 8  # epochs without a better tuning loss before stopping
    batch_size: int = 32  # patients
    accumulate: int = 1  # minibatches whose gradients make one step: batches larger than memory holds
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    modality_dropout: float = 0.3  # chance that a present modality is hidden during training
    interval_level: float = 0.9  # stated coverage of the conformal interval
    seed: int = 0
    threads: int = 1
    image_weights: str = ""  # safetensors file for the image backbone, and for the cine backbone of that name
    view_flags: bool = True  # the image encoder is told which views are frontal and which lateral
    finetune: str = "none"  # none | head | gradual: what of the image backbone is trained (fusion.finetune)
    finetune_epochs: int = 10
    augment: Augment = Augment.NONE  # what that does to training pictures
    finetune_rate: float = 1e-3  # learning rate of the new head; each earlier stage 2.6 times less
    device: str = "auto"  # where backbones are trained: the GPU where there is one, "cpu" or "cuda"
    precision: str = "auto"  # of that: "float32" | "bfloat16" | "float16"; auto: float32 on a CPU
    scope_pictures: int = 0  # training pictures read to learn which pictures are out of scope; 0: none are
    scope_fields: tuple[str, ...] = ()  # fields whose range in training bounds whom the model may judge
    scope_false_alarms: float = 0.02  # chance that a picture like those of training is called out of scope
    summarise: bool = False  # keep tenths of the training inputs, so that serving can tell a shift
    most_auroc_gap: float | None = 0.1  # between two groups of patients (fusion.fairness); None: no limit
    most_calibration_gap: float | None = 0.1  # of observed minus expected, likewise
    dp_noise: float = 0.0  # noise of DP-SGD over its clipping norm (fusion.privacy); 0: ordinary training
    dp_clip: float = 1.0  # largest norm of one patient's gradient
    dp_delta: float = 1e-5  # chance that the stated privacy fails
    extra: dict[str, float] = field(default_factory=dict)
