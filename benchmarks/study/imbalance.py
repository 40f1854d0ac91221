"""Seven very unequal classes of skin lesions: what each remedy does, on the same lesions held out."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fusion import Example, load_backbone
from fusion.augment import Augmentation
from fusion.balance import balanced_rows, class_weights, focal_loss, prior_corrected
from fusion.examples import assign_folds
from fusion.fitting import Fit, fit
from fusion.imaging.synthesise import SIDE, synthesise, train_gan
from fusion.research import read_collection
from fusion.research.skin_ham10000 import DIAGNOSES
from fusion.serving import serve

RARE = ("df", "vasc", "akiec")  # the three smallest classes
SIZE, COPIES = 160, 3


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Embeddings [N, D], classes [N]."""

    x: Tensor
    y: Tensor

    def with_(self, x: np.ndarray, y: np.ndarray) -> Rows:
        """These rows and others."""
        return Rows(torch.cat([self.x, torch.from_numpy(x)]), torch.cat([self.y, torch.from_numpy(y)]))


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """One split by lesion (three fifths, a fifth, a fifth); every remedy learns from the same lesions."""
    collection = read_collection(folder, "skin_ham10000")
    examples = collection.tasks["malignant"].examples[: 700 if quick else None]
    classes = np.array([DIAGNOSES.index(collection.extra["dx"][e.inputs.key]) for e in examples])
    folds = assign_folds([e.group for e in examples], np.eye(7, dtype=np.float32)[classes], 5, seed)
    parts = {"train": folds > 1, "tuning": folds == 1, "held": folds == 0}
    with tempfile.TemporaryDirectory() as kept:
        embed = _Embedder(Path(kept))
        whole = np.concatenate([embed(_picture(e)) for e in examples])
        rows = {
            name: Rows(torch.from_numpy(whole[here]), torch.from_numpy(classes[here]))
            for name, here in parts.items()
        }
        told = [e for e, here in zip(examples, parts["train"], strict=True) if here]
        moved = _augmented(told, rows["train"].y.numpy(), embed, seed)
        made = _made(told, rows["train"].y.numpy(), embed, seed, quick=quick)
    mean, spread = rows["train"].x.mean(0), rows["train"].x.std(0).clamp(min=1e-4)
    counts = np.bincount(rows["train"].y.numpy(), minlength=7)
    arms: dict[str, tuple[Rows, str]] = {
        "none": (rows["train"], ""),
        "class weights": (rows["train"], "weights"),
        "focal loss": (rows["train"], "focal"),
        "balanced sampling": (rows["train"], "sampling"),
        f"augmented pictures of the three rarest ({COPIES} each)": (rows["train"].with_(*moved), ""),
        "GAN pictures of the three rarest": (rows["train"].with_(*made), ""),
    }
    said = {}
    for name, (train, how) in arms.items():
        parts_ = [Rows((r.x - mean) / spread, r.y) for r in (train, rows["tuning"], rows["held"])]
        said[name] = np.mean([_fitted(*parts_, how, counts, seed + k) for k in range(repeats)], axis=0)
        print(name, file=sys.stderr, flush=True)
    return _page(said, rows["held"].y.numpy(), counts, len(made[1]), repeats)


class _Embedder:
    def __init__(self, folder: Path) -> None:
        self._backbone = serve(load_backbone("efficientnet_lite0"), folder)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return self._backbone.embed(values, SIZE)


def _picture(example: Example) -> np.ndarray:
    return example.inputs.images[0].read().values


