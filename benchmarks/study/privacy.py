"""What privacy costs: the same private training at several ε, beside itself without noise.

Stays are split anew in each repeat; nothing is chosen on those that are asked. ε is per stay (one row each).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.study import comparing
from fusion import Example, FusionConfig, OutcomeSpec
from fusion.batch import collate
from fusion.embedding import Embedder
from fusion.examples import assign_folds
from fusion.metrics import calibration
from fusion.model import FusionModel
from fusion.privacy import (
    Course,
    epsilon_of,
    features_of,
    noise_for,
    noisy_base_logit,
    private_linear,
    public_basis,
)
from fusion.research import Collection, read_collection
from fusion.train import settled

Floats = NDArray[np.float64]
EPSILONS = (math.inf, 8.0, 3.0, 1.0)
EPOCHS, DELTA = 15, 1e-5


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """The first task of `folder` → Markdown."""
    collection = read_collection(folder)
    task = next(iter(collection.tasks.values()))
    examples = list(task.examples)[: 800 if quick else None]
    labels = np.array([float(e.labels[task.name]) for e in examples])
    config = _config(collection, task.name, task.label)
    said: dict[float, list[Floats]] = {epsilon: [] for epsilon in EPSILONS}
    held: list[NDArray[np.int64]] = []
    noises: dict[float, float] = {}
    for repeat in range(repeats):
        folds = assign_folds(
            [e.group for e in examples], labels[:, None].astype(np.float32), 10, seed + repeat
        )
        told, asked = _features(examples, config, folds)
        held.append(np.flatnonzero(folds < 3))
        for epsilon in EPSILONS:
            rows = torch.from_numpy(np.flatnonzero(folds >= 5))
            noises[epsilon] = 0.0 if math.isinf(epsilon) else noise_for(epsilon, config, len(rows))
            course, draw = Course.of(config, len(rows)), torch.Generator()
            draw.seed()
            known = torch.from_numpy(labels)[:, None].float()
            base = noisy_base_logit(known[rows], noises[epsilon], draw)
            weights = private_linear(
                told, known[rows], base, course=course, noise=noises[epsilon], clip=config.dp_clip, draw=draw
            )
            said[epsilon].append(torch.sigmoid(base + asked @ weights.T).squeeze(1).double().numpy())
            print(
                f"repeat {repeat + 1}: ε = {epsilon:g}, noise {noises[epsilon]:.2f}",
                file=sys.stderr,
                flush=True,
            )
    return _page(
        examples, labels, int((folds >= 5).sum()), held, said, noises, config, seed, repeats, collection
    )


def _config(collection: Collection, name: str, label: str) -> FusionConfig:
    settings = dict(collection.settings)
    return FusionConfig(
        outcomes=(OutcomeSpec(name, label, 24.0 * 365),), epochs=EPOCHS, dp_delta=DELTA, **settings
    )


def _features(
    examples: list[Example], config: FusionConfig, folds: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the private model sees of those it learns from (folds 5 to 9) and of those asked (0 to 2);
    statistics from the tuning patients (3 and 4), as in `fusion.privacy`."""
    with settled(config):
        embedder, model = Embedder(config), FusionModel(config).eval()
        parts = [
            collate([examples[i].inputs for i in np.flatnonzero(rows)], config, embedder)
            for rows in (folds >= 5, (folds == 3) | (folds == 4), folds < 3)
        ]
        for modality in config.modalities:
            model.encoder(modality).fit_statistics(parts[1].tokens[modality])
        basis = public_basis(features_of(model, parts[1]))
        return features_of(model, parts[0]) @ basis, features_of(model, parts[2]) @ basis


def _page(
    examples: list[Example],
    labels: Floats,
    taught: int,
    held: list[NDArray[np.int64]],
    said: Mapping[float, list[Floats]],
    noises: Mapping[float, float],
    config: FusionConfig,
    seed: int,
    repeats: int,
    collection: Collection,
) -> str:
    weights = [comparing.draw([examples[i].group for i in rows], seed) for rows in held]
    scores = {
        epsilon: np.stack(
            [comparing.auroc(one, labels[rows], w) for one, rows, w in zip(told_, held, weights, strict=True)]
        )
        for epsilon, told_ in said.items()
    }
    lines = [
        f"## {collection.name}: what privacy costs",
        "",
        f"    python -m benchmarks.study {collection.name} DIR --part privacy --repeats {repeats} --seed "
        f"{seed}",
        "",
        f"{len(examples)} stays; in each of {repeats} repeats half are learned from, a fifth standardise "
        "(not covered by "
        "ε), three tenths are asked. One logistic model of the record and the summaries of the series, "
        "trained by "
        f"DP-SGD ({EPOCHS} epochs, gradients cut at {config.dp_clip:g}, δ = {DELTA:g}, ε per stay, "
        "accounted by opacus). "
        "AUROC with 95 % intervals over stays. Intervals are over the stays that are asked, whose sets "
        "overlap between repeats; the chance of the noise itself is not in them.",
        "",
        "| ε | noise | AUROC | minus the same without noise | calibration slope |",
        "| --- | --- | --- | --- | --- |",
    ]
    for epsilon, found in scores.items():
        slopes = [
            calibration(one, labels[rows])["slope"] for one, rows in zip(said[epsilon], held, strict=True)
        ]
        slope = float(np.mean([s for s in slopes if s is not None]))
        gap = "" if math.isinf(epsilon) else comparing.difference(found, scores[math.inf]).signed
        name = "∞ (clipped, no noise)" if math.isinf(epsilon) else f"{epsilon:g}"
        lines.append(
            f"| {name} | {noises[epsilon]:.2f} | {comparing.interval(found)} | {gap} | {slope:.2f} |"
        )
    reached = {e: epsilon_of(Course.of(config, taught), n, DELTA) for e, n in noises.items() if n}
    lines += [
        "",
        "The model is smaller than the one of the comparison above (no trees, no recurrent network, no "
        "folds: each "
        "would spend privacy again). Before calibration on the tuning stays. "
        + "; ".join(f"asked for ε = {e:g}, reached {r:.2f}" for e, r in reached.items())
        + ".",
    ]
    return "\n".join(lines)
