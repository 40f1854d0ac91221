"""The one training loop: minibatches, early stopping, best state kept. Two things that are trained here
cannot go through it: a GAN (two networks in turns) and DP-SGD (its noise is in every step).

It can stop and go on: with a `checkpoint`, a process killed at any moment resumes to the same weights, bit
for bit, as if it had never been killed. Started by `torchrun`, several processes share every minibatch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion import checkpoints, parallel
from fusion.errors import BadInput, Cancelled

LINEAR = 5.0  # the linear part of a trunk is convex: it may take larger steps
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Loss = Callable[[Tensor], "Tensor | tuple[Tensor, Tensor]"]
Tell = Callable[[int, int, float, float | None], None]
Rates = Sequence[tuple[Iterable[nn.Parameter], float]]


@dataclass(frozen=True, slots=True)
class Fit:
    """How a module is fitted.

    epochs at most; patience in epochs without a better tuning loss; batch_size in rows of a minibatch
    accumulate    minibatches whose gradients make one step: batches larger than memory holds
    clip          largest norm of a step's gradient
    weight_decay  decoupled (AdamW), of every parameter
    device        "cpu", "cuda", "cuda:1", …; "auto" = the GPU where there is one
    precision     "float32", "bfloat16", "float16" (GPU only, with loss scaling), or "auto": bfloat16 on a GPU
                  that has it, float16 on one that has not, float32 on a CPU
    save_every    epochs between two checkpoints
    """

    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    seed: int
    accumulate: int = 1
    clip: float = 5.0
    weight_decay: float = 0.0
    device: str = "cpu"
    precision: str = "float32"
    save_every: int = 1


@dataclass(frozen=True, slots=True)
class Fitted:
    """How it went: epochs run, the best of them (counted from 1) and its tuning loss; None without one."""

    epochs: int
    best_epoch: int | None
    best_loss: float | None


def fit(
    module: nn.Module,
    loss: Loss,
    tuning_loss: Callable[[], float | None],
    *,
    rows: int,
    how: Fit,
    tell: Tell,
    rates: Rates | None = None,
    at_epoch: Callable[[int], None] | None = None,
    generators: Sequence[torch.Generator] = (),
    checkpoint: Path | None = None,
    belongs_to: str = "",
) -> Fitted:
    """Minimise `loss(row indices)` over the module's parameters; leaves the best state in the module.

    loss         mean over the rows of that index; or (mean, weight), where rows weigh differently or some
                 count for nothing (several minibatches or processes need it to add up to the mean over all).
                 It moves what it reads to the module's device, and draws by `parallel.drawn`
    tuning_loss  None = too little to look at: then all epochs are run and the last state stands
    tell         called after each epoch with (epoch, epochs, training loss, tuning loss); may raise to stop
    rates        (parameters, learning rate) of each group; default: all, linear parts five times as fast
    at_epoch     called before each epoch, in training mode: may freeze and unfreeze parameters
    generators   random generators that `loss` draws from, so that a resumed run draws what it would have
    checkpoint   file that says where this fit stands; the fit goes on from there when it is this one's
    belongs_to   what else decides the course (the data), so that a file of another training is not used
    """
    device = settle_device(how.device)
    module.to(device)
    parallel.align(module)
    course = _Course(module, how, rates, device, tuple(generators))
    key = "" if checkpoint is None else _key(module, how, rows, belongs_to)
    if checkpoint is not None and (held := checkpoints.read(checkpoint, key)) is not None:
        course.resume(held)
    while not course.is_over:
        epoch = course.epoch
        module.train()
        if at_epoch is not None:
            at_epoch(epoch)
        told = course.pass_over(rows, loss)
        parallel.align(module)  # running statistics differ between processes
        course.align_random()
        module.eval()
        with torch.no_grad(), course.autocast():
            current = tuning_loss()
        course.note(current)
        _tell(tell, epoch, how.epochs, told, current)
        if checkpoint is not None and course.epoch % max(1, how.save_every) == 0 and not course.is_over:
            course.save(checkpoint, key)
    fitted = course.finish()
    if checkpoint is not None:
        course.save(checkpoint, key)
    module.to("cpu")
    return fitted


def settle_device(device: str) -> torch.device:
    """ "auto" → the GPU where there is one. Raises BadInput for a device that is not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as fault:
        raise BadInput(f"device must be 'auto', 'cpu' or 'cuda', not {device!r}") from fault
    if found.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"device {device!r} was asked for and torch sees no GPU; use 'auto' or 'cpu'")
    return found


