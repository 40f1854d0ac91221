"""Whether the tumour's measured size helps: glioma MR segmented, measured, and fused as two more fields.

Every patient is measured by a 3D U-Net that has not seen what people drew in that patient; beside it stands
what people drew, measured the same way, which no network can better.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.study import arms, comparing
from benchmarks.study.comparison import FOLDS, FUSED, QUICK_FOLDS, STACK
from benchmarks.study.folds import Arm, listen
from benchmarks.study.keeping import Keeper
from benchmarks.study.segmentation import Case, tumour_config, tumours
from fusion import Drawn, Example, FusionConfig, Modality, SegmenterKind, train_segmenter
from fusion.config import FieldSpec
from fusion.examples import assign_folds
from fusion.imaging.overlap import dice
from fusion.imaging.quantify import Mask, largest, volume
from fusion.research import Task, read_collection
from fusion.research.brain_lgg import HEIGHT_MM, PIXEL_MM

FIELDS = (
    FieldSpec("tumour_volume", "Volume of the tumour, measured", "mL", low=0, high=1000),
    FieldSpec("tumour_filling", "Share of its bounding box that the tumour fills", low=0, high=1),
)
SIZE = 256  # pixels a side, of the collection's slices
BY_PEOPLE, BY_NETWORK = "drawn by people", "measured by the network"
Sizes = Mapping[str, Mapping[str, float | None]]  # patient → field → value


@dataclass(frozen=True, slots=True)
class Measured:
    """How the patients were measured. agreement: Dice of the network's mask with what people drew."""

    by_people: Sizes
    by_network: Sizes
    agreement: Mapping[str, float]


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """Both tasks → Markdown."""
    collection = read_collection(folder)
    sizes = measure(tumours(folder), seed=seed, quick=quick)
    lines = [
        f"## {collection.name}: the tumour's measured size as a field",
        "",
        f"    python -m benchmarks.study {collection.name} DIR --part measured --repeats {repeats} "
        f"--seed {seed}{' --quick' if quick else ''}",
        "",
        "Two fields more in the record: the tumour's volume (mL, of its largest piece; the set tells no "
        "spacing, so 0.94 mm pixels and a covered height of 130 mm are assumed for everybody), and the share "
        "of its bounding box that it fills. *Measured by the network*: by a 3D U-Net that learned from other "
        "patients; *drawn by people*: the same of what people outlined. Patients, folds and stack are the "
        "comparison's; AUROC, mean over repeats, 95 % bootstrap interval over patients.",
        "",
        _agreement(sizes),
        "",
    ]
    for task in collection.tasks.values():
        config = arms.config_of(collection, task, quick=quick)
        lines += [*_one(task, config, sizes, repeats=repeats, seed=seed, quick=quick), ""]
    return "\n".join(lines)


def measure(cases: Sequence[Case], *, seed: int, quick: bool) -> Measured:
    """Every patient by a network that learned from the others, and by what people drew."""
    parts = QUICK_FOLDS if quick else FOLDS
    folds = assign_folds(
        [patient for patient, _ in cases], np.zeros((len(cases), 1), np.float32), parts, seed
    )
    by_people = {patient: sizes_of(drawn.masks[0]) for patient, drawn in cases}
    by_network, agreement = dict[str, Mapping[str, float | None]](), dict[str, float]()
    for held in range(parts):
        fit, watched, asked = list[Drawn](), list[Drawn](), list[Case]()
        for case, fold in zip(cases, folds, strict=True):
            if fold == held:
                asked.append(case)
            else:
                (watched if fold == (held + 1) % parts else fit).append(case[1])
        config = tumour_config(SegmenterKind.UNET_3D, seed=seed, epochs=2 if quick else 10)
        segmenter = train_segmenter(fit, watched, config)
        for patient, drawn in asked:
            said = segmenter.probabilities(drawn.values)[0] >= 0.5
            by_network[patient] = sizes_of(said)
            agreement[patient] = dice(said, drawn.masks[0])
        print(f"measured: fold {held + 1} of {parts}", file=sys.stderr, flush=True)
    return Measured(by_people, by_network, agreement)


