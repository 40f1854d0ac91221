"""Fusion beside a known oracle, on simulated patients: complete, and with 40 % of everything missing.

    python -m benchmarks.oracle                  # 10 seeds; writes docs/benchmarks.md
    python -m benchmarks.oracle --seeds 2 --test 2000
    python -m benchmarks.oracle --peer           # pytorch-widedeep too, in an environment of its own
    python -m benchmarks.oracle --default        # the default fusion alone: far shorter

Encoders are trained once for each seed; the kinds of fusion are fitted on the same out-of-fold evidence.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fusion
from benchmarks import measuring, oracle_peer
from benchmarks.__main__ import keep
from benchmarks.oracle_cohort import CONFIG, MODALITIES, Cohort, simulate
from fusion.batch import Batch, collate
from fusion.bundle import Bundle
from fusion.calibrate import sigmoid
from fusion.conformal import covered
from fusion.metrics import auroc, calibration
from fusion.model import FusionModel
from fusion.patterns import all_subsets, named
from fusion.predict import calibrated
from fusion.second_stage import calibrate_bundle, fit_fusion

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
NAMES = [m.value for m in MODALITIES]
TRAIN, TUNING = 1000, 500
SHARES = (0.0, 0.4)
BOOTSTRAP = 200
PEER_SEEDS = 1  # it takes longer than everything else together
PEER_NOTE = (
    f"pytorch-widedeep 1.7 (TabMlp on the same rows, {PEER_SEEDS} seed): its torchvision fails beside "
    "a CPU torch until two of its operators are declared empty; it knows no missing value, so the mean "
    "with an indicator stands in its place."
)
SUBGROUPS = ("sex female", "sex male", "age older", "age younger")
Found = dict[str, dict[str, list[float]]]  # arm → figure → one number a seed


def main() -> None:
    """Run, print, and keep the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.oracle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--test", type=int, default=5000, help="patients the models are asked about")
    parser.add_argument("--peer", action="store_true", help="also pytorch-widedeep, installed for this run")
    parser.add_argument("--peer-python", type=Path, help="… or an interpreter that has it already")
    parser.add_argument("--default", action="store_true", help="the default fusion alone")
    parser.add_argument("--processes", type=int, default=1, help="of --default")
    parser.add_argument("--dry", action="store_true", help="print only")
    asked = parser.parse_args()
    rounds = (
        default_run(asked.seeds, asked.test, asked.processes)
        if asked.default
        else run(asked.seeds, asked.test, peer=asked.peer, peer_python=asked.peer_python)
    )
    for said in rounds:
        if not asked.dry:  # after every seed: a run that is stopped leaves what it had
            keep("oracle_default" if asked.default else "oracle", said)
    print(said)


def run(seeds: int, test: int, *, peer: bool = False, peer_python: Path | None = None) -> Iterator[str]:
    """The tables as Markdown, after each seed."""
    torch.set_num_threads(1)
    found: dict[float, Found] = {share: defaultdict(lambda: defaultdict(list)) for share in SHARES}
    patterns: dict[float, Found] = {share: defaultdict(lambda: defaultdict(list)) for share in SHARES}
    trouble = ""
    for seed in range(seeds):
        asked = simulate(test, 10_000 + seed, missing=0.0)
        for share in SHARES:
            one, lacks = _round(asked, share, seed)
            for name, risks in one.arms().items():
                _score(found[share][name], risks, one, lacks)
            for row in one.by_pattern():
                for figure, value in row[1].items():
                    patterns[share][row[0]][figure].append(value)
            if (peer or peer_python) and not trouble and seed < PEER_SEEDS:
                try:
                    _score(found[share]["pytorch-widedeep"], _peer(one, lacks, peer_python), one, lacks)
                except oracle_peer.PeerFailed as fault:
                    trouble = str(fault)
            print(f"seed {seed}, {share:.0%} missing", file=sys.stderr, flush=True)
        yield _page(found, patterns, seed + 1, test, trouble)