def settle_precision(precision: str, device: torch.device) -> torch.dtype:
    """The number format of the forward pass. Raises BadInput for one that this device cannot train with."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if precision not in PRECISIONS:
        raise BadInput(f"precision must be 'auto' or one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "float16" and device.type != "cuda":
        raise BadInput("precision 'float16' needs a GPU; on a CPU use 'float32' or 'bfloat16'")
    return PRECISIONS[precision]


class _Course:
    """Where a fit stands, and its steps."""

    def __init__(
        self,
        module: nn.Module,
        how: Fit,
        rates: Rates | None,
        device: torch.device,
        generators: tuple[torch.Generator, ...],
    ) -> None:
        self.module, self.how, self.device = module, how, device
        self.precision = settle_precision(how.precision, device)
        groups = [{"params": list(p), "lr": rate} for p, rate in rates or _default_rates(module, how)]
        kind = torch.optim.AdamW if how.weight_decay else torch.optim.Adam
        self.optimiser = kind(groups, weight_decay=how.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.order = torch.Generator().manual_seed(how.seed)
        self.generators = (self.order, *generators)
        self.epoch, self.waited, self.is_finished = 0, 0, False
        self.best, self.best_epoch = math.inf, -1
        self.best_state: dict[str, Tensor] | None = None

    @property
    def is_over(self) -> bool:
        return self.is_finished or self.epoch >= self.how.epochs or self.waited >= self.how.patience

    def autocast(self) -> Any:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def pass_over(self, rows: int, loss: Loss) -> float:
        """One epoch; the mean training loss of this process's rows."""
        how, total, seen = self.how, 0.0, 0
        order = torch.randperm(rows, generator=self.order) if how.batch_size < rows else torch.arange(rows)
        batches = order.split(how.batch_size)
        for start in range(0, len(batches), how.accumulate):
            some = batches[start : start + how.accumulate]
            self.optimiser.zero_grad()
            parts = []
            for index in some:
                with parallel.sharing(index) as own:
                    if len(own):
                        parts.append(self._backward(own, loss, alone=len(some) == 1))
            self._step(parts, alone=len(some) == 1)
            total += sum(value * count for value, _, count in parts)
            seen += sum(count for _, _, count in parts)
        return total / max(1, seen)

    def _backward(self, index: Tensor, loss: Loss, *, alone: bool) -> tuple[float, Tensor, int]:
        """Add the gradient of a minibatch; its loss, its weight and its rows."""
        with self.autocast():
            said = loss(index)
        value, weight = said if isinstance(said, tuple) else (said, torch.tensor(float(len(index))))
        weight = weight.detach().float()
        is_plain = alone and parallel.count() == 1
        self.scaler.scale(value if is_plain else value * weight.to(value.device)).backward()
        return float(value.detach()), weight.cpu(), len(index)

    def _step(self, parts: Sequence[tuple[float, Tensor, int]], *, alone: bool) -> None:
        trained = [p for group in self.optimiser.param_groups for p in group["params"] if p.requires_grad]
        weight = torch.stack([torch.zeros(()), *(w for _, w, _ in parts)]).sum()
        if parallel.count() > 1:
            weight = parallel.sum_gradients(trained, weight)
        if self.scaler.is_enabled():  # after the sum: an overflow anywhere is one everywhere
            self.scaler.unscale_(self.optimiser)
        if parallel.count() > 1 or not alone:
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad /= weight.to(parameter.grad).clamp(min=1e-9)
        nn.utils.clip_grad_norm_(trained, self.how.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def align_random(self) -> None:
        """Every process goes on from the first one's random states: one without a row in the last minibatch
        drew nothing for it."""
        if parallel.count() > 1:
            states = parallel.agree(checkpoints.random_states(self.generators))
            checkpoints.set_random_states(states, self.generators)

    def note(self, current: float | None) -> None:
        """Count the epoch, and keep its state when it is the best so far."""
        said = math.nan if current is None else current
        current = float(parallel.agree(torch.tensor([said], dtype=torch.float64))[0])
        self.epoch += 1
        if math.isnan(current):
            return
        if current < self.best - 1e-5:
            self.best, self.waited, self.best_epoch = current, 0, self.epoch
            self.best_state = copy.deepcopy(self.module.state_dict())
        else:
            self.waited += 1

    def finish(self) -> Fitted:
        """Put the best state in place."""
        if self.best_state is not None:
            self.module.load_state_dict(self.best_state)
            self.best_state = None
        self.is_finished = True
        return Fitted(self.epoch, *((self.best_epoch, self.best) if self.best_epoch > 0 else (None, None)))

    def save(self, path: Path, key: str) -> None:
        """Write where this fit stands; the first process writes for all."""
        if parallel.rank() != 0:
            return
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in (self.best_state or {}).items()}
        if not self.is_finished:
            optimiser = checkpoints.optimiser_tensors(self.optimiser)
            tensors |= {f"optimiser.{k}": v for k, v in optimiser.items()}
        tensors["random"] = checkpoints.random_states(self.generators)
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        numbers = {
            "epoch": self.epoch,
            "waited": self.waited,
            "best": self.best if self.best_epoch > 0 else None,
            "best_epoch": self.best_epoch,
            "finished": self.is_finished,
            "scaler": self.scaler.state_dict(),
        }
        checkpoints.write(path, key, tensors, numbers)

    def resume(self, held: checkpoints.Checkpoint) -> None:
        """Go on where `save` left off."""
        numbers = held.numbers
        self.module.load_state_dict(held.part("module."))
        self.best_state = {k: v.to(self.device) for k, v in held.part("best.").items()} or None
        self.epoch, self.waited = numbers["epoch"], numbers["waited"]
        self.best = math.inf if numbers["best"] is None else numbers["best"]
        self.best_epoch, self.is_finished = numbers["best_epoch"], numbers["finished"]
        checkpoints.set_random_states(held.tensors["random"], self.generators)
        if "random_cuda" in held.tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(held.tensors["random_cuda"], self.device)
        if not self.is_finished:
            checkpoints.fill_optimiser(self.optimiser, held.part("optimiser."))
            if numbers["scaler"]:
                self.scaler.load_state_dict(numbers["scaler"])


def _default_rates(module: nn.Module, how: Fit) -> Rates:
    linear = [p for name, p in module.named_parameters() if ".linear." in name]
    bent = [p for name, p in module.named_parameters() if ".linear." not in name]
    return [(bent, how.learning_rate), (linear, LINEAR * how.learning_rate)]


def _key(module: nn.Module, how: Fit, rows: int, belongs_to: str) -> str:
    return checkpoints.fingerprint(module, how, rows, belongs_to, parallel.count())


def _tell(tell: Tell, epoch: int, epochs: int, told: float, current: float | None) -> None:
    """The first process tells; when it is asked to stop, all stop."""
    fault: BaseException | None = None
    if parallel.rank() == 0:
        try:
            tell(epoch, epochs, told, current)
        except BaseException as raised:
            fault = raised
    is_stopped = parallel.decide(fault is not None)
    if fault is not None:
        raise fault
    if is_stopped:
        raise Cancelled("stopped by the first process")
