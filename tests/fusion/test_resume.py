"""A training killed with SIGKILL goes on where it was, and ends with the very same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusion.imaging.detect import train_detector
from fusion.imaging.ejection import train_ejection
from fusion.imaging.segment import SegmenterConfig, train_segmenter
from fusion.imaging.synthesise import SIDE, train_gan
from tests.fusion import test_detection_training, test_segmenting

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


class Killed(Exception):
    """In place of SIGKILL: whatever was not written by then is lost."""


def segmenter(**given: Any) -> torch.nn.Module:
    rng = np.random.default_rng(0)
    drawn = [test_segmenting.disc(rng) for _ in range(12)]
    config = SegmenterConfig(structures=("disc",), widths=(4, 8), size=16, epochs=5, batch_size=4)
    return train_segmenter(drawn[:8], drawn[8:], config, **given).network


def detector(**given: Any) -> torch.nn.Module:
    config = replace(test_detection_training.CONFIG, epochs=5, copies=2)
    drawn = test_detection_training.pictures(10, 1)
    return train_detector(drawn[:6], config, tuning=drawn[6:], **given).head


def ejection(**given: Any) -> torch.nn.Module:
    clips = test_segmenting.clips(14, 0)
    return train_ejection(clips[:10], clips[10:], epochs=5, **given)


def gan(**given: Any) -> torch.nn.Module:
    pictures = np.random.default_rng(0).random((40, 1, SIDE, SIDE)).astype(np.float32)
    return train_gan(pictures, np.repeat([0, 1], 20), steps=5, batch=4, **given)


@pytest.mark.parametrize("train", [segmenter, detector, ejection, gan])
def test_imaging_networks_go_on_to_the_same_weights(
    train: Callable[..., torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.imaging.synthesise.EVERY", 1)
    file, told = tmp_path / "training.safetensors", []

    def until_third(step: int, *_: object) -> None:
        told.append(step)
        if step == 2:
            raise Killed

    with pytest.raises(Killed):
        train(tell=until_third, checkpoint=file)
    told.clear()
    resumed = train(tell=lambda step, *_: told.append(step), checkpoint=file)
    assert told[0] == 2, "it went on where it was"
    whole = train()
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
