"""FusionModel: encoders → unimodal logits → fusion → logits. The file to read first.

    PatientInputs --collate--> Batch --encode--> Evidence [B, M, R] --fuse--> logit [B, R] --calibrate--> risk

Training goes the same way, but the fusion is fitted on *out-of-fold* evidence (see `fusion.train`).
Of outcomes that are horizons of one event, the R logits are those of its hazards (`fusion.survival`).
Calibrated risks, hazards added up, are made outside this module: by `fusion.predict.calibrated`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusion.batch import Batch, Tokens
from fusion.config import FusionConfig
from fusion.encoders import Encoded, Encoder, build_encoder
from fusion.fuse import build_fusion
from fusion.inputs import Modality
from fusion.patterns import all_subsets


@dataclass(frozen=True, eq=False, slots=True)
class Evidence:
    """What each modality says.

    logits   float32 [B, M, R], unimodal logits minus the base logit
    present  bool [B, M], in the order of `FusionModel.modalities`; False also for a modality never trained
    encoded  modality → Encoded
    """

    logits: Tensor
    present: Tensor
    encoded: dict[Modality, Encoded]


class FusionModel(nn.Module):
    """Any subset of modalities → one logit per outcome.

    base_logit  float32 [R], of the event rate among training patients: what is said when nothing is known
    trained     bool [M, R]: of outcomes that too few patients with the modality had, it says nothing;
                a modality trained for no outcome is never used
    heard       bool [2^M, M, R]: which modalities of a pattern are let in; all, except where out-of-fold
                patients showed that the outcome is told better without (`fusion.second_stage.guard`)
    """

    base_logit: Tensor
    trained: Tensor
    heard: Tensor
    bits: Tensor

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.modalities: tuple[Modality, ...] = config.modalities
        outcomes = len(config.outcomes)
        self.encoders = nn.ModuleDict({str(m.value): build_encoder(m, config) for m in self.modalities})
        self.fusion = build_fusion(config.fusion, len(self.modalities), outcomes)
        self.register_buffer("base_logit", torch.zeros(outcomes))
        self.register_buffer("trained", torch.zeros(len(self.modalities), outcomes, dtype=torch.bool))
        everyone = all_subsets(len(self.modalities))[..., None].repeat(1, 1, outcomes)
        self.register_buffer("heard", everyone)
        self.register_buffer("bits", 2 ** torch.arange(len(self.modalities)), persistent=False)

    def encoder(self, modality: Modality) -> Encoder:
        """The encoder of one modality."""
        encoder = self.encoders[modality.value]
        assert isinstance(encoder, Encoder)
        return encoder

    def prepare(self, batch: Batch) -> dict[Modality, Tokens]:
        """The fixed part of every encoder, done once: standardised and projected tokens."""
        return {m: self.encoder(m).prepare(batch.tokens[m]) for m in self.modalities}

    def encode(self, batch: Batch) -> Evidence:
        """Batch → Evidence."""
        prepared = self.prepare(batch)
        encoded = {m: self.encoder(m)(prepared[m]) for m in self.modalities}
        logits = torch.stack([encoded[m].logits for m in self.modalities], dim=1)
        return Evidence(self.spoken(logits), self.usable(batch.present), encoded)

    def spoken(self, logits: Tensor) -> Tensor:
        """Evidence [B, M, R] with zero where a modality was not trained for an outcome."""
        return torch.where(self.trained, logits, torch.zeros(()))

    def usable(self, present: Tensor) -> Tensor:
        """bool [B, M] without the modalities that were never trained."""
        return present & self.trained.any(dim=1)

    def fuse(self, evidence: Tensor, present: Tensor) -> Tensor:
        """Evidence [B, M, R] and mask [B, M] → uncalibrated logits [B, R]; nothing present → base_logit."""
        shift: Tensor = self.fusion(evidence, self.heard[(present * self.bits).sum(1)])
        return self.base_logit + shift

    def fuse_varied(self, evidence: Tensor, place: int, present: NDArray[np.bool_], said: Tensor) -> Tensor:
        """The same of one patient, evidence [M, R], under each mask bool [S, M], with each evidence [U, R] in
        the place of one modality: logits [S, U, R]."""
        heard = self.heard[torch.from_numpy(present @ self.bits.numpy())]
        return self.base_logit + self.fusion.varied(evidence, heard, place, said)

    def forward(self, batch: Batch) -> Tensor:
        """Batch → uncalibrated logits [B, R]."""
        evidence = self.encode(batch)
        return self.fuse(evidence.logits, evidence.present)
