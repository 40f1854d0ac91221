"""Real lung ultrasound clips: recurrent networks and attention over frames beside a single frame.

Two ways. In `fusion.train` a course over frames comes after a linear model and is heard only where it helps;
how often it is, is told. And each network by itself, trained on every fold whatever it is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fusion
from benchmarks.study import arms, comparing
from benchmarks.study.comparison import FOLDS, QUICK_FOLDS
from benchmarks.study.folds import Arm, Rows, Said, labels_of, listen
from benchmarks.study.keeping import Keeper
from fusion import Bundle, CinePooling, Example, FusionConfig, Modality
from fusion.batch import Tokens, collate
from fusion.embedding import Embedder
from fusion.encoders.base import Projection, means
from fusion.encoders.cine import COMPONENTS, HIDDEN, Course
from fusion.examples import assign_folds
from fusion.fitting import Fit, fit
from fusion.losses import masked_bce
from fusion.predict import risks as predict_risks
from fusion.research import Task, read_collection
from fusion.train import settled

FRAME = "single frame (the middle one)"
NAMES = {
    CinePooling.FRAME: FRAME,
    CinePooling.MEAN: "mean of the frames",
    CinePooling.GRU: "CNN + GRU",
    CinePooling.LSTM: "CNN + LSTM",
    CinePooling.ATTENTION: "CNN + temporal attention",
}
COURSES = (CinePooling.GRU, CinePooling.LSTM, CinePooling.ATTENTION)
WATCHED, EPOCHS, DECAY = 3, 80, 1e-2  # parts of a fold that stop a network in turn; epochs; weight decay


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
        "95 % bootstrap interval over groups, and paired difference from the single frame. *Heard*: in so "
        "many models a course over frames was trained and kept, because it helped patients set aside; in the "
        "others the model is mean and movement, and frames weigh alike. A course is not tried where an inner "
        "fold would leave it fewer than 30 clips. *By itself*: the network over the frames alone, always "
        "trained, "
        f"on each fold the mean of {WATCHED} that were stopped by different groups.",
        "",
    ]
    for task in collection.tasks.values():
        config = arms.config_of(collection, task, quick=quick)
        examples = keeper.filled(task.examples, config)
        heard = dict[str, list[bool]]()
        each: dict[str, Arm] = {
            name: _whole(examples, replace(config, cine_pooling=pooling), name, heard)
            for pooling, name in NAMES.items()
        }
        for pooling in COURSES:
            name = f"{NAMES[pooling]}, by itself"
            each[name] = by_itself(examples, config, pooling, name, epochs=3 if quick else EPOCHS)
        lines += [*_table(task, examples, each, heard, repeats=repeats, seed=seed, quick=quick), ""]
    return "\n".join([*lines, *(f"- {caveat}" for caveat in collection.caveats[:1])])


def is_heard(bundle: Bundle) -> bool:
    """Whether the course over frames says anything in this model."""
    said = bundle.model.encoder(Modality.CINE).get_submodule("said")
    return bool((said.get_parameter("weight") != 0).any())


def _whole(examples: Sequence[Example], config: FusionConfig, name: str, heard: dict[str, list[bool]]) -> Arm:
    """`fusion.train`; notes whether the course is heard."""
    with settled(config):
        batch = collate([e.inputs for e in examples], config, Embedder(config))

    def arm(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
        settings = replace(config, seed=seed)
        bundle = fusion.train(*arms.split([examples[i] for i in seen], settings), settings)
        heard.setdefault(name, []).append(is_heard(bundle))
        return {name: Said(predict_risks(bundle, batch.rows(torch.from_numpy(held)))[:, 0])}

    return arm


class Alone(nn.Module):
    """A course over frames and nothing else: Tokens → logit [B, 1]."""

    def __init__(self, pooling: CinePooling, base: float) -> None:
        super().__init__()
        self.course = Course(pooling)
        self.said = nn.Linear(HIDDEN, 1)
        nn.init.constant_(self.said.bias, base)

    def forward(self, tokens: Tokens) -> Tensor:
        """tokens: projected frames, zero where hidden."""
        assert tokens.times_ms is not None
        seconds = torch.where(tokens.known, tokens.times_ms, 0.0) / 1000
        told: Tensor = self.said(self.course(tokens.values, tokens.known, seconds)[0])
        return told


def by_itself(
    examples: Sequence[Example], config: FusionConfig, pooling: CinePooling, name: str, *, epochs: int
) -> Arm:
    """The network alone, stopped by groups set aside: the mean logit of `WATCHED` of them."""
    labels = labels_of(examples, config.outcomes[0].name)
    with settled(config):
        tokens = collate([e.inputs for e in examples], config, Embedder(config)).tokens[Modality.CINE]

    def arm(seen: Rows, held: Rows, seed: int) -> Mapping[str, Said]:
        projection = Projection(tokens.values.shape[2], COMPONENTS)
        mine = tokens.rows(torch.from_numpy(seen))
        projection.fit(means(mine.values, mine.known), mine.values[mine.known])
        shown = torch.where(tokens.known[..., None], projection(tokens.values), 0.0)
        projected = Tokens(shown, tokens.known, tokens.times_ms)
        groups = [examples[i].group for i in seen]
        part = assign_folds(groups, labels[seen][:, None].astype(np.float32), WATCHED, seed)
        said = [
            _trained(projected, labels, seen[part != w], seen[part == w], pooling, seed + w, epochs)
            for w in range(WATCHED)
        ]
        with torch.no_grad():
            logits = torch.stack([one(projected.rows(torch.from_numpy(held)))[:, 0] for one in said]).mean(0)
        return {name: Said(torch.sigmoid(logits).double().numpy())}

    return arm


def _trained(
    tokens: Tokens,
    labels: np.ndarray,
    fitted: Rows,
    watched: Rows,
    pooling: CinePooling,
    seed: int,
    epochs: int,
) -> Alone:
    torch.manual_seed(seed)
    rate = float(np.clip(labels[fitted].mean(), 0.02, 0.98))
    network = Alone(pooling, float(np.log(rate / (1 - rate))))
    sides = [
        (tokens.rows(torch.from_numpy(rows)), torch.from_numpy(labels[rows][:, None]).float())
        for rows in (fitted, watched)
    ]
    (shown, known), (aside, told) = sides

    def loss(index: Tensor) -> Tensor:
        return masked_bce(network(shown.rows(index)), known[index])

    how = Fit(epochs, 20, 16, 3e-3, seed, weight_decay=DECAY)
    fit(
        network, loss, lambda: float(masked_bce(network(aside), told)), rows=len(known), how=how, tell=_silent
    )
    network.eval()
    return network


def _silent(epoch: int, epochs: int, training: float, watched: float | None) -> None:
    """Nobody listens to single networks."""


def _table(
    task: Task,
    examples: Sequence[Example],
    each: dict[str, Arm],
    kept: Mapping[str, list[bool]],
    *,
    repeats: int,
    seed: int,
    quick: bool,
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
        "| model | AUROC | minus the single frame | heard |",
        "| --- | --- | --- | --- |",
    ]
    courses = {NAMES[pooling] for pooling in COURSES}
    for arm, scores in found.items():
        over = "-" if arm == FRAME else comparing.difference(scores, found[FRAME]).signed
        often = f"{sum(kept[arm])} of {len(kept[arm])}" if arm in courses else "-"
        lines.append(f"| {arm} | {comparing.interval(scores)} | {over} | {often} |")
    return lines
