"""A training as a process of its own: killed by test_resume, shared by test_distributed.

    python -m tests.fusion.training_process OUT [--checkpoint FILE] [--dropout RATE] [--norm]

Writes the trained weights to OUT; a line on standard output for every epoch that has ended.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fusion import parallel
from fusion.fitting import Fit, fit

ROWS, EPOCHS, EPOCH_S = 48, 14, 0.05


def network(*, dropout: float, norm: bool) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.BatchNorm1d(8) if norm else nn.Identity(),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(8, 1),
    )


def train(checkpoint: Path | None, *, dropout: float, norm: bool, quick: bool = True) -> dict[str, Tensor]:
    """The weights it ends with."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 4, generator=generator)
    y = (x.sum(1) > 0).float()
    y[::5] = torch.nan  # unlabelled: they fall unevenly on the processes
    torch.manual_seed(5)
    module = network(dropout=dropout, norm=norm)

    def loss(index: Tensor) -> tuple[Tensor, Tensor]:
        known = ~torch.isnan(y[index])
        each = F.binary_cross_entropy_with_logits(
            module(x[index]).squeeze(1), torch.nan_to_num(y[index]), reduction="none"
        )
        return (each * known).sum() / known.sum().clamp(min=1), known.sum()

    def tuning_loss() -> float:
        known = ~torch.isnan(y)
        return float(F.binary_cross_entropy_with_logits(module(x[known]).squeeze(1), y[known]))

    def tell(epoch: int, *_: object) -> None:
        print(f"epoch {epoch}", flush=True)
        time.sleep(0 if quick else EPOCH_S)

    how = Fit(EPOCHS, 4, 10, 0.02, 1)
    fit(module, loss, tuning_loss, rows=ROWS, how=how, tell=tell, checkpoint=checkpoint)
    return module.state_dict()


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("out", type=Path)
    asked.add_argument("--checkpoint", type=Path)
    asked.add_argument("--dropout", type=float, default=0.0)
    asked.add_argument("--norm", action="store_true")
    given = asked.parse_args()
    torch.set_num_threads(1)
    with parallel.joined() as rank:
        weights = train(given.checkpoint, dropout=given.dropout, norm=given.norm, quick=not given.checkpoint)
        if rank == 0:
            save_file(weights, given.out)


if __name__ == "__main__":
    main()