def default_run(seeds: int, test: int, processes: int = 1) -> Iterator[str]:
    """The default fusion alone, as Markdown after each seed."""
    found: dict[float, Found] = {share: defaultdict(lambda: defaultdict(list)) for share in SHARES}
    patterns: dict[float, Found] = {share: defaultdict(lambda: defaultdict(list)) for share in SHARES}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for seed, told in enumerate(pool.map(partial(_default_round, test), range(seeds))):
            for share, (arms, rows) in told.items():
                for kept, heard in ((found[share], arms), (patterns[share], rows)):
                    for name, figures in heard.items():
                        for figure, values in figures.items():
                            kept[name][figure] += values
            print(f"seed {seed}", file=sys.stderr, flush=True)
            yield _default_page(found, patterns, seed + 1, test)


def _default_round(test: int, seed: int) -> dict[float, tuple[Found, Found]]:
    torch.set_num_threads(1)
    asked = simulate(test, 10_000 + seed, missing=0.0)
    return {share: _default_share(asked, share, seed) for share in SHARES}


def _default_share(asked: Cohort, share: float, seed: int) -> tuple[Found, Found]:
    one, lacks = _round(asked, share, seed)
    arms: dict[str, Callable[[Mask], Array]] = {
        "oracle": lambda present: one.asked.oracle(~present),
        CONFIG.fusion.value: lambda present: one.fused(one.bundle, present),
    }
    found: Found = {}
    for name, ask in arms.items():
        figures: dict[str, list[float]] = defaultdict(list)
        _score(figures, ask, one, lacks)
        found[name] = dict(figures)
    return found, {name: {k: [v] for k, v in figures.items()} for name, figures in one.by_pattern()}


def _default_page(found: dict[float, Found], patterns: dict[float, Found], seeds: int, test: int) -> str:
    told = (
        f"`python -m benchmarks.oracle --default --seeds {seeds} --test {test}`: the cohorts and measures of "
        "the whole run, the default alone."
    )
    parts: list[str] = []
    for share in SHARES:
        named = "inputs missing" if share else "complete"
        parts += ["", f"## The default fusion beside the oracle, {named} (simulated)", "", told]
        plain = {
            arm: ", ".join(f"{name} {_mean(f[f'{name}, as said'])}" for name in SUBGROUPS)
            for arm, f in found[share].items()
        }
        parts += ["", *_share_table(found[share], patterns[share], share)]
        parts += [
            "",
            f"Had no interval been moved for a subgroup: {plain[CONFIG.fusion.value]}; around the best "
            f"possible risks, intervals of the same q: {plain['oracle']}.",
        ]
    parts += ["", f"- {datetime.now(UTC):%Y-%m-%d}; {measuring.machine()}."]
    return "\n".join(parts[1:]) + "\n"


def _title(share: float) -> str:
    return "Complete" if not share else f"{share:.0%} missing"


def _round(asked: Cohort, share: float, seed: int) -> tuple[_Round, Mask]:
    """The training of one seed, and which modalities the patients asked about lack, bool [B, M]."""
    train = simulate(TRAIN, 20_000 + seed, missing=share)
    tuning = simulate(TUNING, 30_000 + seed, missing=share)
    lacks = np.random.default_rng(seed).random((len(asked.labels), len(MODALITIES))) < share
    return _Round(asked, train, tuning, seed), lacks


def _peer(one: _Round, lacks: Mask, python: Path | None) -> Callable[[Mask], Array]:
    """Everything a peer is asked, in one call to its environment."""
    subsets = all_subsets(len(MODALITIES))[1:].numpy() if lacks.any() else np.ones((1, len(MODALITIES)), bool)
    masks = [~lacks, *(np.tile(subset, (len(lacks), 1)) for subset in subsets)]
    risks = oracle_peer.ask(one.train_rows(), np.concatenate([one.asked_rows(m) for m in masks]), python)
    said = {m.tobytes(): part for m, part in zip(masks, np.split(risks, len(masks)), strict=True)}
    return lambda present: said[present.tobytes()]


