"""Several processes train as one would: `torchrun` with two of them on gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusion import parallel
from tests.fusion import training_process

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


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.joined() as rank:
        assert (rank, parallel.count()) == (0, 1)
        assert parallel.share(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
        assert parallel.gather(torch.arange(3)).tolist() == [[0, 1, 2]]
        assert parallel.agree(torch.tensor([2.0])).tolist() == [2.0]
