"""pytorch-widedeep, asked in an environment of its own: made for the run, or any interpreter that has it.

Its torchvision is built for CUDA and lacks its operators beside a CPU torch; two empty declarations let it
import (nothing here uses them). It knows no missing value: absent numbers become the training mean with an
indicator beside them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PACKAGES = ("pytorch-widedeep", "torch==2.13.0")
MOST_SECONDS = 1800
PROGRAM = """
import sys
import numpy as np, pandas as pd, torch
from torch import library as operators
absent = operators.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    absent.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from pytorch_widedeep import Trainer
from pytorch_widedeep.models import TabMlp, WideDeep
from pytorch_widedeep.preprocessing import TabPreprocessor
torch.set_num_threads(1)
torch.manual_seed(0)
held = np.load(sys.argv[1])
columns = [f"x{i}" for i in range(held["rows"].shape[1])]
made = TabPreprocessor(continuous_cols=columns, scale=True, verbose=0)
rows = made.fit_transform(pd.DataFrame(held["rows"], columns=columns))
asked = made.transform(pd.DataFrame(held["asked"], columns=columns))
deep = TabMlp(column_idx=made.column_idx, continuous_cols=columns, mlp_hidden_dims=[64, 32], mlp_dropout=0.3)
trainer = Trainer(WideDeep(deeptabular=deep), objective="binary", verbose=0)
trainer.fit(X_tab=rows, target=held["labels"], n_epochs=15, batch_size=64)
np.save(sys.argv[2], trainer.predict_proba(X_tab=asked)[:, 1])
"""


class PeerFailed(Exception):
    """The peer could not be installed or did not answer; says why."""


def ask(train: tuple[Array, Array], asked: Array, python: Path | None = None) -> Array:
    """Rows float64 [B, F] (NaN = missing) and labels [B], rows asked about [N, F] → risks float64 [N]."""
    rows, labels = train
    mean, kept = np.nanmean(rows, axis=0), np.isnan(rows).any(axis=0)

    def filled(given: Array) -> Array:
        return np.concatenate([np.where(np.isnan(given), mean, given), np.isnan(given)[:, kept]], axis=1)

    with tempfile.TemporaryDirectory() as scratch:
        given, said = Path(scratch) / "rows.npz", Path(scratch) / "risks.npy"
        np.savez(given, rows=filled(rows), labels=labels.astype(int), asked=filled(asked))
        _run([str(python or installed()), "-c", PROGRAM, str(given), str(said)])
        return np.asarray(np.load(said), np.float64)


@lru_cache(maxsize=1)
def installed() -> Path:
    """An interpreter that has the peer, in a temporary folder. Raises PeerFailed."""
    folder = Path(tempfile.mkdtemp(prefix="peer-"))
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    _run([str(python), "-m", "pip", "install", "-q", *PACKAGES])
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerFailed(f"could not be asked: {last}")
