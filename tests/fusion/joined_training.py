"""Whole trainings of `fusion.train`, by one process or shared by those that torchrun started.

    python -m tests.fusion.joined_training OUT

Writes to OUT, for each case, the weights it ended with and the tuning loss after every epoch.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import fusion
from fusion import first_stage, parallel
from fusion.encoders.cine import CineEncoder
from fusion.encoders.image import ImageEncoder
from fusion.encoders.series import SeriesEncoder
from tests.fusion import simulated, test_finetuning

FEW = 20  # patients on whom every encoder is trained here, and what was trained is kept


def cases() -> dict[str, tuple[list[fusion.Example], list[fusion.Example], fusion.FusionConfig]]:
    """Class weights, with a tenth of one outcome's labels unknown; that in two minibatches a step; rows drawn
    alike; pictures tuned. Minibatches of 15 rows or 7 fall unevenly on two processes."""
    train, tuning = simulated.examples(70, 1), simulated.examples(30, 2)
    weighed = simulated.make_config(
        modalities=(fusion.Modality.SERIES, fusion.Modality.CINE, fusion.Modality.IMAGE),
        batch_size=15,
        folds=2,
        epochs=3,
        patience=9,
        extra={"voice_margin": -9.0},  # what was trained is heard
    )
    cine = replace(weighed, modalities=(fusion.Modality.CINE,), batch_size=7, accumulate=2)
    series = replace(
        weighed,
        modalities=(fusion.Modality.SERIES,),
        outcomes=simulated.OUTCOMES[:1],
        imbalance=fusion.Imbalance.BALANCED_SAMPLING,
    )
    tuned = replace(
        test_finetuning.CONFIG, finetune_epochs=4, batch_size=15, augment=fusion.Augment.ANY_WAY_UP
    )
    return {
        "weighed": (train, tuning, weighed),
        "accumulated": (train, tuning, cine),
        "sampled": (train, tuning, series),
        "tuned": (test_finetuning.TRAIN, test_finetuning.TUNING, tuned),
    }


def train() -> dict[str, Tensor]:
    """Everything that each case ended with."""
    found: dict[str, Tensor] = {}
    for case, (examples, tuning, config) in cases().items():
        losses: list[float] = []

        def tell(at: fusion.Progress, losses: list[float] = losses) -> bool:
            if at.tuning_loss is not None:
                losses.append(at.tuning_loss)
            return True

        bundle = fusion.train(examples, tuning, config, progress=tell)
        found |= {f"{case}/{name}": tensor for name, tensor in bundle.model.state_dict().items()}
        if bundle.embedder.tuned is not None:
            network = bundle.embedder.tuned.network.state_dict()
            found |= {f"{case}/network.{name}": tensor for name, tensor in network.items()}
        found[f"{case}/tuning losses"] = torch.tensor(losses)
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    first_stage.LEAST_GAIN = -9.0
    for encoder in (CineEncoder, ImageEncoder, SeriesEncoder):
        encoder.least_rows = FEW
    with parallel.joined() as rank:
        weights = train()
        if rank == 0:
            save_file(weights, Path(sys.argv[1]))
