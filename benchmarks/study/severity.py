"""How severe radiologists found a chest radiograph, told by a frozen image encoder and ridge regression."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.study import arms, comparing
from benchmarks.study.comparing import Floats
from benchmarks.study.comparison import FOLDS, QUICK_FOLDS
from benchmarks.study.folds import Rows
from benchmarks.study.keeping import Keeper
from fusion import BadInput, Example, Modality
from fusion.embedding import Embedder
from fusion.research import read_collection
from fusion.train import assign_folds

CONSTANT, VIEW, RIDGE = "a constant (mean of training)", "view only", "frozen encoder + ridge"
PENALTIES = np.logspace(1, 6, 11)  # on standardised numbers of the embedding
INNER = 5  # folds by which the penalty is chosen
Judge = Callable[[Rows, Rows], Floats]  # rows to learn from, rows to judge → scores


@dataclass(frozen=True, slots=True)
class Score:
    """One scale: a column of images.csv, 0 to `most`; `other`, a second reader's column of the same scale."""

    column: str
    label: str
    most: float
    other: str = ""


SCORES = (  # Cohen 2020, arXiv 2005.11856: means of three radiologists; Brixia: a senior and a junior reader
    Score("geographic_extent_mean", "Geographic extent", 8),
    Score("opacity_mean", "Opacity", 6),
    Score("brixia_senior_global", "Brixia score, senior reader", 18, "brixia_junior_global"),
    Score("brixia_junior_global", "Brixia score, junior reader", 18, "brixia_senior_global"),
)


def run(folder: Path, *, repeats: int, seed: int, quick: bool, keep: Path | None = None) -> str:
    """Every scale → Markdown."""
    collection = read_collection(folder)
    pictures = {e.inputs.key: e for task in collection.tasks.values() for e in task.examples}
    read = read_scores(folder / "images.csv")
    config = arms.config_of(collection, next(iter(collection.tasks.values())), quick=quick)
    config = replace(config, modalities=(Modality.IMAGE,))
    version = Embedder(config).versions[Modality.IMAGE]
    keeper = Keeper(keep) if keep else Keeper()
    folds = QUICK_FOLDS if quick else FOLDS
    lines = [
        f"## {collection.name}: how severe radiologists found it",
        "",
        f"    python -m benchmarks.study {collection.name} DIR --part severity --repeats {repeats} "
        f"--seed {seed}{' --quick' if quick else ''}",
        "",
        "Embeddings of a frozen EfficientNet-Lite0 (ImageNet weights), standardised, and ridge regression, "
        f"its penalty chosen by folds of training patients; grouped {folds}-fold cross-validation × "
        f"{repeats}, the same folds for all rows of a table; what is said is cut to the scale. *MAE*: mean "
        "absolute error in points of the scale; *R²*: share of the variance told, 0 for the mean of those "
        "asked; both mean over repeats, with 95 % bootstrap intervals over patients "
        f"({comparing.DRAWS} draws); the difference is paired.",
        "",
    ]
    for score in SCORES:
        known = [key for key in read[score.column] if key in pictures]
        lost = len(read[score.column]) - len(known)
        examples = keeper.filled([pictures[key] for key in known], config)
        values = np.array([read[score.column][key] for key in known])
        embeddings = np.stack([e.inputs.images[0].embeddings[version].mean(axis=0) for e in examples])
        judges = {
            CONSTANT: _constant(values),
            VIEW: _view(examples, values),
            RIDGE: _ridge(embeddings.astype(np.float64), examples, values),
        }
        said = listen(examples, values, judges, score.most, repeats=repeats, folds=folds, seed=seed)
        if score.other and all(key in read[score.other] for key in known):
            said["the other reader"] = [np.array([read[score.other][key] for key in known])]
        lines += [*_table(score, examples, values, said, lost, seed), ""]
    lines += [
        "Published cases of one collection, and few; extent and opacity were scored on PA pictures of "
        "COVID-19 alone, where the view says nothing. The weights have never seen a radiograph.",
    ]
    return "\n".join(lines)


