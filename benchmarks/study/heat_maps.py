"""How many heat maps of a real model on real radiographs deserve trust, by the checks kept with each.

    python -m benchmarks.study cxr_covid DIR --part heat_maps

A severe-outcome model (image only) is trained on four fifths of the patients; maps are drawn of pictures of
the others by both methods. Beside them, for scale: maps drawn at random and one that marks the middle.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

import fusion
from fusion import Example, FusionConfig, HeatMapMethod, Modality, OutcomeSpec
from fusion.batch import collate
from fusion.heat_maps import GRID, Look, curves, mean_of
from fusion.research import read_collection
from fusion.train import assign_folds, settled

SIZE = 160  # pixels a side: half the time of 224
MOST, FEW = 12, 6  # pictures explained; in a quick run
SHOWS = (
    "What it shows: how often a map may be shown without a warning; a map drawn at random gets past "
    "deletion and insertion as often as four random orders allow it to. What it does not: that a map "
    "which passes marks what a radiologist would; the checks say that it is about the model, not that the "
    "model is right. A map that always marks the middle beats the random orders in more than half of the "
    "pictures: deletion and insertion alone are a low bar. Twelve pictures leave wide intervals; seconds "
    "are wall time on a machine busy with other work."
)


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """The table, in Markdown."""
    task = read_collection(folder, "cxr_covid").tasks["severe_outcome"]
    size = 96 if quick else SIZE
    config = FusionConfig(
        outcomes=(OutcomeSpec(task.name, task.label, 24.0),),
        modalities=(Modality.IMAGE,),
        image_size=size,
        max_images=1,
        seed=seed,
    )
    labels = np.array([[e.labels[task.name]] for e in task.examples], np.float32)
    fold_of = assign_folds([e.group for e in task.examples], labels, 5, seed)
    if quick:
        fold_of = np.where(np.arange(len(fold_of)) % 3 > 0, fold_of, -1)
    bundle = fusion.train([e for e, f in zip(task.examples, fold_of, strict=True) if f > 0], [], config)
    held = [e for e, f in zip(task.examples, fold_of, strict=True) if f == 0][: FEW if quick else MOST]
    rows = [_method(bundle, held, task.name, method) for method in HeatMapMethod]
    rows += _controls(bundle, held, seed)
    reduced = " (quick run)" if quick else ""
    return "\n".join(
        [
            f"## Heat maps: chest radiographs{reduced}",
            "",
            "`python -m benchmarks.study cxr_covid DIR --part heat_maps`",
            "",
            f"{len(held)} pictures of patients left out, EfficientNet-Lite0 at {size} pixels (reduced, "
            "for time). Insertion and deletion: areas under the estimate, places of the map first "
            "(higher, lower is better); random: the mean of four random orders. 95 % Wilson intervals "
            "over patients.",
            "",
            "| map | passes all checks | differs from a random model's | beats every random order | "
            "insertion (random) | deletion (random) | completeness gap, median | seconds a map |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            SHOWS,
        ]
    )


def _method(bundle: fusion.Bundle, held: Sequence[Example], outcome: str, method: HeatMapMethod) -> str:
    started, found = time.perf_counter(), []
    for example in held:
        pixels = example.inputs.images[0]
        found.append(
            fusion.explain_image(bundle, example.inputs, pixels, outcome=outcome, method=method).sanity
        )
    seconds = (time.perf_counter() - started) / len(held)
    print(f"{method.value}: {len(held)} maps", file=sys.stderr, flush=True)
    mean = {
        name: float(np.mean([float(one[name]) for one in found]))
        for name in ("insertion", "random_insertion", "deletion", "random_deletion")
    }
    gaps = [float(one["completeness_gap"]) for one in found if "completeness_gap" in one]
    return (
        f"| {method.value} | {_share([bool(one['passed']) for one in found])} | "
        f"{_share([abs(float(one['correlation'])) < 0.5 for one in found])} | "
        f"{_share([bool(one['faithful']) for one in found])} | "
        f"{mean['insertion']:.3f} ({mean['random_insertion']:.3f}) | "
        f"{mean['deletion']:.3f} ({mean['random_deletion']:.3f}) | "
        f"{f'{np.median(gaps):.3f}' if gaps else '–'} | {seconds:.1f} |"
    )


def _controls(bundle: fusion.Bundle, held: Sequence[Example], seed: int) -> list[str]:
    """Maps that know nothing of the model."""
    generator = torch.Generator().manual_seed(seed + 1)
    y, x = torch.meshgrid(torch.linspace(-1, 1, GRID), torch.linspace(-1, 1, GRID), indexing="ij")
    rows = []
    for name in ("drawn at random", "always the middle"):
        beat, areas, random = [], [], []
        for example in held:
            heat = (
                torch.rand(GRID, GRID, generator=generator) if "random" in name else torch.exp(-(x**2 + y**2))
            )
            with settled(bundle.config):
                look = _look(bundle, example)
                found = curves(look, heat, look.direction())
            beat.append(found.beats_random)
            areas.append((found.deletion, found.insertion))
            random.append(mean_of(found.random))
        (taken, given), (taken_random, given_random) = mean_of(areas), mean_of(random)
        rows.append(
            f"| {name} | – | – | {_share(beat)} | {given:.3f} ({given_random:.3f}) | "
            f"{taken:.3f} ({taken_random:.3f}) | – | – |"
        )
    return rows


def _look(bundle: fusion.Bundle, example: Example) -> Look:
    backbone = bundle.embedder.image_backbone
    batch = collate([example.inputs], bundle.config, bundle.embedder)
    prepared = backbone.prepare(example.inputs.images[0].read().values[:1], bundle.config.image_size)
    return Look(bundle, batch, Modality.IMAGE, 0, 0, backbone, prepared)


def _share(hits: Sequence[bool]) -> str:
    interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return f"{np.mean(hits):.2f} [{interval.low:.2f}, {interval.high:.2f}]"


if __name__ == "__main__":
    print(run(Path(sys.argv[1]), repeats=1, seed=0, quick="--quick" in sys.argv))
