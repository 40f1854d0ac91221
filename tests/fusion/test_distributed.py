"""Several processes train as one would: `torchrun` with two of them on gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fusion
from fusion import first_stage, parallel
from fusion.encoders.cine import CineEncoder
from tests.fusion import joined_training, training_process

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc-per-node", "2"]


def test_two_processes_reach_the_weights_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Minibatches of 10 rows, shared 5 and 5, labels unevenly: the same steps, so the same weights."""
    alone = training_process.train(None, dropout=0.0, norm=False)
    epochs = capsys.readouterr().out.count("epoch")
    out = tmp_path / "two.safetensors"
    both = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "tests.fusion.training_process", str(out)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr[-3000:]
    assert both.stdout.count("epoch") == epochs, "only the first process tells"
    together = load_file(out)
    assert together.keys() == alone.keys()
    for name, tensor in alone.items():
        assert torch.allclose(tensor, together[name], atol=2e-6), name


def test_two_processes_train_the_product_to_what_one_does(tmp_path: Path) -> None:
    """`fusion.train` whole: unknown labels, class weights, rows drawn alike, dropout, a tuned backbone."""
    found = []
    for launcher in ([], TORCHRUN):
        out = tmp_path / f"{len(found)}.safetensors"
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "tests.fusion.joined_training", str(out)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(load_file(out))
    alone, together = found
    assert alone.keys() == together.keys()
    for case in ("weighed", "accumulated", "sampled", "tuned"):
        assert len(alone[f"{case}/tuning losses"]) >= 12, "it was trained"
    for name, tensor in alone.items():
        limit = 1e-3 if name.startswith("tuned/") else 1e-5  # sums are in another order
        assert torch.allclose(tensor.double(), together[name].double(), rtol=0, atol=limit), name


def test_minibatches_added_up_are_one_large_one_in_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class weights and unknown labels; without what is drawn at random, which comes in another order."""
    monkeypatch.setattr(parallel, "dropout", lambda values, *_: values)
    monkeypatch.setattr(CineEncoder, "least_rows", 20)
    monkeypatch.setattr(first_stage, "LEAST_GAIN", -9.0)
    train, tuning, config = joined_training.cases()["accumulated"]
    config = replace(config, modality_dropout=0.0, folds=2)
    found = [
        fusion.train(train, tuning, replace(config, batch_size=size, accumulate=parts)).model.state_dict()
        for size, parts in ((20, 1), (10, 2), (5, 4), (20, 2))
    ]
    for name, tensor in found[0].items():
        for other in found[1:3]:
            assert torch.allclose(tensor, other[name], atol=2e-5), name
    assert any(not torch.allclose(tensor, found[3][name], atol=1e-3) for name, tensor in found[0].items())


def test_too_few_minibatches_a_step_are_refused() -> None:
    train, tuning, config = joined_training.cases()["weighed"]
    with pytest.raises(
        fusion.BadInput, match=r"accumulate must be .* 1 or more \(minibatches a step\), not 0"
    ):
        fusion.train(train, tuning, replace(config, accumulate=0))


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.joined() as rank:
        assert (rank, parallel.count()) == (0, 1)
        assert parallel.share(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
        assert parallel.drawn(3, torch.arange).tolist() == [0, 1, 2]
        assert parallel.decide(True)
        assert not parallel.decide(False)
        assert parallel.agree(torch.tensor([2.0])).tolist() == [2.0]