def read_scores(path: Path) -> Mapping[str, Mapping[str, float]]:
    """Column → picture → score, where there is one.

    Raises BadInput for a column that is not there, and for a value off its scale.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, dict[str, float]] = {}
    for score in SCORES:
        if not rows or score.column not in rows[0]:
            raise BadInput(f"{path.name} lacks the column {score.column}")
        found[score.column] = {}
        for row in rows:
            if not (text := row[score.column].strip()):
                continue
            try:
                value = float(text)
            except ValueError:
                value = np.nan
            if not 0 <= value <= score.most:
                raise BadInput(
                    f"{path.name}: {score.column} of {row['image_file']} is {text!r}; expected a number from "
                    f"0 to {score.most:g}"
                )
            found[score.column][row["image_file"]] = value
    return found


def listen(
    examples: Sequence[Example],
    values: Floats,
    judges: Mapping[str, Judge],
    most: float,
    *,
    repeats: int,
    folds: int,
    seed: int,
) -> dict[str, list[Floats]]:
    """What each judge says of every row, having seen nobody of its group: float64 [N], once a repeat."""
    groups = [e.group for e in examples]
    high = (values > np.median(values)).astype(np.float32)[:, None]  # dealt evenly
    heard = {name: [np.full(len(values), np.nan) for _ in range(repeats)] for name in judges}
    for repeat in range(repeats):
        fold_of = assign_folds(groups, high, folds, seed=seed + repeat)
        for fold in range(int(fold_of.max()) + 1):
            held, seen = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
            for name, judge in judges.items():
                heard[name][repeat][held] = np.clip(judge(seen, held), 0, most)
    return heard


def absolute_error(said: Floats, true: Floats, weights: Floats) -> Floats:
    """Mean absolute error per draw, in points."""
    return np.asarray((weights * np.abs(said - true)).sum(axis=1) / weights.sum(axis=1))


def explained(said: Floats, true: Floats, weights: Floats) -> Floats:
    """R² per draw, beside the mean of those drawn."""
    mean = (weights * true).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    left, whole = ((weights * (true - of) ** 2).sum(axis=1) for of in (said, mean))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - left / whole)


def _constant(values: Floats) -> Judge:
    return lambda seen, held: np.full(len(held), values[seen].mean())


def _view(examples: Sequence[Example], values: Floats) -> Judge:
    """The mean of training pictures of the same view; of all, where it is a view nobody had."""
    views = np.array([e.attributes.get("view", "unknown") for e in examples])

    def judge(seen: Rows, held: Rows) -> Floats:
        means = {view: values[seen][views[seen] == view].mean() for view in np.unique(views[seen])}
        return np.array([means.get(view, values[seen].mean()) for view in views[held]])

    return judge


def _ridge(embeddings: Floats, examples: Sequence[Example], values: Floats) -> Judge:
    groups = np.array([e.group for e in examples])

    def judge(seen: Rows, held: Rows) -> Floats:
        inner = GroupKFold(min(INNER, len(set(groups[seen]))))
        model = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()),
            {"ridge__alpha": PENALTIES},
            scoring="neg_mean_squared_error",
            cv=inner,
        )
        model.fit(embeddings[seen], values[seen], groups=groups[seen])
        return np.asarray(model.predict(embeddings[held]), np.float64)

    return judge


def _table(
    score: Score,
    examples: Sequence[Example],
    values: Floats,
    said: Mapping[str, Sequence[Floats]],
    lost: int,
    seed: int,
) -> list[str]:
    groups = [e.group for e in examples]
    weights = comparing.draw(groups, seed)
    errors = {name: comparing.scored(absolute_error, told, values, weights) for name, told in said.items()}
    views = len({e.attributes.get("view") for e in examples})
    lines = [
        f"### {score.label} (`{score.column}`, 0 to {score.most:g}): {len(values)} pictures of "
        f"{len(set(groups))} patients, mean {values.mean():.1f}"
        + (f"; {lost} without a record left out" if lost else ""),
        "",
        "| model | MAE | MAE minus the constant's | R² |",
        "| --- | --- | --- | --- |",
    ]
    for name, told in said.items():
        over = comparing.difference(errors[name], errors[CONSTANT]).signed if name != CONSTANT else "-"
        share = comparing.interval(comparing.scored(explained, told, values, weights))
        called = f"{name} (one view: the constant)" if name == VIEW and views == 1 else name
        lines.append(f"| {called} | {comparing.interval(errors[name])} | {over} | {share} |")
    return lines
