"""Frozen, head alone, gradual unfreezing: what fine-tuning the image encoder does on a small set."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import fusion
from benchmarks.study.comparing import auroc, brier, difference, draw, interval, scored
from benchmarks.study.folds import Floats, labels_of
from fusion import Example, Frames, FusionConfig, Modality, OutcomeSpec, PixelInput
from fusion.batch import collate
from fusion.embedding import Embedder
from fusion.predict import risks as predict_risks
from fusion.research import Collection, read_collection
from fusion.train import assign_folds

TASKS = {"cxr_covid": "severe_outcome", "skin_ham10000": "malignant"}
ARMS = {"none": "frozen", "head": "head alone", "gradual": "gradual unfreezing"}
SIZE, EPOCHS, FOLDS, INNER = 96, 5, 5, 2
TUNING = 6  # a sixth of what an arm learns from says when to stop
MOST = 600  # rows, taken at random by group


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """Cross-validation grouped by patient or lesion, the same folds for all; heavy: some minutes an arm."""
    collection = read_collection(folder)
    name = TASKS[collection.name]
    task = collection.tasks[name]
    examples = _some(task.examples, 120 if quick else MOST, seed)
    epochs = 2 if quick else EPOCHS
    config = _config(collection, name, task.label, epochs)
    examples = _shrunk(examples, config)
    labels = labels_of(examples, name)
    weights = draw([e.group for e in examples], seed)
    said: dict[str, dict[str, list[Floats]]] = {"image": {}, "image and record": {}}
    seconds: dict[str, float] = {}
    for repeat in range(1 if quick else min(repeats, 1)):
        for arm in ARMS:
            started = time.perf_counter()
            alone, fused = _out_of_fold(examples, labels, replace(config, finetune=arm), seed + repeat, arm)
            seconds[arm] = time.perf_counter() - started
            said["image"].setdefault(arm, []).append(alone)
            said["image and record"].setdefault(arm, []).append(fused)
    lines = _head(collection, examples, labels, name, task.label, epochs)
    for inputs, arms in said.items():
        frozen = scored(auroc, arms["none"], labels, weights)
        for arm, risks in arms.items():
            found = scored(auroc, risks, labels, weights)
            over = "" if arm == "none" else difference(found, frozen).signed
            error = interval(scored(brier, risks, labels, weights))
            lines.append(
                f"| {inputs} | {ARMS[arm]} | {interval(found)} | {error} | {over} | {seconds[arm]:.0f} |"
            )
    return "\n".join([*lines, "", _read(said, labels, weights), ""])


def _config(collection: Collection, name: str, label: str, epochs: int) -> FusionConfig:
    settings = {
        **collection.settings,
        "modalities": (Modality.TABULAR, Modality.IMAGE),
        "image_size": SIZE,
        "folds": INNER,
        "finetune_epochs": epochs,
        "batch_size": 16,
    }
    return FusionConfig(outcomes=(OutcomeSpec(name, label, 720.0),), **settings)


def _out_of_fold(
    examples: Sequence[Example], labels: Floats, config: FusionConfig, seed: int, arm: str
) -> tuple[Floats, Floats]:
    """Risks of rows whose group was not learned from: by the image alone, and by image and record."""
    groups = [e.group for e in examples]
    fold_of = assign_folds(groups, labels[:, None].astype(np.float32), FOLDS, seed=seed)
    alone, fused = np.full(len(examples), np.nan), np.full(len(examples), np.nan)
    for fold in range(FOLDS):
        rest = np.flatnonzero(fold_of != fold)
        held = np.flatnonzero(fold_of == fold)
        sixth = assign_folds(
            [groups[i] for i in rest], labels[rest, None].astype(np.float32), TUNING, seed=seed
        )
        train = [examples[i] for i in rest[sixth != 0]]
        tuning = [examples[i] for i in rest[sixth == 0]]
        bundle = fusion.train(train, tuning, replace(config, seed=seed))
        batch = collate([examples[int(i)].inputs for i in held], config, bundle.embedder)
        fused[held] = predict_risks(bundle, batch)[:, 0]
        alone[held] = predict_risks(bundle, batch, only=(Modality.IMAGE,))[:, 0]
        print(f"finetune: {ARMS[arm]}, fold {fold + 1} of {FOLDS}", file=sys.stderr, flush=True)
    return alone, fused


def _shrunk(examples: Sequence[Example], config: FusionConfig) -> list[Example]:
    """Pictures read once, at the size the encoder takes: the very ones it would make of them each time."""
    backbone = Embedder(config).image_backbone

    def small(pixels: PixelInput) -> PixelInput:
        values = backbone.resize(pixels.read().values[:1], config.image_size).numpy()
        return replace(
            pixels, read=lambda: Frames(values, np.zeros(1, np.float32)), times_ms=np.zeros(1, np.float32)
        )

    return [
        replace(
            e, inputs=replace(e.inputs, images=tuple(small(p) for p in e.inputs.images[: config.max_images]))
        )
        for e in examples
    ]


def _some(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """At most so many rows, whole groups, drawn without looking at outcomes."""
    names = sorted({e.group for e in examples})
    order = np.random.default_rng(seed).permutation(len(names))
    kept: list[Example] = []
    by_group: dict[str, list[Example]] = {}
    for example in examples:
        by_group.setdefault(example.group, []).append(example)
    for place in order.tolist():
        if len(kept) + len(by_group[names[place]]) > most:
            break
        kept += by_group[names[place]]
    return kept


def _head(
    collection: Collection, examples: Sequence[Example], labels: Floats, name: str, label: str, epochs: int
) -> list[str]:
    groups = len({e.group for e in examples})
    return [
        f"### Fine-tuning the image encoder: {collection.name}, {name}",
        "",
        f"`python -m benchmarks.study {collection.name} DIR --part finetune`",
        "",
        f"{label}: {len(examples)} rows, {groups} groups, {int(np.nansum(labels))} events. "
        f"EfficientNet-Lite0 with ImageNet weights at {SIZE} x {SIZE} pixels. One {FOLDS}-fold "
        f"cross-validation, grouped; within each fold the fusion is trained on {INNER}-fold evidence and the "
        f"backbone tuned anew for each. A reduced budget: small pictures, {epochs} epochs of tuning at most "
        "(so that the last stages alone are thawed), no augmentation, one repeat, one thread of a busy "
        "machine. Intervals: bootstrap over groups.",
        "",
        "| inputs | image encoder | AUROC | Brier | AUROC over frozen | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]


def _read(said: dict[str, dict[str, list[Floats]]], labels: Floats, weights: Floats) -> str:
    """What the table shows, from its own numbers."""
    words = []
    for inputs, arms in said.items():
        frozen = scored(auroc, arms["none"], labels, weights)
        for arm in ("head", "gradual"):
            found = difference(scored(auroc, arms[arm], labels, weights), frozen)
            if found.low > 0:
                verdict = "is better than the frozen encoder"
            elif found.high < 0:
                verdict = "is worse than the frozen encoder"
            else:
                verdict = "cannot be told from the frozen encoder"
            words.append(f"{inputs}: {ARMS[arm]} {verdict} ({found.signed}).")
    return " ".join(words) + " One repeat of few patients: a direction, not a proof."
