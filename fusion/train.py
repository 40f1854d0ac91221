"""Training: encoders out of fold, fusion on what they said, encoders again on everyone, then calibration.

1. `folds` groups of patients; each encoder is trained on the others and speaks about the one it has not seen.
2. The fusion is fitted on that out-of-fold evidence (and, where it is convex, on the tuning patients'), for
   every sub-pattern of each patient's modalities, weighted as modality dropout would meet them.
3. Encoders are refitted on all training patients. (Where the image backbone is fine-tuned, so is it: on
   each fold's own patients, then on all.)
4. Calibration and interval are fitted on the tuning split; where that is small, on out-of-fold training
   evidence as well (said in the bundle's metadata).

Synthetic pictures teach encoders and nothing else: base rate, fusion, calibration, intervals and scope are of
the real training patients.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fusion import parallel
from fusion.batch import collate
from fusion.bundle import Bundle, describe
from fusion.config import FusionConfig, Imbalance
from fusion.config_check import check_config
from fusion.config_json import config_to_json
from fusion.embedding import Embedder
from fusion.errors import BadInput, NotEnoughData
from fusion.examples import (
    Example,
    assign_folds,
    check_real,
    is_synthetic,
    labels_of,
    number_groups,
    pixel_keys,
)
from fusion.finetune import HOWS
from fusion.first_stage import Data, FirstStage, Saver
from fusion.image_tuning import ImageTuning, Split
from fusion.inputs import Modality
from fusion.model import FusionModel
from fusion.numerics import computing
from fusion.privacy import train_private
from fusion.scope_fitting import fit_scope
from fusion.second_stage import calibrate_bundle, fit_fusion
from fusion.shift import summarise_inputs
from fusion.telling import Progress, Tell, Teller

__all__ = ["Example", "Progress", "Tell", "assign_folds", "labels_of", "settled", "train"]

LEAST_EVENTS = 5  # events, and others, an outcome needs in training
MANY, FOLDS_OF_MANY = 10_000, 3  # patients from which on two thirds of them teach an encoder enough
LEAST_PER_MODALITY = 3  # events, and others, among patients who have the modality


def train(
    train: Sequence[Example],
    tuning: Sequence[Example],
    config: FusionConfig,
    *,
    progress: Tell | None = None,
    checkpoint: Path | None = None,
) -> Bundle:
    """Examples → Bundle. The same examples, config and seed give the same bundle on the same machine.

    progress    called at every epoch; answering False stops the run with Cancelled
    checkpoint  folder where every encoder says how far it is: a training that was killed goes on from there
                and ends as it would have; files of another training are not used. The caller removes it
    Started by `torchrun`, the processes share every minibatch and each returns the bundle: wrap the whole in
    `fusion.parallel.joined()` to know whose it is to save.
    Raises NotEnoughData (an outcome with fewer than 5 events or 5 others) and BadInput.
    """
    _check(train, tuning, config)
    tunes = config.finetune != "none" and Modality.IMAGE in config.modalities
    with parallel.joined(), settled(config):
        count = folds_for(config, len(train))
        teller = Teller(progress, (len(config.modalities) + tunes) * (count + 1) + 2)
        if config.dp_noise > 0:
            return train_private(train, tuning, config, teller)
        saver = Saver(checkpoint, "" if checkpoint is None else _course(train, tuning, config))
        teller.step("reading inputs")
        embedder = Embedder(config)
        data = Data(collate([e.inputs for e in train], config, embedder), labels_of(train, config))
        held = Data(collate([e.inputs for e in tuning], config, embedder), labels_of(tuning, config))
        teller.done()
        model = FusionModel(config)
        real = torch.tensor([not is_synthetic(e) for e in train])
        patients = [e for e in train if not is_synthetic(e)]
        labels = data.labels[real].numpy()
        base = np.clip(np.nanmean(labels, axis=0), 1e-4, 1 - 1e-4)
        model.base_logit.copy_(torch.from_numpy(np.log(base / (1 - base))).float())
        left_out = _mark_trained(model, data, config)
        folds = np.full(len(train), -1)
        folds[real.numpy()] = assign_folds([e.group for e in patients], labels, count, config.seed)
        groups = number_groups(train)
        stage = FirstStage(model, data, held, folds, groups, config, teller, saver)
        if tunes:
            stage.tuning = ImageTuning(
                Split([e.inputs for e in train], data.labels),
                Split([e.inputs for e in tuning], held.labels),
                config,
                embedder,
            )
        out_of_fold = stage.run()
        if stage.tuned is not None and stage.tuned.backbone.is_tuned:
            embedder = Embedder(config, tuned=stage.tuned.backbone)
            held = Data(collate([e.inputs for e in tuning], config, embedder), held.labels)
        model.eval()
        with torch.no_grad():
            tuned = model.encode(held.batch) if len(held.batch) else None
        teller.step("fusion")
        present = model.usable(data.batch.present)[real]
        told = (model.spoken(out_of_fold)[real], present, data.labels[real])
        tuning_evidence = None if tuned is None else (tuned.logits, tuned.present, held.labels)
        fit_fusion(model, *told, tuning_evidence, config, teller.epoch, groups=groups[real.numpy()])
        teller.done()
        teller.step("calibration")
        subgroups = [e.attributes for e in patients], [e.attributes for e in tuning]
        bundle = calibrate_bundle(
            model, config, embedder, told, tuning_evidence, subgroups=subgroups, groups=groups[real.numpy()]
        )
        bundle.metadata.update(
            describe(bundle, train=train, tuning=tuning, left_out=left_out, base=dict(_named(base, config)))
        )
        bundle.examples = tuple(train)
        known = [e.inputs for e in patients]
        bundle.scope = fit_scope(known, [e.group for e in patients], config, embedder)
        if config.summarise:
            bundle.summary = summarise_inputs(known, config, embedder)
        teller.tell(Progress("done", 1.0))
    return bundle


def folds_for(config: FusionConfig, patients: int) -> int:
    """How many groups of patients the encoders are held out on: `config.folds`, fewer where that is slow."""
    return max(2, min(config.folds, FOLDS_OF_MANY) if patients >= MANY else config.folds)


def _check(train: Sequence[Example], tuning: Sequence[Example], config: FusionConfig) -> None:
    check_config(config)
    names = [spec.name for spec in config.outcomes]
    if config.finetune not in HOWS:
        raise BadInput(f"finetune must be one of {', '.join(HOWS)}, not {config.finetune!r}")
    if shared := {e.group for e in train} & {e.group for e in tuning}:
        raise BadInput(f"{len(shared)} patient groups are in both the training and the tuning split")
    check_real((key for e in tuning for key in pixel_keys(e)), "tuning")
    if config.imbalance == Imbalance.BALANCED_SAMPLING and len(names) > 1:
        raise BadInput(
            f"{config.imbalance} draws rows by one outcome, and the model has {len(names)} "
            f"({', '.join(names)}); use {Imbalance.CLASS_WEIGHTS.value}, which weighs each by itself"
        )
    labels = labels_of([e for e in train if not is_synthetic(e)], config)
    for r, name in enumerate(names):
        events, others = int((labels[:, r] == 1).sum()), int((labels[:, r] == 0).sum())
        if min(events, others) < LEAST_EVENTS:
            raise NotEnoughData(
                f"{name}: {events} with the event and {others} without among {len(labels)} training "
                f"examples; at least {LEAST_EVENTS} of each are needed"
            )


def _mark_trained(model: FusionModel, data: Data, config: FusionConfig) -> dict[str, str]:
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
    with torch.random.fork_rng(devices=[]), computing(config.threads):
        torch.manual_seed(config.seed)
        yield


def _course(train: Sequence[Example], tuning: Sequence[Example], config: FusionConfig) -> str:
    """Digest of all that decides a training: a checkpoint of another is not used."""
    found = hashlib.sha256(json.dumps(config_to_json(config), sort_keys=True, default=str).encode())
    for split, examples in (("train", train), ("tuning", tuning)):
        for e in examples:
            said = [
                split,
                e.inputs.digest(),
                sorted(e.labels.items()),
                e.group,
                repr(sorted(e.follow_up.items())),
            ]
            found.update(json.dumps(said).encode())
    return found.hexdigest()


def _named(values: NDArray[np.float64], config: FusionConfig) -> Iterator[tuple[str, float]]:
    return ((spec.name, float(v)) for spec, v in zip(config.outcomes, values, strict=True))
