"""A training killed with SIGKILL goes on where it was, and ends with the very same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.fusion.training_process"]


def start(*given: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *given, "--dropout", "0.3", "--norm"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_killed_in_the_middle_it_resumes_to_the_same_weights(tmp_path: Path) -> None:
    resumed = tmp_path / "resumed.safetensors"
    file = str(tmp_path / "fit.safetensors")
    killed = start(str(resumed), "--checkpoint", file)
    assert killed.stdout is not None
    told = []
    for line in killed.stdout:
        told.append(line)
        if line.startswith("epoch 5"):
            os.kill(killed.pid, signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL
    assert not resumed.exists()
    again, _ = start(str(resumed), "--checkpoint", file).communicate(timeout=120)
    first = again.split("\n")[0]
    assert first in ("epoch 5", "epoch 6"), "it went on where it was"
    whole = tmp_path / "whole.safetensors"
    start(str(whole)).communicate(timeout=120)  # a process like the other one: libraries start alike in it
    one, other = load_file(whole), load_file(resumed)
    assert one.keys() == other.keys()
    assert "1.running_mean" in one, "running statistics of normalisation are part of it"
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