class _Round:
    """One cohort, one training of the encoders, and everything that is asked of it."""

    def __init__(self, asked: Cohort, train: Cohort, tuning: Cohort, seed: int) -> None:
        self.asked, self.train, self.tuning = asked, train, tuning
        self.config = dataclasses.replace(CONFIG, seed=seed)
        self.bundle = fusion.train(train.examples, tuning.examples, self.config)
        embedder = self.bundle.embedder
        self.batch = collate([e.inputs for e in asked.examples], self.config, embedder)
        self.held = collate([e.inputs for e in tuning.examples], self.config, embedder)
        with torch.no_grad():
            self.evidence = self.bundle.model.encode(self.batch).logits
            told = self.bundle.model.encode(self.held)
        labels = torch.from_numpy(tuning.labels).float()[:, None]
        self.tuned = (told.logits, told.present, labels)
        self.labels = asked.labels

    def arms(self) -> dict[str, Callable[[Mask], Array]]:
        """Name → (present bool [B, M] → risks float64 [B])."""
        fused = {kind: self.refitted(kind) for kind in fusion.FusionKind}
        arms: dict[str, Callable[[Mask], Array]] = {"oracle": lambda present: self.asked.oracle(~present)}
        for kind, bundle in fused.items():
            arms[kind.value] = lambda present, bundle=bundle: self.fused(bundle, present)  # type: ignore[misc]
        arms["boosting on out-of-fold logits"] = self.boosted()
        rows, labels = self.train_rows()
        for name, model in simple_models(self.config.seed).items():
            model.fit(rows, labels)
            arms[name] = lambda present, model=model: np.asarray(  # type: ignore[misc]
                model.predict_proba(self.asked_rows(present))[:, 1]
            )
        return arms

    def refitted(self, kind: fusion.FusionKind) -> Bundle:
        """The same encoders under another fusion."""
        config = dataclasses.replace(self.config, fusion=kind)
        told = self.bundle.out_of_fold
        assert told is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = FusionModel(config)
        state = {
            k: v for k, v in self.bundle.model.state_dict().items() if not k.startswith(("fusion.", "heard"))
        }
        model.load_state_dict({**model.state_dict(), **state})
        fit_fusion(model, *told, self.tuned, config, lambda *_: None)
        subgroups = [e.attributes for e in self.train.examples], [e.attributes for e in self.tuning.examples]
        return calibrate_bundle(model, config, self.bundle.embedder, told, self.tuned, subgroups=subgroups)

    def fused(self, bundle: Bundle, present: Mask) -> Array:
        """Calibrated risks float64 [B] when only this is present."""
        return np.asarray(sigmoid(calibrated(bundle, self.evidence, torch.from_numpy(present)))[:, 0])

    def boosted(self) -> Callable[[Mask], Array]:
        """Gradient boosting on the logits that encoders gave patients they had not seen; NaN where absent."""
        told = self.bundle.out_of_fold
        assert told is not None
        rows = [torch.where(part[1][..., None], part[0], torch.nan)[..., 0] for part in (told, self.tuned)]
        labels = torch.cat([told[2], self.tuned[2]])[:, 0].numpy()
        model = _boosting(self.config.seed)
        model.fit(torch.cat(rows).numpy(), labels)

        def ask(present: Mask) -> Array:
            logits = np.where(present, self.evidence[..., 0].numpy(), np.nan)
            return np.asarray(model.predict_proba(logits)[:, 1], np.float64)

        return ask

    def by_pattern(self) -> list[tuple[str, dict[str, float]]]:
        """Each pattern of present modalities: AUROC of oracle, fusion and best modality, ECE, coverage."""
        found = []
        for subset in all_subsets(len(MODALITIES))[1:].numpy():
            present = np.tile(subset, (len(self.labels), 1))
            best, risks = self.asked.oracle(~present), self.fused(self.bundle, present)
            singles = [self.evidence[:, m, 0].double().numpy() for m in np.flatnonzero(subset)]
            alone = max(singles, key=lambda logits: auroc(logits, self.labels) or 0.0)
            name = named(subset.tolist(), NAMES)
            inside, groups = covered(
                self.bundle.intervals[0],
                risks,
                self.labels,
                patterns=[name] * len(risks),
                attributes=[e.attributes for e in self.asked.examples],
            )
            found.append(
                (
                    name,
                    {
                        "oracle": auroc(best, self.labels) or 0.5,
                        "fused": auroc(risks, self.labels) or 0.5,
                        "best modality": auroc(alone, self.labels) or 0.5,
                        "worse": float(_significantly_worse(risks, alone, self.labels)),
                        "ece": calibration(risks, self.labels)["ece"],
                        "coverage": inside / groups,
                    },
                )
            )
        return found

    def train_rows(self) -> tuple[Array, Array]:
        """For peers that want one plain row: (rows [B, F], NaN = missing; labels [B])."""
        rows = [plain(collate([e.inputs for e in c.examples], self.config, self.bundle.embedder))
                for c in (self.train, self.tuning)]  # fmt: skip
        return np.concatenate(rows), np.concatenate([self.train.labels, self.tuning.labels])

    def asked_rows(self, present: Mask) -> Array:
        """The same for the patients asked about."""
        return plain(hiding(self.batch, present))


