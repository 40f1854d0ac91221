"""A bundle for each task of a collection, trained on all of it, for scoring on a part kept apart."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import fusion
from benchmarks.study import arms
from benchmarks.study.keeping import Keeper
from fusion.evaluate.unseen import mark_groups
from fusion.research import read_collection


def save_bundles(folder: Path, into: Path, *, seed: int, quick: bool, tasks: Sequence[str] = ()) -> None:
    """into/TASK for every task, or those named; a sixth of the groups is the tuning split."""
    collection = read_collection(folder)
    keeper = Keeper()
    for name, task in collection.tasks.items():
        if tasks and name not in tasks:
            continue
        config = replace(arms.config_of(collection, task, quick=quick), seed=seed)
        examples = keeper.filled(task.examples, config)
        bundle = fusion.train(*arms.split(examples, config), config)
        mark_groups(bundle, [e.group for e in examples])
        digest = bundle.save(into / name, created_at=datetime.now(UTC).isoformat(timespec="seconds"))
        print(f"{into / name}: {task.label}, {len(examples)} rows, digest {digest[:12]}", flush=True)
        print(f"{name}: saved", file=sys.stderr)
