"""Training: encoders out of fold, fusion on what they said, encoders again on everyone, then calibration.

1. `folds` groups of patients; each encoder is trained on the others and speaks about the one it has not seen.
2. The fusion is fitted on that out-of-fold evidence, for every sub-pattern of each patient's modalities,
   weighted as modality dropout would meet them.
3. Encoders are refitted on all training patients.
4. Calibration and interval are fitted on the tuning split; where that is small, on out-of-fold training
   evidence as well (said in the bundle's metadata).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.batch import Batch, Tokens, collate
from fusion.bundle import Bundle, describe
from fusion.config import FusionConfig
from fusion.embedding import Embedder
from fusion.errors import BadInput, Cancelled, NotEnoughData
from fusion.examples import Example, assign_folds, labels_of
from fusion.fitting import Fit, fit
from fusion.inputs import Modality
from fusion.losses import masked_bce
from fusion.model import FusionModel
from fusion.numerics import without_denormals
from fusion.scope import fit_scope
from fusion.second_stage import calibrate_bundle, fit_fusion
from fusion.shift import summarise_inputs

__all__ = ["Example", "Progress", "Tell", "assign_folds", "labels_of", "settled", "train"]

LEAST_EVENTS = 5  # events, and others, an outcome needs in training
LEAST_PER_MODALITY = 3  # events, and others, among patients who have the modality
LEAST_TUNING = 20  # tuning patients with a modality before early stopping looks at them
CLASS_BALANCE = 0.5  # exponent of the class weights: 0 none, 1 fully balanced


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is: `fraction` in [0, 1] of the whole; losses when an epoch has ended."""

    step: str
    fraction: float
    epoch: int = 0
    train_loss: float | None = None
    tuning_loss: float | None = None


Tell = Callable[[Progress], bool]


def train(
    train: Sequence[Example],
    tuning: Sequence[Example],
    config: FusionConfig,
    *,
    progress: Tell | None = None,
) -> Bundle:
    """Examples → Bundle. The same examples, config and seed give the same bundle on the same machine.

    progress  called at every epoch; answering False stops the run with Cancelled
    Raises NotEnoughData (an outcome with fewer than 5 events or 5 others) and BadInput.
    """
    _check(train, tuning, config)
    with settled(config):
        teller = _Teller(progress, len(config.modalities) * (max(2, config.folds) + 1) + 2)
        teller.step("reading inputs")
        embedder = Embedder(config)
        data = _Data(collate([e.inputs for e in train], config, embedder), labels_of(train, config))
        held = _Data(collate([e.inputs for e in tuning], config, embedder), labels_of(tuning, config))
        teller.done()
        model = FusionModel(config)
        base = np.clip(np.nanmean(data.labels.numpy(), axis=0), 1e-4, 1 - 1e-4)
        model.base_logit.copy_(torch.from_numpy(np.log(base / (1 - base))).float())
        left_out = _mark_trained(model, data, config)
        folds = assign_folds([e.group for e in train], data.labels.numpy(), config.folds, config.seed)
        out_of_fold = torch.zeros(len(train), len(config.modalities), len(config.outcomes))
        for place, modality in enumerate(config.modalities):
            if not bool(model.trained[place].any()):
                teller.done(max(2, config.folds) + 1)
                continue
            for fold in range(int(folds.max()) + 1):
                seen = torch.from_numpy(folds != fold)
                teller.step(f"{modality.value}, fold {fold + 1} of {int(folds.max()) + 1}")
                scratch = FusionModel(config)
                scratch.base_logit.copy_(model.base_logit)
                said = _train_encoder(scratch, modality, data, seen, held, config, teller)
                out_of_fold[~seen, place] = said[~seen]
                teller.done()
            teller.step(f"{modality.value}, all patients")
            _train_encoder(
                model, modality, data, torch.ones(len(train), dtype=torch.bool), held, config, teller
            )
            teller.done()
        model.eval()
        with torch.no_grad():
            tuned = model.encode(held.batch) if len(held.batch) else None
        teller.step("fusion")
        present, out_of_fold = model.usable(data.batch.present), model.spoken(out_of_fold)
        tuning_evidence = None if tuned is None else (tuned.logits, tuned.present, held.labels)
        fit_fusion(model, out_of_fold, present, data.labels, tuning_evidence, config, teller.epoch)
        teller.done()
        teller.step("calibration")
        told = (out_of_fold, present, data.labels)
        bundle = calibrate_bundle(model, config, embedder, told, tuning_evidence)
        bundle.metadata.update(
            describe(bundle, train=train, tuning=tuning, left_out=left_out, base=dict(_named(base, config)))
        )
        bundle.examples = tuple(train)
        bundle.scope = fit_scope([e.inputs for e in train], [e.group for e in train], config, embedder)
        if config.summarise:
            bundle.summary = summarise_inputs([e.inputs for e in train], config, embedder)
        teller.tell(Progress("done", 1.0))
    return bundle


@dataclass(frozen=True, eq=False, slots=True)
class _Data:
    batch: Batch
    labels: Tensor  # float32 [B, R], NaN = unknown


