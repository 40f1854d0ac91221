"""Fusion beside a known oracle, on simulated patients: complete, and with 40 % of everything missing.

    python -m benchmarks.oracle                  # 10 seeds; writes docs/benchmarks.md
    python -m benchmarks.oracle --seeds 2 --test 2000
    python -m benchmarks.oracle --peer           # pytorch-widedeep too, in an environment of its own
    python -m benchmarks.oracle --default        # the default fusion alone: far shorter

Encoders are trained once for each seed; the kinds of fusion are fitted on the same out-of-fold evidence.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import measuring, oracle_peer
from benchmarks.__main__ import keep
from benchmarks.oracle_arms import NAMES, Arms, Array, Mask
from benchmarks.oracle_cohort import CONFIG, MODALITIES, Cohort, simulate
from fusion.conformal import covered
from fusion.metrics import auroc, calibration
from fusion.patterns import all_subsets, named

TRAIN, TUNING = 1000, 500
SHARES = (0.0, 0.4)
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


def _round(asked: Cohort, share: float, seed: int) -> tuple[Arms, Mask]:
    """The training of one seed, and which modalities the patients asked about lack, bool [B, M]."""
    train = simulate(TRAIN, 20_000 + seed, missing=share)
    tuning = simulate(TUNING, 30_000 + seed, missing=share)
    lacks = np.random.default_rng(seed).random((len(asked.labels), len(MODALITIES))) < share
    return Arms(asked, train, tuning, seed), lacks


def _peer(one: Arms, lacks: Mask, python: Path | None) -> Callable[[Mask], Array]:
    """Everything a peer is asked, in one call to its environment."""
    subsets = all_subsets(len(MODALITIES))[1:].numpy() if lacks.any() else np.ones((1, len(MODALITIES)), bool)
    masks = [~lacks, *(np.tile(subset, (len(lacks), 1)) for subset in subsets)]
    risks = oracle_peer.ask(one.train_rows(), np.concatenate([one.asked_rows(m) for m in masks]), python)
    said = {m.tobytes(): part for m, part in zip(masks, np.split(risks, len(masks)), strict=True)}
    return lambda present: said[present.tobytes()]


def _score(figures: dict[str, list[float]], ask: Callable[[Mask], Array], one: Arms, lacks: Mask) -> None:
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
    return "\n".join(parts) + "\n"


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
