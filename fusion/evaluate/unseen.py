"""A saved bundle on a folder laid out like a research collection, whose patients it has never seen."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion import metrics
from fusion.batch import collate
from fusion.bundle import METADATA, Bundle, check_digest
from fusion.errors import BadInput, BundleMismatch
from fusion.evaluate.report import evaluate
from fusion.predict import risks as predict_risks
from fusion.research import Collection, Task, read_collection
from fusion.train import settled

Array = NDArray[np.float64]
GROUPS = "group_marks"  # of a bundle's cohort: what its patients' groups hash to
MARK = 12  # hex digits kept of each hash


@dataclass(frozen=True, slots=True)
class Scored:
    """How one bundle did on one task.

    figures  name → {"value", "low", "high"}; None where it cannot be computed
    report   the whole report: subgroups, each modality alone, curves
    """

    task: str
    label: str
    rows: int
    groups: int
    events: int
    figures: dict[str, dict[str, float | None]]
    notes: tuple[str, ...]
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "task": self.task,
            "label": self.label,
            "rows": self.rows,
            "groups": self.groups,
            "events": self.events,
            "figures": self.figures,
            "notes": list(self.notes),
            "report": self.report,
        }


def score_folder(
    bundles: Path,
    folder: Path,
    *,
    tasks: Sequence[str] = (),
    name: str = "",
    text_backbone: Path | None = None,
    digest: str | None = None,
) -> list[Scored]:
    """Every bundle on its task of the collection in `folder`.

    bundles  a bundle, or a folder whose folders are bundles
    tasks    only these; without, every bundle that is found
    name     of the collection, only where the folder's files do not tell
    text_backbone, digest  as of `Bundle.load`; a digest is of one bundle, and `bundles` must be it
    Raises BadInput (unknown layout, no such task, patients it was trained on) and BundleMismatch.
    """
    if digest is not None:
        if not (bundles / METADATA).is_file():
            raise BadInput(f"a digest is of one bundle, and {bundles.name!r} is none (it has no {METADATA})")
        check_digest(bundles, digest)
    found = {task: path for path in _bundles(bundles) for task in _outcomes(path)}
    wanted = tasks or tuple(found)
    for task in wanted:
        if task not in found:
            raise BadInput(f"no bundle predicts {task!r}; those given predict {', '.join(sorted(found))}")
    collection = read_collection(folder, name)
    for task in wanted:
        if task not in collection.tasks:
            raise BadInput(
                f"{collection.name} has no task {task!r}, which the bundle predicts; "
                f"it has {', '.join(collection.tasks)}"
            )
    return [
        score(
            Bundle.load(found[task], digest=digest, text_backbone=text_backbone),
            collection,
            collection.tasks[task],
        )
        for task in wanted
    ]


def score(bundle: Bundle, collection: Collection, task: Task) -> Scored:
    """One bundle on one task. Raises BadInput when a group of the task was trained on."""
    labels = np.array([float(e.labels.get(task.name, math.nan)) for e in task.examples])
    examples = [e for e, label in zip(task.examples, labels, strict=True) if not math.isnan(label)]
    if not examples:
        raise BadInput(f"{collection.name} holds no row whose {task.name!r} is known")
    groups = [e.group for e in examples]
    if seen := _seen(bundle, groups):
        raise BadInput(
            f"the bundle was trained on {seen} of the {len(set(groups))} groups in this folder; "
            "give it a folder it has never seen"
        )
    report = evaluate(bundle, examples).to_json()
    found = report["outcomes"][task.name]
    with settled(bundle.config):
        batch = collate([e.inputs for e in examples], bundle.config, bundle.embedder)
    place = [spec.name for spec in bundle.config.outcomes].index(task.name)
    risks = predict_risks(bundle, batch)[:, place]
    known = np.array([float(e.labels[task.name]) for e in examples])
    again = partial(metrics.bootstrap, risks=risks, labels=known, groups=groups, seed=bundle.config.seed)
    return Scored(
        task=task.name,
        label=task.label,
        rows=len(examples),
        groups=len(set(groups)),
        events=int(known.sum()),
        figures={
            "AUROC": found["auroc"],
            "AUPRC": found["auprc"],
            "Brier": found["brier"],
            "calibration slope": again(_slope),
            "calibration intercept": again(_intercept),
            "coverage": _share(found["coverage"]),
        },
        notes=(*_notes(bundle, found), *collection.caveats),
        report=report,
    )


def mark_groups(bundle: Bundle, groups: Sequence[str]) -> None:
    """Note in the bundle whom it was trained on, as salted hashes, so that scoring it on them is refused.

    For research collections, whose group names are public; a hash does not hide a guessable name.
    """
    cohort = bundle.metadata["cohort"]
    cohort[GROUPS] = sorted({_mark(cohort["digest"], group) for group in groups})


def _seen(bundle: Bundle, groups: Sequence[str]) -> int:
    cohort = bundle.metadata.get("cohort", {})
    marks = set(cohort.get(GROUPS, ()))
    return sum(_mark(cohort["digest"], group) in marks for group in set(groups)) if marks else 0


def _mark(salt: str, group: str) -> str:
    return hashlib.sha256(f"{salt} {group}".encode()).hexdigest()[:MARK]


def _bundles(path: Path) -> list[Path]:
    found = [path] if (path / METADATA).is_file() else sorted(p.parent for p in path.glob(f"*/{METADATA}"))
    if not found:
        raise BundleMismatch(f"{path.name!r} is no bundle (it has no {METADATA}) and holds none")
    return found


def _outcomes(path: Path) -> list[str]:
    """What a bundle predicts, without loading it. Raises BundleMismatch when it cannot be read."""
    try:
        return [str(spec["name"]) for spec in json.loads((path / METADATA).read_text())["config"]["outcomes"]]
    except (ValueError, KeyError, TypeError):
        Bundle.load(path)
        raise


def _notes(bundle: Bundle, found: dict[str, Any]) -> list[str]:
    coverage = found["coverage"]
    notes = [
        f"coverage: in how many of {coverage['groups']} groups of {coverage['group_size']} rows scored alike "
        f"the event rate lay within their {coverage['level']:.0%} interval (Wilson interval)"
    ]
    if found["note"]:
        notes.append(found["note"])
    if GROUPS not in bundle.metadata.get("cohort", {}):
        notes.append("the bundle does not tell whom it was trained on: nothing shows that these are others")
    return notes


def _slope(risks: Array, labels: Array, weights: Array | None = None) -> float | None:
    slope: float | None = metrics.calibration(risks, labels, weights)["slope"]
    return slope


def _intercept(risks: Array, labels: Array, weights: Array | None = None) -> float | None:
    intercept: float | None = metrics.calibration(risks, labels, weights)["intercept"]
    return intercept


def _share(coverage: dict[str, Any]) -> dict[str, float | None]:
    """Observed coverage with its 95 % Wilson interval; groups of patients are what is counted."""
    share, count = coverage["observed"], coverage["groups"]
    if share is None or not count:
        return {"value": None, "low": None, "high": None}
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return {"value": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}