def _augmented(
    told: Sequence[Example], classes: np.ndarray, embed: Callable[[np.ndarray], np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    change, generator = Augmentation(flips=True, degrees=180), torch.Generator().manual_seed(seed)
    wanted = [DIAGNOSES.index(name) for name in RARE]
    x, y = [], []
    for example, kind in zip(told, classes, strict=True):
        if kind in wanted:
            shown = torch.from_numpy(_picture(example)).repeat(COPIES, 1, 1, 1)
            x.append(embed(change(shown, generator).numpy()))
            y += [kind] * COPIES
    return np.concatenate(x), np.array(y)


def _made(
    told: Sequence[Example],
    classes: np.ndarray,
    embed: Callable[[np.ndarray], np.ndarray],
    seed: int,
    *,
    quick: bool,
) -> tuple[np.ndarray, np.ndarray]:
    kinds = [k for k in (DIAGNOSES.index(name) for name in RARE) if int((classes == k).sum()) >= 20]
    here = np.isin(classes, kinds)
    small = np.concatenate(
        [
            nn.functional.interpolate(
                torch.from_numpy(_picture(e)), size=(SIDE, SIDE), mode="bilinear", antialias=True
            ).numpy()
            for e, wanted in zip(told, here, strict=True)
            if wanted
        ]
    )
    local = np.array([kinds.index(k) for k in classes[here]])
    maker = train_gan(small, local, steps=50 if quick else 1200, seed=seed)
    made = synthesise(
        maker, {place: COPIES * int((local == place).sum()) for place in range(len(kinds))}, seed=seed
    )
    return embed(made.values), np.array([kinds[k] for k in made.classes])


def _fitted(train: Rows, tuning: Rows, held: Rows, how: str, counts: np.ndarray, seed: int) -> np.ndarray:
    """Class chances of the held-out lesions, float64 [N, 7], under the classes' true shares."""
    torch.manual_seed(seed)
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(train.x.shape[1], 64), nn.GELU(), nn.Linear(64, 7))
    generator = torch.Generator().manual_seed(seed)
    weights = (
        class_weights(np.maximum(np.bincount(train.y.numpy(), minlength=7), 1)) if how == "weights" else None
    )
    true = torch.from_numpy(counts / counts.sum()).float()
    bent = how in ("weights", "sampling")
    trained = torch.full((7,), 1 / 7) if bent else torch.bincount(train.y, minlength=7) / len(train.y)

    def loss(index: Tensor) -> Tensor:
        if how == "sampling":
            index = balanced_rows(train.y.numpy(), len(index), generator)
        gamma = 2.0 if how == "focal" else 0.0
        penalty = 1e-4 * sum(p.square().sum() for p in head.parameters())
        return focal_loss(head(train.x[index]), train.y[index], gamma=gamma, weight=weights) + penalty

    def tuning_loss() -> float:
        corrected = prior_corrected(head(tuning.x), trained.clamp(min=1e-6), true)
        return float(nn.functional.cross_entropy(corrected, tuning.y))

    fit(
        head,
        loss,
        tuning_loss,
        rows=len(train.y),
        how=Fit(40, 6, 64, 1e-3, seed),
        tell=lambda *_: None,
        generators=(generator,),
    )
    with torch.no_grad():
        logits = prior_corrected(head.eval()(held.x), trained.clamp(min=1e-6), true)
    return np.asarray(torch.softmax(logits, dim=1).double().numpy())


def _page(said: dict[str, np.ndarray], true: np.ndarray, counts: np.ndarray, made: int, repeats: int) -> str:
    shares = counts / counts.sum()
    told = ", ".join(f"{name} {count}" for name, count in zip(DIAGNOSES, counts, strict=True))
    plain = _balanced((next(iter(said.values())) / shares).argmax(axis=1), true)
    lines = [
        "## skin_ham10000: seven unequal classes, one remedy at a time",
        "",
        f"`python -m benchmarks.study skin_ham10000 DIR --part imbalance --repeats {repeats}`",
        "",
        f"{len(true)} lesions held out, a small network on frozen EfficientNet-Lite0 embeddings ({SIZE} px), "
        f"the mean of the repeats' chances. Training counts: {told}. The GAN (64 px, 1,200 steps) made "
        f"{made} pictures. Chances are put back to the true class shares; the class answered is the one "
        "whose chance is highest beyond its share, as who must not miss rare ones would ask. Brackets: 95 % "
        "bootstrap over lesions; the difference is to *none*, paired.",
        "",
        "| remedy | balanced accuracy | difference | macro AUROC | recall df | vasc | akiec | Brier, all |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(true), len(true)) for _ in range(400)]
    base, better = None, []
    for name, chances in said.items():
        found = (chances / shares).argmax(axis=1)
        accuracy = _balanced(found, true)
        spread = np.array([_balanced(found[d], true[d]) for d in draws])
        base = spread if base is None else base
        low, high = np.percentile(spread, (2.5, 97.5))
        gap = np.percentile(spread - base, (2.5, 97.5))
        better += [name] if gap[0] > 0 else []
        recalls = [(found[true == k] == k).mean() for k in (DIAGNOSES.index(n) for n in RARE)]
        brier = ((chances - np.eye(7)[true]) ** 2).sum(axis=1).mean()
        lines.append(
            f"| {name} | {accuracy:.3f} [{low:.3f}, {high:.3f}] | {accuracy - plain:+.3f} "
            f"[{gap[0]:+.3f}, {gap[1]:+.3f}] | {_macro(chances, true):.3f} | "
            + " | ".join(f"{r:.2f}" for r in recalls)
            + f" | {brier:.3f} |"
        )
    helped = ", ".join(better) or "no remedy"
    lines += [
        "",
        f"Better than none with the interval excluding 0: {helped}. The others are not shown to help.",
    ]
    return "\n".join(lines)


def _balanced(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([(found[true == k] == k).mean() for k in np.unique(true)]))


def _macro(chances: np.ndarray, true: np.ndarray) -> float:
    from fusion.metrics import auroc

    scores = [auroc(chances[:, k], (true == k).astype(float)) for k in np.unique(true)]
    return float(np.mean([s for s in scores if s is not None]))
