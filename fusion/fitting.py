"""The one training loop: minibatches, early stopping on the tuning loss, best state kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LINEAR = 5.0  # the linear part of a trunk is convex: it may take larger steps


@dataclass(frozen=True, slots=True)
class Fit:
    """epochs at most; patience in epochs without a better tuning loss; batch_size in rows."""

    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    seed: int


def fit(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    tuning_loss: Callable[[], float | None],
    *,
    rows: int,
    how: Fit,
    tell: Callable[[int, int, float, float | None], None],
) -> None:
    """Minimise `loss(row indices)` over the module's parameters; leaves the best state in the module.

    tuning_loss  None = too little to look at: then all epochs are run and the last state stands
    tell         called after each epoch with (epoch, epochs, training loss, tuning loss); may raise to stop
    """
    linear = [p for name, p in module.named_parameters() if ".linear." in name]
    bent = [p for name, p in module.named_parameters() if ".linear." not in name]
    optimiser = torch.optim.Adam(
        [{"params": bent, "lr": how.learning_rate}, {"params": linear, "lr": LINEAR * how.learning_rate}],
        fused=True,
    )
    generator = torch.Generator().manual_seed(how.seed)
    best, best_state, waited = math.inf, None, 0
    for epoch in range(how.epochs):
        module.train()
        total = 0.0
        order = torch.randperm(rows, generator=generator) if how.batch_size < rows else torch.arange(rows)
        for index in order.split(how.batch_size):
            optimiser.zero_grad()
            value = loss(index)
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            optimiser.step()
            total += float(value.detach()) * len(index)
        module.eval()
        with torch.no_grad():
            current = tuning_loss()
        tell(epoch, how.epochs, total / max(1, rows), current)
        if current is None:
            continue
        if current < best - 1e-5:
            best, best_state, waited = current, copy.deepcopy(module.state_dict()), 0
        else:
            waited += 1
            if waited >= how.patience:
                break
    if best_state is not None:
        module.load_state_dict(best_state)
