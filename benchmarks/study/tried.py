"""What was tried on a small set: the fused model with one choice after another made otherwise.

Two choices are made by the one-standard-error rule (`fusion.choosing`): whether a voice leaves the simple
stack's recipe (`fusion.encoders.linear`), and whether the fusion leaves the plain sum (`fusion.plain_sum`).
Here each is also made always one way, and always the other, on the same folds. And the model is heard before
its calibration, which cannot reorder patients of one fold, but can those of different folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import torch

import fusion
from benchmarks.study import arms, comparing
from benchmarks.study.comparing import Floats, Interval
from benchmarks.study.comparison import FOLDS, FUSED, QUICK_FOLDS, STACK
from benchmarks.study.folds import Arm, Heard, Rows, Said, listen
from benchmarks.study.keeping import Keeper
from fusion import Example, FusionConfig
from fusion.batch import collate
from fusion.calibrate import sigmoid
from fusion.embedding import Embedder
from fusion.metrics import calibration
from fusion.predict import risks as predict_risks
from fusion.research import Task, read_collection
from fusion.train import settled

RAW = "fused, before its calibration"
VARIANTS = {  # name → standard errors by which each choice must be better than the simple one
    FUSED: {},
    "voices: the simplest always": {"voice_margin": inf},
    "voices: best by log loss": {"voice_margin": 0.0},
    "voices: never the simplest": {"voice_margin": -inf},
    "weights: the plain sum always": {"fusion_margin": inf},
    "weights: learned always": {"fusion_margin": -inf},
    "both: never the simplest": {"voice_margin": -inf, "fusion_margin": -inf},
}
HEAD = (
    "| task | variant | AUROC | − stack | within folds | − stack, within folds | Brier | calibration slope |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """Every task by every variant → Markdown."""
    collection = read_collection(folder)
    keeper = Keeper()
    rows: list[str] = []
    gaps: dict[str, list[tuple[float, float]]] = {}
    for task in collection.tasks.values():
        config = arms.config_of(collection, task, quick=quick)
        found = measure(keeper.filled(task.examples, config), task, config, repeats, seed, quick)
        for arm, (line, pooled, within) in found.items():
            rows.append(line)
            gaps.setdefault(arm, []).append((pooled, within))
    command = f"python -m benchmarks.study {collection.name} DIR --part tried"
    return "\n".join(
        [
            f"## {collection.name}: what was tried",
            "",
            f"    {command} --repeats {repeats} --seed {seed}" + (" --quick" if quick else ""),
            "",
            "The fused model with one choice after another made otherwise; folds, stack and intervals as in "
            "the comparison. *Within folds*: of pairs of patients of one fold alone, which no calibration "
            "reorders. *Voices*: whether an encoder's linear part is the simple stack's recipe or the "
            "penalised one. *Weights*: whether the late fusion adds up or has learned weights. `fused` is "
            "the rule of one standard error; nothing was picked by these rows.",
            "",
            *HEAD,
            *rows,
            "",
            "Mean over the tasks of AUROC − stack (within folds), and tasks below it:",
            "",
            *(_mean(arm, of) for arm, of in gaps.items() if arm != STACK),
        ]
    )


def measure(
    examples: Sequence[Example], task: Task, config: FusionConfig, repeats: int, seed: int, quick: bool
) -> dict[str, tuple[str, float, float]]:
    """Arm → (row of the table, AUROC minus the stack's, the same within folds)."""
    each = {"simple stack": arms.simple(examples, config)["simple stack"]}
    each |= {name: _variant(examples, config, name, extra) for name, extra in VARIANTS.items()}
    folds = QUICK_FOLDS if quick else FOLDS
    heard = listen(examples, task.name, each, repeats=dict.fromkeys(each, repeats), folds=folds, seed=seed)
    weights = comparing.draw(heard.groups, seed)
    names = [STACK, FUSED, RAW, *(name for name in VARIANTS if name != FUSED)]
    pooled = {
        arm: comparing.scored(comparing.auroc, heard.risks[arm], heard.labels, weights) for arm in names
    }
    inside = {arm: comparing.within_folds(heard, arm, weights) for arm in names}
    return {
        arm: (
            _row(task, arm, heard, weights, pooled, inside),
            comparing.difference(pooled[arm], pooled[STACK]).value,
            comparing.difference(inside[arm], inside[STACK]).value,
        )
        for arm in names
    }


def _variant(examples: Sequence[Example], config: FusionConfig, name: str, extra: Mapping[str, float]) -> Arm:
    with settled(config):
        batch = collate([e.inputs for e in examples], config, Embedder(config))

    def arm(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
        settings = replace(config, seed=seed, extra={**config.extra, **extra})
        bundle = fusion.train(*arms.split([examples[i] for i in seen], settings), settings)
        asked = batch.rows(torch.from_numpy(held))
        found = {name: Said(predict_risks(bundle, asked)[:, 0])}
        if name == FUSED:
            with torch.no_grad():
                found[RAW] = Said(sigmoid(bundle.model(asked)[:, 0].double().numpy()))
        return found

    return arm


def _row(
    task: Task,
    arm: str,
    heard: Heard,
    weights: Floats,
    pooled: Mapping[str, Floats],
    inside: Mapping[str, Floats],
) -> str:
    def over(scores: Mapping[str, Floats]) -> str:
        return "-" if arm == STACK else comparing.difference(scores[arm], scores[STACK]).signed

    def of(scores: Floats) -> Interval:
        return comparing.interval(scores)

    error = of(comparing.scored(comparing.brier, heard.risks[arm], heard.labels, weights))
    slopes = [s for r in heard.risks[arm] if (s := calibration(r, heard.labels)["slope"]) is not None]
    cells = [
        task.label,
        arm,
        f"{of(pooled[arm]).value:.3f}",
        over(pooled),
        f"{of(inside[arm]).value:.3f}",
        over(inside),
        f"{error.value:.3f}",
        f"{np.mean(slopes):.2f}" if slopes else "-",
    ]
    return f"| {' | '.join(cells)} |"


def _mean(arm: str, gaps: Sequence[tuple[float, float]]) -> str:
    pooled, inside = np.array(gaps).T
    return (
        f"- {arm}: {pooled.mean():+.3f} ({inside.mean():+.3f}); {int((pooled < 0).sum())} "
        f"({int((inside < 0).sum())}) of {len(gaps)} below"
    )