def _train_encoder(
    model: FusionModel,
    modality: Modality,
    data: _Data,
    seen: Tensor,
    held: _Data,
    config: FusionConfig,
    teller: _Teller,
) -> Tensor:
    """Fit one encoder on the `seen` patients who have its modality; its evidence about everyone, [B, R]."""
    place = config.modalities.index(modality)
    encoder = model.encoder(modality)
    rows = torch.nonzero(seen & data.batch.present[:, place]).squeeze(1)
    encoder.fit_statistics(data.batch.tokens[modality].rows(rows))
    everyone = encoder.prepare(data.batch.tokens[modality])
    tokens, labels = everyone.rows(rows), data.labels[rows]
    watch = torch.nonzero(held.batch.present[:, place]).squeeze(1)
    watched = encoder.prepare(held.batch.tokens[modality].rows(watch))
    watched_labels = held.labels[watch]
    balance = config.extra.get("class_balance", CLASS_BALANCE)
    log_odds = -balance * model.base_logit
    generator = torch.Generator().manual_seed(config.seed)
    weight = config.weight_decay * 100 / max(1, len(rows))
    penalised = [p for name, p in encoder.named_parameters() if "bias" not in name]

    def loss(index: Tensor) -> Tensor:
        part = tokens.rows(index)
        if modality != Modality.CINE:
            part = _thinned(part, config.modality_dropout, generator)
        said = model.base_logit + encoder(part).logits
        return masked_bce(said, labels[index], log_odds=log_odds) + weight * _squares(penalised)

    def tuning_loss() -> float | None:
        if len(watch) < LEAST_TUNING:
            return None
        said = model.base_logit + encoder(watched).logits
        return float(masked_bce(said, watched_labels, log_odds=log_odds))

    fit(
        encoder,
        loss,
        tuning_loss,
        rows=len(rows),
        how=Fit(config.epochs, config.patience, config.batch_size, config.learning_rate, config.seed),
        tell=teller.epoch,
    )
    encoder.eval()
    with torch.no_grad():
        said: Tensor = encoder(everyone).logits
    return said


def _check(train: Sequence[Example], tuning: Sequence[Example], config: FusionConfig) -> None:
    names = [spec.name for spec in config.outcomes]
    if not names or len(set(names)) != len(names):
        raise BadInput("a model needs at least one outcome, each named once")
    if not config.modalities or len(set(config.modalities)) != len(config.modalities):
        raise BadInput("a model needs at least one modality, each named once")
    if config.finetune != "none":
        raise BadInput(
            f"finetune={config.finetune!r} is not offered: backbones stay frozen so that stored embeddings "
            "serve; use 'none'"
        )
    if shared := {e.group for e in train} & {e.group for e in tuning}:
        raise BadInput(f"{len(shared)} patient groups are in both the training and the tuning split")
    labels = labels_of(train, config)
    for r, name in enumerate(names):
        events, others = int((labels[:, r] == 1).sum()), int((labels[:, r] == 0).sum())
        if min(events, others) < LEAST_EVENTS:
            raise NotEnoughData(
                f"{name}: {events} with the event and {others} without among {len(train)} training examples; "
                f"at least {LEAST_EVENTS} of each are needed"
            )


def _mark_trained(model: FusionModel, data: _Data, config: FusionConfig) -> dict[str, str]:
    """Set `model.trained`; "modality, outcome" → why the one says nothing about the other."""
    left_out: dict[str, str] = {}
    for place, modality in enumerate(config.modalities):
        rows = data.labels[data.batch.present[:, place]]
        for r, spec in enumerate(config.outcomes):
            events, others = int((rows[:, r] == 1).sum()), int((rows[:, r] == 0).sum())
            enough = min(events, others) >= LEAST_PER_MODALITY
            model.trained[place, r] = enough
            if not enough:
                left_out[f"{modality.value}, {spec.name}"] = (
                    f"{events} with the event and {others} without among training patients who have it; "
                    f"{LEAST_PER_MODALITY} of each are needed"
                )
    if not bool(model.trained.any()):
        raise NotEnoughData(
            "no modality is held by enough training patients: " + "; ".join(left_out.values())
        )
    return left_out


@contextmanager
def settled(config: FusionConfig) -> Iterator[None]:
    """Torch threads and seed of the config for a while; the caller's are put back."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), without_denormals():
        torch.manual_seed(config.seed)
        torch.set_num_threads(max(1, config.threads))
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class _Teller:
    """Turns steps and epochs into Progress; raises Cancelled when the caller has had enough."""

    def __init__(self, progress: Tell | None, steps: int) -> None:
        self._progress, self._steps, self._done, self._name = progress, steps, 0, ""

    def step(self, name: str) -> None:
        self._name = name
        self.tell(Progress(name, self._done / self._steps))

    def epoch(self, epoch: int, of: int, train_loss: float, tuning_loss: float | None) -> None:
        fraction = (self._done + (epoch + 1) / of) / self._steps
        self.tell(Progress(self._name, min(1.0, fraction), epoch + 1, train_loss, tuning_loss))

    def done(self, steps: int = 1) -> None:
        self._done += steps

    def tell(self, at: Progress) -> None:
        if self._progress is not None and self._progress(at) is False:
            raise Cancelled(f"stopped at: {at.step}")


def _thinned(tokens: Tokens, rate: float, generator: torch.Generator) -> Tokens:
    """Hide up to `rate` of each row's tokens, never all: so that a model meets records with gaps."""
    if tokens.known.shape[1] < 2 or rate <= 0:
        return tokens
    limit = torch.rand(len(tokens), 1, generator=generator) * rate
    kept = tokens.known & (torch.rand(tokens.known.shape, generator=generator) >= limit)
    return tokens.hiding(torch.where(kept.any(dim=1, keepdim=True), kept, tokens.known))


def _squares(parameters: Sequence[Tensor]) -> Tensor:
    return torch.stack([p.square().sum() for p in parameters]).sum()


def _named(values: NDArray[np.float64], config: FusionConfig) -> Iterator[tuple[str, float]]:
    return ((spec.name, float(v)) for spec, v in zip(config.outcomes, values, strict=True))
