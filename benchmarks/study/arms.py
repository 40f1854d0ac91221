"""The arms of a study: the simple stack, the concatenated rows, view and place alone, and the fused models.

Every arm learns from the same rows and judges the same rows. From `SMALL` rows on, the fused models give
a sixth of theirs to tuning (early stopping, calibration); all others learn from all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import fusion
from benchmarks.study import patterns, subgroups
from benchmarks.study.folds import Arm, Floats, Rows, Said, labels_of
from fusion import Bundle, Example, FusionConfig, FusionKind, Modality, OutcomeSpec
from fusion.baselines import COMPONENTS, Blocks, blocks, concatenated, counted_once, stacked
from fusion.batch import collate, is_plausible
from fusion.embedding import Embedder
from fusion.examples import is_synthetic, number_groups
from fusion.examples import labels_of as fusion_labels
from fusion.model import FusionModel
from fusion.predict import risks as predict_risks
from fusion.research import Collection, Task
from fusion.second_stage import calibrate_bundle, fit_fusion
from fusion.train import assign_folds, settled

HORIZON = 720.0  # hours; the collections say "at any time in the illness" or "in hospital"
TUNING = 6  # a sixth of what a fused model learns from is its tuning split …
SMALL = 5000  # … from this many rows on
QUICK_EPOCHS = 20
LARGE, LARGE_BATCH, LARGE_COMPONENTS = 2000, 256, 128  # rows of a task; of a minibatch; of an embedding
WIDE = "stack of"  # … so many components as the fused model reads


def config_of(collection: Collection, task: Task, *, quick: bool = False) -> FusionConfig:
    """What the collection asks for, one outcome; large minibatches where there are many rows."""
    settings = dict(collection.settings)
    if len(task.examples) > LARGE:
        settings.setdefault("batch_size", LARGE_BATCH)
        settings.setdefault("image_components", LARGE_COMPONENTS)
    if quick:
        settings["epochs"] = min(QUICK_EPOCHS, int(settings.get("epochs", QUICK_EPOCHS)))
    return FusionConfig(outcomes=(OutcomeSpec(task.name, task.label, HORIZON),), **settings)


def simple(examples: Sequence[Example], config: FusionConfig) -> dict[str, Arm]:
    """The simple stack with each modality alone, and both concatenated rows.

    Where the fused model reads more components of a picture than the stack (`image_components`), also the
    stack with as many, which is no bar but tells how much of a lead that is.
    """
    name = config.outcomes[0].name
    labels = labels_of(examples, name)
    with settled(config):
        batch = collate([e.inputs for e in examples], config, Embedder(config))
    rows = blocks(batch, config.modalities)
    if Modality.SERIES in rows:
        rows[Modality.SERIES] = _series(examples, config)
    once = counted_once(rows, rows, config)

    def part(index: Rows, of: Blocks = once) -> Blocks:
        return {modality: block[index] for modality, block in of.items()}

    def stack(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
        found = stacked(part(seen), labels[seen], part(held), seed=seed)
        if once is not rows:  # the fields alone are all of them
            fields = {Modality.TABULAR: rows[Modality.TABULAR]}
            alone = stacked(part(seen, fields), labels[seen], part(held, fields), seed=seed)["tabular"]
            found = {"tabular": alone} | found | {"tabular": alone}
        return {f"stack: {by}": Said(risks) for by, risks in found.items()}

    def wide(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
        many = config.image_components
        found = stacked(part(seen), labels[seen], part(held), seed=seed, components=many)
        return {f"{WIDE} {many} image components": Said(found["sum of logits"])}

    def one_row(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
        found = concatenated(part(seen), labels[seen], part(held), seed=seed)
        return {f"{by}, one row of all": Said(risks) for by, risks in found.items()}

    found: dict[str, Arm] = {"simple stack": stack}
    if Modality.IMAGE in rows and config.image_components > COMPONENTS:
        found["wide stack"] = wide
    return {**found, "one row of all": one_row}


def circumstances(examples: Sequence[Example], task: str, attributes: Sequence[str]) -> dict[str, Arm]:
    """What could be guessed from how and where it was taken: one arm per attribute that varies."""
    labels = labels_of(examples, task)

    def guess(attribute: str) -> Arm:
        column = np.array([[e.attributes.get(attribute, "unknown")] for e in examples], dtype=object)

        def arm(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
            model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=1000))
            model.fit(column[seen], labels[seen].astype(int))
            return {f"{attribute} only": Said(np.asarray(model.predict_proba(column[held])[:, 1]))}

        return arm

    varying = [a for a in attributes if len({e.attributes.get(a) for e in examples}) > 1]
    return {f"{attribute} only": guess(attribute) for attribute in varying}


def severity(collection: Collection, examples: Sequence[Example], task: str) -> dict[str, Arm]:
    """Scores that clinicians reckon by hand (SAPS-I, SOFA), where the collection holds them."""
    scores = collection.extra.get("severity")
    if scores is None:
        return {}
    labels = labels_of(examples, task)
    rows = np.array([scores[e.inputs.key] for e in examples], float)

    def arm(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
        model = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler(), LogisticRegression())
        model.fit(rows[seen], labels[seen].astype(int))
        return {"severity scores": Said(np.asarray(model.predict_proba(rows[held])[:, 1]))}

    return {"severity scores": arm}


def fused(
    examples: Sequence[Example], config: FusionConfig, name: str, *, alone: bool, kinds_at: int | None = None
) -> Arm:
    """`fusion.train` whole.

    alone     also the same model with modalities hidden, for every pattern of those that are left
    kinds_at  seed of the repeat in which the other ways of fusing are asked too, on the same encoders and the
              same out-of-fold evidence
    """
    with settled(config):
        batch = collate([e.inputs for e in examples], config, Embedder(config))
    outcome = config.outcomes[0].name

    def arm(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
        settings = replace(config, seed=seed)
        train, tuning = split([examples[i] for i in seen], settings)
        bundle = fusion.train(train, tuning, settings)
        asked = batch.rows(torch.from_numpy(held))
        report = fusion.evaluate(bundle, [examples[i] for i in held], comparison=False).to_json()
        coverage = report["outcomes"][outcome]["coverage"]
        inside = round((coverage["observed"] or 0.0) * coverage["groups"])
        risks = predict_risks(bundle, asked)[:, 0]
        by = subgroups.coverage(bundle, asked, risks, [examples[i] for i in held])
        found = {name: Said(risks, (inside, coverage["groups"]), by)}
        if alone and len(config.modalities) > 1:
            for left in patterns.parts_of(config.modalities):
                found[patterns.called(name, left)] = Said(predict_risks(bundle, asked, only=left)[:, 0])
        if seed == kinds_at and len(config.modalities) > 1:
            for kind in FusionKind:
                if kind != config.fusion:
                    other = fused_by(kind, bundle, tuning)
                    found[f"{name}, {kind.value}"] = Said(predict_risks(other, asked)[:, 0])
        return found

    return arm


def fused_by(kind: FusionKind, bundle: Bundle, tuning: Sequence[Example]) -> Bundle:
    """The same encoders fused in another way, on the same out-of-fold evidence of the same patient groups."""
    config = replace(bundle.config, fusion=kind)
    told = bundle.out_of_fold
    assert told is not None, "only a bundle that was just trained keeps its out-of-fold evidence"
    patients = [e for e in bundle.examples if not is_synthetic(e)]
    groups = number_groups(patients)
    attributes = [e.attributes for e in patients], [e.attributes for e in tuning]
    with settled(config):
        model = FusionModel(config)
        kept = {k: v for k, v in bundle.model.state_dict().items() if not k.startswith(("fusion.", "heard"))}
        model.load_state_dict(kept, strict=False)
        model.eval()
        watched = None
        if tuning:
            with torch.no_grad():
                said = model.encode(collate([e.inputs for e in tuning], config, bundle.embedder))
            watched = (said.logits, said.present, fusion_labels(tuning, config))
        fit_fusion(model, *told, watched, config, _silent, groups=groups)
        return calibrate_bundle(
            model, config, bundle.embedder, told, watched, subgroups=attributes, groups=groups
        )


def _silent(epoch: int, epochs: int, training: float, tuning: float | None) -> None:
    """Nobody listens to the refits."""


def split(examples: Sequence[Example], config: FusionConfig) -> tuple[list[Example], list[Example]]:
    """(train, tuning): a sixth of the groups for tuning; of a small set nobody.

    There a tuning split tells less than it costs: penalties are chosen on folds inside the training rows
    anyhow, networks are stopped by a fold set aside, and calibration has the out-of-fold evidence.
    """
    if len(examples) < SMALL:
        return list(examples), []
    labels = labels_of(examples, config.outcomes[0].name)[:, None].astype(np.float32)
    part = assign_folds([e.group for e in examples], labels, TUNING, config.seed)
    tuning = [e for e, fold in zip(examples, part, strict=True) if fold == 0]
    return [e for e, fold in zip(examples, part, strict=True) if fold], tuning


def _series(examples: Sequence[Example], config: FusionConfig) -> Floats:
    """Seven numbers a channel (last, mean, lowest, highest, slope, age of the last, count), NaN = missing."""
    rows = []
    for example in examples:
        held: dict[str, list[fusion.SeriesPoint]] = {}
        for point in example.inputs.series:
            held.setdefault(point.channel, []).append(point)
        row: list[float] = []
        for spec in config.channels:
            points = [
                p
                for p in held.get(spec.name, ())
                if 0 <= p.hours_before <= config.series_hours and is_plausible(p.value, spec)
            ]
            row += summarise(points) if points else [np.nan] * 7
        rows.append(row)
    return np.array(rows, float)


def summarise(points: Sequence[fusion.SeriesPoint]) -> list[float]:
    """One channel's points → seven numbers (change per day by least squares; 0 for one)."""
    ordered = sorted(points, key=lambda p: (-p.hours_before, p.value))
    values = np.array([p.value for p in ordered])
    days = -np.array([p.hours_before for p in ordered]) / 24
    spread = float(((days - days.mean()) ** 2).sum())
    slope = float(((days - days.mean()) * (values - values.mean())).sum() / spread) if spread > 1e-4 else 0.0
    return [
        float(values[-1]),
        float(values.mean()),
        float(values.min()),
        float(values.max()),
        slope,
        ordered[-1].hours_before,
        math.log(len(ordered)),
    ]