def sizes_of(mask: Mask) -> Mapping[str, float | None]:
    """A tumour's mask bool [D, H, W] → the two fields; None where there is none."""
    piece = largest(mask)
    if not piece.any():
        return {"tumour_volume": None, "tumour_filling": None}
    spacing = (
        HEIGHT_MM / max(1, len(mask) - 1),
        PIXEL_MM * SIZE / mask.shape[1],
        PIXEL_MM * SIZE / mask.shape[2],
    )
    extent = [int(at.max() - at.min() + 1) for at in np.nonzero(piece)]
    return {
        "tumour_volume": volume(piece, spacing).value,
        "tumour_filling": float(piece.sum() / np.prod(extent)),
    }


def with_sizes(examples: Sequence[Example], sizes: Sizes, *, alone: bool = False) -> list[Example]:
    """The same patients, whose fields are theirs and the sizes, or the sizes alone."""
    return [
        replace(
            e,
            inputs=replace(
                e.inputs, fields={**({} if alone else e.inputs.fields), **sizes.get(e.inputs.key, {})}
            ),
        )
        for e in examples
    ]


def _one(
    task: Task, config: FusionConfig, sizes: Measured, *, repeats: int, seed: int, quick: bool
) -> list[str]:
    examples = Keeper().filled(task.examples, config)
    wider = replace(config, fields=(*config.fields, *FIELDS))
    only = replace(config, fields=FIELDS, modalities=(Modality.TABULAR,))
    each: dict[str, Arm] = {FUSED: arms.fused(examples, config, FUSED, alone=False)}
    each |= {"simple stack": arms.simple(examples, config)["simple stack"]}
    for by, found in ((BY_NETWORK, sizes.by_network), (BY_PEOPLE, sizes.by_people)):
        more, alone = with_sizes(examples, found), with_sizes(examples, found, alone=True)
        each[f"fused, size {by}"] = arms.fused(more, wider, f"fused, size {by}", alone=False)
        each[f"stack, size {by}"] = _only_sum(arms.simple(more, wider)["simple stack"], f"stack, size {by}")
        each[f"size alone, {by}"] = arms.fused(alone, only, f"size alone, {by}", alone=False)
    folds = QUICK_FOLDS if quick else FOLDS
    heard = listen(examples, task.name, each, repeats=dict.fromkeys(each, repeats), folds=folds, seed=seed)
    weights = comparing.draw(heard.groups, seed)
    told = [name for name in each if name != "simple stack"]
    pooled = {
        a: comparing.scored(comparing.auroc, heard.risks[a], heard.labels, weights) for a in [*told, STACK]
    }
    inside = {a: comparing.within_folds(heard, a, weights) for a in [*told, STACK]}
    lines = [
        f"### {task.label} (`{task.name}`): {len(heard.labels)} patients, {int(heard.labels.sum())} events",
        "",
        "| arm | AUROC | − the same without the size | the same, within folds |",
        "| --- | --- | --- | --- |",
    ]
    for arm in [FUSED, STACK, *told[1:]]:
        without = FUSED if arm.startswith("fused,") else STACK if arm.startswith("stack,") else ""
        over = [
            comparing.difference(of[arm], of[without]).signed if without else "-" for of in (pooled, inside)
        ]
        lines.append(f"| {arm} | {comparing.interval(pooled[arm])} | {' | '.join(over)} |")
    return lines


def _only_sum(stack: Arm, name: str) -> Arm:
    """That stack's sum alone, by another name."""
    return lambda seen, held, seed: {name: stack(seen, held, seed)[STACK]}


def _agreement(sizes: Measured) -> str:
    """How well the network measures, beside what people drew."""
    both = np.array(
        [
            (said, drawn)
            for patient, of in sizes.by_people.items()
            if (said := sizes.by_network[patient]["tumour_volume"]) is not None
            and (drawn := of["tumour_volume"]) is not None
        ]
    )
    off = np.abs(both[:, 0] - both[:, 1]) / both[:, 1]
    rank = float(spearmanr(both[:, 0], both[:, 1]).statistic)
    return (
        f"{len(sizes.by_people)} patients; in {len(sizes.by_people) - len(both)} the network or people found "
        f"none. Dice {np.mean(list(sizes.agreement.values())):.3f} on average; median error of the volume "
        f"{100 * np.median(off):.0f} %, rank correlation {rank:.2f}; median volume drawn "
        f"{np.median(both[:, 1]):.0f} mL."
    )