def _boosting(seed: int) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.06, min_samples_leaf=10, random_state=seed
    )


def simple_models(seed: int) -> dict[str, Any]:
    """What learns from one plain row a patient, NaN = missing."""
    logistic = make_pipeline(
        SimpleImputer(add_indicator=True), StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)
    )
    return {
        "gradient boosting on embeddings and fields": _boosting(seed),
        "logistic regression on embeddings and fields": logistic,
    }


def hiding(batch: Batch, present: Mask) -> Batch:
    """The batch with only these modalities left, bool [B, M]."""
    here = torch.from_numpy(present)
    tokens = {
        m: batch.tokens[m].hiding(batch.tokens[m].known & here[:, [place]])
        for place, m in enumerate(MODALITIES)
    }
    empty = {
        m: dataclasses.replace(t, values=torch.where(t.known[..., None], t.values, 0.0))
        for m, t in tokens.items()
    }
    return dataclasses.replace(batch, tokens=empty, present=batch.present & here)


def plain(batch: Batch) -> Array:
    """One row a patient, float64 [B, F], NaN = missing: mean embeddings, the record as it is."""
    parts = []
    for modality in MODALITIES:
        tokens = batch.tokens[modality]
        known = tokens.known[..., None]
        if modality in (fusion.Modality.IMAGE, fusion.Modality.TEXT):
            count = known.sum(dim=1)
            mean = torch.where(known, tokens.values, 0.0).sum(dim=1) / count.clamp(min=1)
            parts.append(torch.where(count > 0, mean, torch.nan))
        else:
            parts.append(torch.where(known, tokens.values, torch.nan).flatten(1))
    return np.asarray(torch.cat(parts, dim=1).double().numpy())


def _score(figures: dict[str, list[float]], ask: Callable[[Mask], Array], one: _Round, lacks: Mask) -> None:
    """Natural missingness: AUROC, Brier, ECE, and coverage in each subgroup (of arms with an interval)."""
    risks, labels = ask(~lacks), one.labels
    figures["auroc"].append(auroc(risks, labels) or 0.5)
    figures["brier"].append(float(((risks - labels) ** 2).mean()))
    figures["ece"].append(calibration(risks, labels)["ece"])
    gaps, errors = [], []
    for subset in all_subsets(len(MODALITIES))[1:].numpy():
        present = np.tile(subset, (len(labels), 1))
        if not lacks.any() and not subset.all():
            continue
        said = ask(present)
        gaps.append((auroc(one.asked.oracle(~present), labels) or 0.5) - (auroc(said, labels) or 0.5))
        errors.append(calibration(said, labels)["ece"])
    figures["worst gap"].append(max(gaps))
    figures["worst ece"].append(max(errors))
    bundle = one.bundle
    patterns = np.array([named(row, NAMES) for row in (~lacks).tolist()])
    for subgroup in SUBGROUPS:
        attribute, value = subgroup.split()
        here = np.array([e.attributes[attribute] == value for e in one.asked.examples])
        known = [e.attributes for e in one.asked.examples if e.attributes[attribute] == value]
        inside, groups = covered(
            bundle.intervals[0], risks[here], labels[here], patterns=patterns[here], attributes=known
        )
        figures[subgroup].append(inside / groups)
        inside, groups = covered(bundle.intervals[0], risks[here], labels[here], patterns=patterns[here])
        figures[f"{subgroup}, as said"].append(inside / groups)


