"""Simple peers and pytorch-widedeep beside the oracle, on the cohorts of `benchmarks.oracle`.

    python -m benchmarks.oracle_peers --python PEER/bin/python    # an interpreter that has pytorch-widedeep
    python -m benchmarks.oracle_peers                             # installs it for this run

Every arm gets the same plain row a patient: mean embeddings, fields and series summaries, NaN where missing.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks import measuring, oracle, oracle_peer
from benchmarks.__main__ import keep
from benchmarks.oracle_cohort import CONFIG, MODALITIES, Cohort, simulate
from fusion.batch import collate
from fusion.embedding import Embedder
from fusion.metrics import auroc, calibration

Scores = dict[str, dict[float, list[tuple[float, float, float]]]]  # arm → share missing → a seed's figures


def main() -> None:
    """Run, print, keep the table after each seed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracle_peers", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--dry", action="store_true", help="print only")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for said in run(asked.seeds, asked.test, asked.python):
        print(said, flush=True)
        if not asked.dry:
            keep("oracle_peers", said)


def run(seeds: int, test: int, python: Path | None) -> Iterator[str]:
    """The table as Markdown, after each seed."""
    found: Scores = defaultdict(lambda: defaultdict(list))
    trouble = ""
    for seed in range(seeds):
        asked = simulate(test, 10_000 + seed, missing=0.0)
        for share in oracle.SHARES:
            lacks = np.random.default_rng(seed).random((test, len(MODALITIES))) < share
            rows, labels = _learned(seed, share)
            told = _rows(asked, seed, ~lacks)
            risks = {"oracle": asked.oracle(lacks)}
            for name, model in oracle.simple_models(seed).items():
                risks[name] = model.fit(rows, labels).predict_proba(told)[:, 1]
            if not trouble:
                try:
                    risks["pytorch-widedeep (TabMlp)"] = oracle_peer.ask((rows, labels), told, python)
                except oracle_peer.PeerFailed as fault:
                    trouble = str(fault)
            for name, said in risks.items():
                figures = (
                    auroc(said, asked.labels) or 0.5,
                    float(((said - asked.labels) ** 2).mean()),
                    calibration(said, asked.labels)["ece"],
                )
                found[name][share].append(figures)
        yield _page(found, seed + 1, test, trouble)


def _learned(seed: int, share: float) -> tuple[oracle.Array, oracle.Array]:
    """Training and tuning patients together, as the fusion has them."""
    parts = [
        simulate(oracle.TRAIN, 20_000 + seed, missing=share),
        simulate(oracle.TUNING, 30_000 + seed, missing=share),
    ]
    rows = [_rows(part, seed, None) for part in parts]
    return np.concatenate(rows), np.concatenate([part.labels for part in parts])


def _rows(cohort: Cohort, seed: int, present: oracle.Mask | None) -> oracle.Array:
    config = dataclasses.replace(CONFIG, seed=seed)
    batch = collate([e.inputs for e in cohort.examples], config, Embedder(config))
    return oracle.plain(batch if present is None else oracle.hiding(batch, present))


def _page(found: Scores, seeds: int, test: int, trouble: str) -> str:
    lines = [
        "## Peers beside the oracle (simulated)",
        "",
        f"`python -m benchmarks.oracle_peers --seeds {seeds} --test {test}`: the cohorts of "
        "`benchmarks.oracle`, whose tables hold the fusion; here are arms that take one plain row each. "
        "Mean over seeds.",
        "",
        "| arm | AUROC | Brier | ECE | AUROC, 40 % missing | Brier | ECE |",
        f"|{'---|' * 7}",
    ]
    for name, by_share in found.items():
        cells = [f"{value:.3f}" for share in oracle.SHARES for value in np.mean(by_share[share], axis=0)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    note = trouble or (
        "pytorch-widedeep in an environment of its own; it knows no missing value, so the mean with an "
        "indicator stands in its place; 15 epochs of its TabMlp."
    )
    return (
        "\n".join([*lines, "", f"- {note}", f"- {datetime.now(UTC):%Y-%m-%d}; {measuring.machine()}."]) + "\n"
    )


if __name__ == "__main__":
    main()
