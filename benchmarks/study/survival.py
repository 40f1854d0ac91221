"""ICU stays: death by several horizons when many patients are lost from sight; ways to treat the lost."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import fusion
from fusion.batch import collate
from fusion.examples import assign_folds
from fusion.metrics import auroc, bootstrap, brier, calibration
from fusion.predict import risks
from fusion.research import Collection, read_collection
from fusion.survival import FollowUp

Array = NDArray[np.float64]
DAYS = (3, 7, 14, 28)  # after the moment of judgement, 48 h after admission
JUDGED = 48.0
LOST = 12.0  # mean days until a patient is lost, simulated
EPOCHS = 15
ARMS = {
    "survival": "discrete-time survival, all stays",
    "alive": "one binary outcome a horizon, the lost counted as alive",
    "left out": "one binary outcome a horizon, the lost left out",
    "nobody lost": "discrete-time survival, nobody lost (the limit)",
}


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """Markdown. One split into 70 % training, 10 % tuning, 20 % asked, for each repeat."""
    collection = read_collection(folder)
    examples = list(next(iter(collection.tasks.values())).examples)
    if quick:
        examples = examples[:2000]
    deaths = {e.group: _hours_to_death(collection, e.group) for e in examples}
    rows: dict[str, list[tuple[Array, Array, list[str]]]] = {arm: [] for arm in ARMS}
    lost_share = 0.0
    for repeat in range(repeats):
        rng = np.random.default_rng(seed + repeat)
        lost = dict(zip(deaths, rng.exponential(LOST * 24, size=len(deaths)), strict=True))
        lost_share = float(np.mean([lost[g] < min(deaths[g], DAYS[-1] * 24) for g in deaths]))
        truth = np.array([[deaths[e.group] <= day * 24 for day in DAYS] for e in examples], np.float32)
        fold = assign_folds([e.group for e in examples], truth, 10, seed + repeat)
        parts = [np.flatnonzero(fold >= 3), np.flatnonzero(fold == 2), np.flatnonzero(fold < 2)]
        for arm in ARMS:
            told = [_told(e, deaths[e.group], lost[e.group], arm) for e in examples]
            config = _config(collection, arm, seed + repeat, quick)
            bundle = fusion.train([told[i] for i in parts[0]], [told[i] for i in parts[1]], config)
            batch = collate([examples[i].inputs for i in parts[2]], config, bundle.embedder)
            groups = [examples[i].group for i in parts[2]]
            rows[arm].append((risks(bundle, batch), truth[parts[2]].astype(float), groups))
            print(f"repeat {repeat + 1}: {arm}", file=sys.stderr, flush=True)
    return _page(rows, len(examples), repeats, seed, lost_share, folder.name)


def _hours_to_death(collection: Collection, stay: str) -> float:
    """From the moment of judgement; infinite where no death was recorded."""
    days, _ = collection.extra["survival"][stay]
    return float("inf") if days is None else max(0.0, days * 24 - JUDGED)


def _told(example: fusion.Example, death: float, lost: float, arm: str) -> fusion.Example:
    last = DAYS[-1] * 24.0
    if arm in ("survival", "nobody lost"):
        until = min(lost, last) if arm == "survival" else last
        follow_up = FollowUp(death, True) if death <= until else FollowUp(until, False)
        return dataclasses.replace(example, labels={}, follow_up={"death": follow_up})
    labels = {}
    for day in DAYS:
        if death <= min(lost, day * 24):
            labels[f"death_{day}d"] = 1
        elif arm == "alive" or lost >= day * 24:
            labels[f"death_{day}d"] = 0
    return dataclasses.replace(example, labels=labels)


def _config(collection: Collection, arm: str, seed: int, quick: bool) -> fusion.FusionConfig:
    event = "death" if arm in ("survival", "nobody lost") else ""
    outcomes = tuple(
        fusion.OutcomeSpec(f"death_{day}d", f"Death within {day} days", day * 24.0, event) for day in DAYS
    )
    return fusion.FusionConfig(
        outcomes=outcomes, seed=seed, folds=3, epochs=5 if quick else EPOCHS, **dict(collection.settings)
    )


def _page(
    rows: dict[str, list[tuple[Array, Array, list[str]]]],
    stays: int,
    repeats: int,
    seed: int,
    lost_share: float,
    folder: str,
) -> str:
    parts = [
        "## ICU stays: death within 3 to 28 days when patients are lost from sight",
        "",
        f"`python -m benchmarks.study {folder} DIR --part survival --repeats {repeats} --seed {seed}`: "
        f"{stays} stays, 70 % to train, 10 % to tune, 20 % asked about, split {repeats} times; at most "
        f"{EPOCHS} epochs, 3 folds. Days to death are the collection's; a stay without a recorded death "
        "counts as alive at 28 days. The loss is simulated: each stay used for training leaves at a time of "
        f"its own (exponential, mean {LOST:g} days), so that {lost_share:.0%} are lost before death or 28 d. "
        "Scored on complete follow-up. Fallen: share of patients whose risk falls to the next horizon.",
        "",
        "| trained as | days | AUROC [95 %] | Brier | mean risk | observed | ECE | fallen |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, found in rows.items():
        said = np.concatenate([one[0] for one in found])
        truth = np.concatenate([one[1] for one in found])
        groups = [group for one in found for group in one[2]]
        fallen = np.append(np.mean(np.diff(said, axis=1) < -1e-12, axis=0), np.nan)
        for r, day in enumerate(DAYS):
            score = bootstrap(auroc, said[:, r], truth[:, r], groups)
            interval = "" if score["low"] is None else f" [{score['low']:.3f}, {score['high']:.3f}]"
            ece = calibration(said[:, r], truth[:, r])["ece"]
            falls = "" if np.isnan(fallen[r]) else f"{fallen[r]:.1%}"
            off = brier(said[:, r], truth[:, r])
            parts.append(
                f"| {ARMS[arm]} | {day} | {score['value']:.3f}{interval} | {off:.4f} | "
                f"{said[:, r].mean():.3f} | {truth[:, r].mean():.3f} | {ece:.3f} | {falls} |"
            )
    return "\n".join(parts)