def _significantly_worse(risks: Array, alone: Array, labels: Array) -> bool:
    """The paired bootstrap 95 % interval of fused minus best modality lies below 0."""
    if (auroc(risks, labels) or 0) >= (auroc(alone, labels) or 0) - 1e-9:
        return False
    rng, found = np.random.default_rng(0), []
    for _ in range(BOOTSTRAP):
        rows = rng.integers(0, len(labels), len(labels))
        found.append((auroc(risks[rows], labels[rows]) or 0) - (auroc(alone[rows], labels[rows]) or 0))
    return bool(np.percentile(found, 97.5) < 0)


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def _page(
    found: dict[float, Found], patterns: dict[float, Found], seeds: int, test: int, trouble: str
) -> str:
    parts = [
        "## Fusion beside a known oracle (simulated)",
        "",
        f"`python -m benchmarks.oracle --seeds {seeds} --test {test}`: {TRAIN} simulated patients with four "
        f"modalities train, {TUNING} tune, {test} are asked about; mean ± sd over {seeds} seeds. With 40 % "
        "missing, each modality of each patient is absent with chance 0.4, in training and in asking. Gap: "
        "AUROC of the oracle for the same pattern of present modalities minus that of the arm.",
    ]
    for share in SHARES:
        parts += ["", f"### {_title(share)}", ""]
        parts += _share_table(found[share], patterns[share], share)
    if any("pytorch-widedeep" in found[share] for share in SHARES):
        parts += ["", f"- {PEER_NOTE}"]
    if trouble:
        parts += ["", f"- pytorch-widedeep: {trouble}"]
    parts += ["", f"- {datetime.now(UTC):%Y-%m-%d}; {measuring.machine()}."]
    return "\n".join(parts[1:]) + "\n"


def _share_table(found: Found, patterns: Found, share: float) -> list[str]:
    """The arms, the default's coverage, and its patterns."""
    parts = _table("arm", "AUROC", "below the oracle", "worst pattern's gap", "Brier", "ECE",
                    "worst pattern's ECE")  # fmt: skip
    oracle = found["oracle"]["auroc"]
    for arm, f in found.items():
        below = [a - b for a, b in zip(oracle, f["auroc"], strict=False)]
        parts.append(
            _row(arm, _mean(f["auroc"]), _mean(below), *(_short(f[n]) for n in ("worst gap",)),
                 _mean(f["brier"]), _short(f["ece"]), _short(f["worst ece"]))
        )  # fmt: skip
    said = found[CONFIG.fusion.value]
    cells = ", ".join(f"{name} {_mean(said[name])}" for name in SUBGROUPS)
    parts += ["", f"Coverage of the 90 % interval of the default ({CONFIG.fusion.value}): {cells}.", ""]
    parts += _table("present", "oracle", "fused", "best modality", "seeds significantly worse than it",
                    "ECE", "coverage")  # fmt: skip
    for name, f in patterns.items():
        if share or name.count("+") == len(MODALITIES) - 1:
            told = (_short(f[figure]) for figure in ("oracle", "fused", "best modality"))
            parts.append(
                _row(name, *told, str(int(np.sum(f["worse"]))), _short(f["ece"]), _short(f["coverage"]))
            )
    return parts


def _table(*columns: str) -> list[str]:
    return [_row(*columns), f"|{'---|' * len(columns)}"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _short(values: list[float]) -> str:
    return f"{np.mean(values):.3f}"


if __name__ == "__main__":
    main()
