"""The first stage of training: every encoder out of fold, then on all training patients.

Where the image backbone is fine-tuned (`fusion.finetune`), so is it: on each fold's own patients first, so
that no embedding of a patient it was tuned on counts as out of fold; then on all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion import parallel
from fusion.balance import drawn_alike
from fusion.batch import Batch, Tokens
from fusion.choosing import MARGIN, standard_errors
from fusion.config import FusionConfig, Imbalance
from fusion.encoders import Encoder
from fusion.encoders.linear import rescaled
from fusion.encoders.record import RecordEncoder
from fusion.finetune import Tuned
from fusion.fitting import Fit, fit
from fusion.image_tuning import ImageTuning
from fusion.inputs import Modality
from fusion.losses import masked_bce, weighed_bce
from fusion.model import FusionModel
from fusion.telling import Teller
from fusion.weighing import Judge, weigh

LEAST_TUNING = 20  # tuning patients with a modality before early stopping looks at them
LEAST_GAIN = 1e-4  # of the watched loss, below which what was trained is not worth keeping
BATCHES = 32  # minibatches in an epoch of many patients
SHOWN = 1000  # training patients whose loss is told before the first epoch
FOCUS = 2.0  # gamma of the focal loss
CLASS_BALANCE = 0.5  # exponent of the class weights: 0 none, 1 fully balanced


@dataclass(frozen=True, eq=False, slots=True)
class Data:
    """Patients of one split; labels float32 [B, R], NaN = unknown."""

    batch: Batch
    labels: Tensor

    def with_tokens(self, modality: Modality, tokens: Tokens) -> Data:
        """The same patients with other tokens of one modality."""
        return Data(replace(self.batch, tokens={**self.batch.tokens, modality: tokens}), self.labels)


@dataclass(frozen=True, slots=True)
class Saver:
    """Where each fit of a training says how far it is; nothing is saved without a folder.

    course  digest of all that decides this training (see `fusion.train`)
    """

    folder: Path | None = None
    course: str = ""

    def place(self, *words: str) -> Path | None:
        """The file of one fit."""
        return None if self.folder is None else self.folder / f"{'-'.join(words)}.safetensors"


@dataclass(eq=False, slots=True)
class Shared:
    """What all fits of one encoder have in common: evidence out of fold must be of the kind that is said at
    the bedside, or the fusion weighs another voice than the one it hears.

    rows, known  the fewest patients of any fold (see `Encoder.expect`)
    penalty      chosen in the first fold
    share        of what the trees say beside the linear part, float32 [R]; None until it is learned
    is_silent    what is trained beyond `fit_first` is not: without it, patients out of fold were told as well
    """

    rows: int
    known: Tensor
    penalty: Tensor | None = None
    share: Tensor | None = None
    is_silent: bool = False


@dataclass(eq=False, slots=True)
class FirstStage:
    """What the encoders are trained on, and what they said of patients they had not seen.

    tuning  the pictures, where the image backbone is fine-tuned
    groups  int [B]: of one patient group the same number
    folds   int [B]; of -1 is who is learned from in every fold and judged in none: synthetic pictures
    tuned   the backbone and head that were tuned on all training patients; None until then, and without
    """

    model: FusionModel
    data: Data
    held: Data
    folds: NDArray[np.int64]
    groups: NDArray[np.int64]
    config: FusionConfig
    teller: Teller
    saver: Saver
    tuning: ImageTuning | None = None
    tuned: Tuned | None = None
    shared: dict[Modality, Shared] = field(default_factory=dict)

    def run(self) -> Tensor:
        """Train every encoder of the model; evidence out of fold, float32 [B, M, R]."""
        count, outcomes = len(self.data.labels), len(self.config.outcomes)
        out_of_fold = torch.zeros(count, len(self.config.modalities), outcomes)
        for place, modality in enumerate(self.config.modalities):
            if not bool(self.model.trained[place].any()):
                self.teller.done((int(self.folds.max()) + 2) * self.steps(modality))
                continue
            self.shared[modality] = self._fewest(place)
            first = torch.zeros(count, outcomes)
            judges: list[Judge] = []
            for fold in range(int(self.folds.max()) + 1):
                name = f"{modality.value}, fold {fold + 1} of {int(self.folds.max()) + 1}"
                seen = torch.from_numpy(self.folds != fold)
                scratch = FusionModel(self.config)
                scratch.base_logit.copy_(self.model.base_logit)
                said, simply, _ = self._train(scratch, modality, seen, name, f"fold{fold}")
                out_of_fold[~seen, place], first[~seen] = said[~seen], simply[~seen]
                asked = torch.nonzero(~seen & self.data.batch.present[:, place]).squeeze(1)
                if isinstance(encoder := scratch.encoder(modality), RecordEncoder) and len(asked):
                    judges.append((encoder, asked))
            if judges and bool(judges[0][0].trees.is_fitted.any()):
                tokens, labels = self.data.batch.tokens[modality], self.data.labels
                self.shared[modality].share = weigh(
                    judges, tokens, labels, self.model.base_logit, first, out_of_fold[:, place]
                )
            if not parallel.decide(self._is_better(place, first, out_of_fold[:, place])):
                self.shared[modality].is_silent, out_of_fold[:, place] = True, first
            everyone = torch.ones(count, dtype=torch.bool)
            _, _, tuned = self._train(
                self.model, modality, everyone, f"{modality.value}, all patients", "all"
            )
            self.tuned = tuned or self.tuned
        return out_of_fold

    def _is_better(self, place: int, first: Tensor, said: Tensor) -> bool:
        """Whether what was trained beyond `fit_first` tells patients out of fold clearly better: after one
        slope and offset of each, by more than a standard error of the paired difference.

        first, said  evidence out of fold float32 [B, R], without it and with it
        """
        here = self.data.batch.present[:, place].numpy() & (self.folds >= 0)
        losses = np.zeros((2, len(here)))
        for r in torch.nonzero(self.model.trained[place]).squeeze(1).tolist():
            labels = self.data.labels[:, r].double().numpy()
            rows = here & ~np.isnan(labels)
            for way, logits in enumerate((first, said)):
                shifts = logits[:, r].double().numpy()[rows]
                losses[way, rows] += rescaled(shifts, labels[rows], float(self.model.base_logit[r]))[0]
        margin = self.config.extra.get("voice_margin", MARGIN)
        return standard_errors(losses[0, here], losses[1, here], self.groups[here]) > margin

    def _fewest(self, place: int) -> Shared:
        """How many patients the smallest fold leaves to the encoder at that place."""
        here, labels = self.data.batch.present[:, place], self.data.labels
        rows, known = len(labels), torch.full((labels.shape[1], 2), len(labels))
        for fold in range(int(self.folds.max()) + 1):
            seen = here & torch.from_numpy(self.folds != fold)
            events, others = ((labels[seen] == kind).sum(0) for kind in (1, 0))
            rows = min(rows, int(seen.sum()))
            known = torch.minimum(known, torch.stack([events + others, torch.minimum(events, others)], 1))
        return Shared(rows, known)

    def steps(self, modality: Modality) -> int:
        """How many fits that modality takes a fold."""
        return 1 + (self.tuning is not None and modality == Modality.IMAGE)

    def _train(
        self, model: FusionModel, modality: Modality, seen: Tensor, name: str, mark: str
    ) -> tuple[Tensor, Tensor, Tuned | None]:
        """One encoder on the `seen` patients: its evidence about the others, float32 [B, R], zero for those
        seen, and what it was before anything was trained beyond `fit_first`; what was tuned for it."""
        data, held, tuned = self.data, self.held, None
        if self.tuning is not None and modality == Modality.IMAGE:
            self.teller.step(f"{name}: fine-tuning")
            tuned = self.tuning.tuned(
                seen,
                model.base_logit,
                class_weights(model, self.config),
                self.teller.epoch,
                checkpoint=self.saver.place(modality.value, mark, "backbone"),
                belongs_to=self.saver.course,
            )
            self.teller.done()
            self.teller.step(f"{name}: embedding")
            tokens, watched = self.tuning.embedded(
                tuned, data.batch.tokens[modality], held.batch.tokens[modality]
            )
            data, held = data.with_tokens(modality, tokens), held.with_tokens(modality, watched)
            model.encoder(modality).get_buffer("head").copy_(tuned.head)
        self.teller.step(name)
        path = self.saver.place(modality.value, mark)
        said, first = _fit_encoder(
            model,
            modality,
            data,
            seen,
            held,
            self.config,
            self.teller,
            path,
            self.saver.course,
            self.folds,
            self.groups,
            self.shared[modality],
        )
        self.teller.done()
        return said, first, tuned


def class_weights(model: FusionModel, config: FusionConfig) -> Tensor:
    """Log of the class weights' ratio of each outcome, float32 [R] (see `masked_bce`).

    Fine-tuning draws no rows: under balanced sampling it weighs classes fully, under focal loss not at all.
    """
    exponent = {
        Imbalance.NONE: 0.0,
        Imbalance.FOCAL: 0.0,
        Imbalance.CLASS_WEIGHTS: config.extra.get("class_balance", CLASS_BALANCE),
        Imbalance.BALANCED_SAMPLING: 1.0,
    }[config.imbalance]
    return -exponent * model.base_logit


def _fit_encoder(
    model: FusionModel,
    modality: Modality,
    data: Data,
    seen: Tensor,
    held: Data,
    config: FusionConfig,
    teller: Teller,
    checkpoint: Path | None,
    course: str,
    folds: NDArray[np.int64],
    groups: NDArray[np.int64],
    shared: Shared,
) -> tuple[Tensor, Tensor]:
    """Fit one encoder on the `seen` patients who have its modality; its evidence about the others, [B, R],
    and what that was before the rest was trained.

    First what has an optimum (`Encoder.fit_first`), then the rest by `fit`, stopped early by patients it was
    not trained on: the tuning split, or a fold set aside. It is kept only where it helps them.
    """
    place = config.modalities.index(modality)
    encoder = model.encoder(modality)
    rows = torch.nonzero(seen & data.batch.present[:, place]).squeeze(1)
    encoder.fit_statistics(data.batch.tokens[modality].rows(rows))
    everyone = encoder.prepare(data.batch.tokens[modality])
    tokens, labels = everyone.rows(rows), data.labels[rows]
    encoder.expect(shared.rows, shared.known)
    encoder.fit_first(
        tokens,
        labels,
        model.base_logit,
        folds[rows.numpy()],
        seed=config.seed,
        penalty=shared.penalty,
        groups=groups[rows.numpy()],
        margin=config.extra.get("voice_margin", MARGIN),
    )
    if shared.share is not None:
        encoder.get_buffer("trees.share").copy_(shared.share)
    parallel.align(encoder)
    if shared.penalty is None:
        shared.penalty = encoder.trunk.penalty.clone()
    watch = torch.nonzero(held.batch.present[:, place]).squeeze(1)
    watched = encoder.prepare(held.batch.tokens[modality].rows(watch)), held.labels[watch]
    encoder.eval()
    some = torch.linspace(0, len(rows) - 1, min(len(rows), SHOWN)).long()
    with torch.no_grad():
        losses = [
            float(masked_bce(model.base_logit + encoder(part).logits, known)) if len(known) else None
            for part, known in ((tokens.rows(some), labels[some]), watched)
        ]
    teller.begin(losses[0] or 0.0, losses[1])
    others = torch.nonzero(~seen).squeeze(1)
    first = _said(encoder, everyone, others, len(seen))
    if encoder.is_trained and not (shared.is_silent and bool(seen.all())):
        kept = torch.ones(len(rows), dtype=torch.bool)
        if len(watch) < LEAST_TUNING:
            places = folds[rows.numpy()]
            aside = torch.from_numpy(places == min(places[places >= 0], default=0))
            watched, kept = (tokens.rows(torch.nonzero(aside).squeeze(1)), labels[aside]), ~aside
        fitted = tokens.rows(torch.nonzero(kept).squeeze(1)), labels[kept]
        _train_rest(model, modality, fitted, watched, config, teller, checkpoint, course)
    return _said(encoder, everyone, others, len(seen)), first


def _said(encoder: Encoder, prepared: Tokens, rows: Tensor, count: int) -> Tensor:
    """Evidence about those rows, float32 [count, R], zero elsewhere."""
    encoder.eval()
    said = torch.zeros(count, encoder.trunk.linear.out_features)
    if len(rows):
        with torch.no_grad():
            said[rows] = encoder(prepared.rows(rows)).logits
    return said


def _train_rest(
    model: FusionModel,
    modality: Modality,
    fitted: tuple[Tokens, Tensor],
    watched: tuple[Tokens, Tensor],
    config: FusionConfig,
    teller: Teller,
    checkpoint: Path | None,
    course: str,
) -> None:
    """Train what `fit_first` left, on (prepared tokens, labels); undone where the watched are not helped."""
    encoder = model.encoder(modality)
    tokens, labels = fitted
    log_odds = class_weights(model, config)
    generator = torch.Generator().manual_seed(config.seed)
    weight = config.weight_decay * 100 / max(1, len(labels))
    penalised = [p for name, p in encoder.named_parameters() if p.requires_grad and "bias" not in name]

    gamma = FOCUS if config.imbalance == Imbalance.FOCAL else 0.0
    has_both = bool((labels == 0).any() and (labels == 1).any())
    is_sampled = config.imbalance == Imbalance.BALANCED_SAMPLING and has_both
    if is_sampled:
        draw, log_odds = drawn_alike(labels, generator)

    def loss(index: Tensor) -> tuple[Tensor, Tensor]:
        if is_sampled:
            index = parallel.drawn(len(index), draw)
        part = tokens.rows(index)
        if modality != Modality.CINE:
            part = _thinned(part, config.modality_dropout, generator)
        said = model.base_logit + encoder(part).logits
        told, count = weighed_bce(said, labels[index], log_odds=log_odds, is_sampled=is_sampled, gamma=gamma)
        return told + weight * _squares(penalised), count

    def watched_loss() -> float:
        said = model.base_logit + encoder(watched[0], fixed).logits
        return float(masked_bce(said, watched[1], log_odds=log_odds))

    encoder.eval()
    with torch.no_grad():
        fixed = encoder.fixed_voice(watched[0])
        before = watched_loss()
    kept = copy.deepcopy(encoder.state_dict())
    encoder.end_training(helped=True)
    how = Fit(
        config.epochs,
        config.patience,
        max(config.batch_size, len(labels) // BATCHES),
        config.learning_rate,
        config.seed,
        accumulate=config.accumulate,
        save_every=20,
    )
    done = fit(
        encoder,
        loss,
        watched_loss,
        rows=len(labels),
        how=how,
        tell=teller.epoch,
        generators=(generator,),
        checkpoint=checkpoint,
        belongs_to=course,
    )
    if parallel.decide(done.best_loss is not None and done.best_loss <= before - LEAST_GAIN):
        return
    encoder.load_state_dict(kept)
    encoder.end_training(helped=False)


def _thinned(tokens: Tokens, rate: float, generator: torch.Generator) -> Tokens:
    """Hide up to `rate` of each row's tokens, never all: so that a model meets records with gaps."""
    if tokens.known.shape[1] < 2 or rate <= 0:
        return tokens
    limit = parallel.drawn(len(tokens), lambda rows: torch.rand(rows, 1, generator=generator)) * rate
    length = tokens.known.shape[1]
    chance = parallel.drawn(len(tokens), lambda rows: torch.rand(rows, length, generator=generator))
    kept = tokens.known & (chance >= limit)
    return tokens.hiding(torch.where(kept.any(dim=1, keepdim=True), kept, tokens.known))


def _squares(parameters: Sequence[Tensor]) -> Tensor:
    return torch.stack([p.square().sum() for p in parameters]).sum()
