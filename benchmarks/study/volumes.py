"""Glioma MR as volumes: 2.5D with slice attention and a 3D network, beside the slices as views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.study import arms, comparing
from benchmarks.study.comparison import FOLDS, FUSED, QUICK_FOLDS, STACK
from benchmarks.study.folds import Arm, listen
from benchmarks.study.keeping import Keeper
from fusion import Modality, VolumeKind
from fusion.research import Task, read_collection

GRIDS: Mapping[str, Mapping[str, Any]] = {
    "2.5D": {"volume_kind": VolumeKind.SLICES, "volume_size": 128, "volume_step_mm": 6.5},
    "3D": {"volume_kind": VolumeKind.VOXELS, "volume_size": 32, "volume_step_mm": 6.5, "volume_slices": 20},
}


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """Both tasks → Markdown."""
    collection = read_collection(folder)
    lines = [
        f"## {collection.name}: volumes in 2.5D and 3D",
        "",
        f"    python -m benchmarks.study {collection.name} DIR --part volumes --repeats {repeats} "
        f"--seed {seed}{' --quick' if quick else ''}",
        "",
        "The same patients and grouped folds for all arms; AUROC, mean over repeats, 95 % bootstrap interval "
        "over patients. *2.5D*: slices through EfficientNet-Lite0 (ImageNet weights), 128 pixels over 240 "
        "mm, 6.5 mm apart, attention over slices. *3D*: a residual 3D network trained from nothing on 20 x "
        "32 x 32 voxels of the same extent. *views*: the slices as unordered pictures. The set tells no "
        "spacing: 0.94 mm pixels and a covered height of 130 mm are assumed.",
        "",
    ]
    for task in collection.tasks.values():
        lines += [*_one(collection.settings, collection, task, repeats=repeats, seed=seed, quick=quick), ""]
    return "\n".join(lines)


def _one(
    settings: Mapping[str, Any], collection: Any, task: Task, *, repeats: int, seed: int, quick: bool
) -> list[str]:
    config = arms.config_of(collection, task, quick=quick)
    keeper, examples = Keeper(), list(task.examples)
    record = tuple(m for m in config.modalities if m != Modality.IMAGE)
    each: dict[str, Arm] = {}
    for name, grid in GRIDS.items():
        seen = replace(config, modalities=(Modality.VOLUME,), **grid)
        examples = keeper.filled(examples, seen)
        each[f"{name} alone"] = arms.fused(examples, seen, f"{name} alone", alone=False)
        both = replace(seen, modalities=(*record, Modality.VOLUME))
        each[f"fused: {name} and record"] = arms.fused(
            examples, both, f"fused: {name} and record", alone=False
        )
    examples = keeper.filled(examples, config)
    views = replace(config, modalities=(Modality.IMAGE,))
    each["views alone"] = arms.fused(examples, views, "views alone", alone=False)
    each[FUSED] = arms.fused(examples, config, FUSED, alone=False)
    each |= arms.simple(examples, config)
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
        f"### {task.label} (`{task.name}`): {len(heard.labels)} patients, {int(heard.labels.sum())} events",
        "",
        "| arm | AUROC | AUROC − simple stack (views and record) |",
        "| --- | --- | --- |",
    ]
    for arm, scores in found.items():
        over = comparing.difference(scores, found[STACK]).signed if arm != STACK else "-"
        called = "fused: views and record" if arm == FUSED else arm
        lines.append(f"| {called} | {comparing.interval(scores)} | {over} |")
    return lines
