"""Real lung ultrasound clips: recurrent networks and attention over frames beside a single frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.study import arms, comparing
from benchmarks.study.comparison import FOLDS, QUICK_FOLDS
from benchmarks.study.folds import Arm, listen
from benchmarks.study.keeping import Keeper
from fusion import CinePooling, Example
from fusion.research import Task, read_collection

FRAME = "single frame (the middle one)"
NAMES = {
    CinePooling.FRAME: FRAME,
    CinePooling.MEAN: "mean of the frames",
    CinePooling.GRU: "CNN + GRU",
    CinePooling.LSTM: "CNN + LSTM",
    CinePooling.ATTENTION: "CNN + temporal attention",
}


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """Every task by every way of looking at a clip → Markdown."""
    collection = read_collection(folder)
    keeper = Keeper()
    lines = [
        f"## {collection.name}: clips beside single frames",
        "",
        f"    python -m benchmarks.study {collection.name} DIR --part cine --repeats {repeats} --seed {seed}"
        + (" --quick" if quick else ""),
        "",
        "EfficientNet-Lite0 per frame (ImageNet weights, 112 pixels, 16 frames a clip), then each way of "
        "pooling, whole by `fusion.train`; the same folds, grouped by patient group, for all; AUROC with the "
        "95 % bootstrap interval over groups, and paired difference from the single frame. A course over "
        "frames is kept in training only where it helps patients set aside; else the model is mean and "
        "movement.",
        "",
    ]
    for task in collection.tasks.values():
        config = arms.config_of(collection, task, quick=quick)
        examples = keeper.filled(task.examples, config)
        each: dict[str, Arm] = {
            name: arms.fused(examples, replace(config, cine_pooling=pooling), name, alone=False)
            for pooling, name in NAMES.items()
        }
        lines += [*_table(task, examples, each, repeats=repeats, seed=seed, quick=quick), ""]
    return "\n".join([*lines, *(f"- {caveat}" for caveat in collection.caveats[:1])])


def _table(
    task: Task, examples: Sequence[Example], each: dict[str, Arm], *, repeats: int, seed: int, quick: bool
) -> list[str]:
    heard = listen(
        examples,
        task.name,
        each,
        repeats=dict.fromkeys(each, repeats),
        folds=QUICK_FOLDS if quick else FOLDS,
        seed=seed,
    )
    weights = comparing.draw(heard.groups, seed)
    found = {
        arm: comparing.scored(comparing.auroc, said, heard.labels, weights)
        for arm, said in heard.risks.items()
    }
    lines = [
        f"### {task.label}: {len(heard.labels)} clips, {len(set(heard.groups))} groups, "
        f"{int(heard.labels.sum())} events",
        "",
        "| model | AUROC | minus the single frame |",
        "| --- | --- | --- |",
    ]
    for arm, scores in found.items():
        over = "-" if arm == FRAME else comparing.difference(scores, found[FRAME]).signed
        lines.append(f"| {arm} | {comparing.interval(scores)} | {over} |")
    return lines
