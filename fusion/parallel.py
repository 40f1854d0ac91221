"""Several processes training one model: what they tell each other. Started by `torchrun`.

    torchrun --nproc-per-node 4 train_ours.py                                # one machine
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d \\
             --rdzv-endpoint FIRST_MACHINE:29400 --rdzv-id 7 train_ours.py   # the same line on each of two

Every process holds the whole model and reads the same examples; each takes its share of every minibatch and
the gradients are summed, so that several processes do what one would have done with the same minibatch. What
is random (dropout, which rows are drawn, what is hidden of them) each draws for the whole minibatch and keeps
its own rows' part of (`drawn`). Without `torchrun` there is one process and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

_whole: ContextVar[int | None] = ContextVar("rows of the minibatch that is being shared", default=None)


@contextmanager
def joined() -> Iterator[int]:
    """Join the processes that `torchrun` started, for as long as the block lasts; gives the own rank.

    gloo between CPUs, NCCL between GPUs. One process on its own: rank 0, and nothing is joined.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield rank()
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield rank()
        dist.barrier()  # nobody leaves while another still listens
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Which of the processes this is; 0 is the one that reports and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(index: Tensor) -> Tensor:
    """This process's rows of a minibatch; empty when there are fewer rows than processes."""
    return index[rank() :: count()]


@contextmanager
def sharing(index: Tensor) -> Iterator[Tensor]:
    """This process's rows of a minibatch; within the block `drawn` draws for all of it."""
    token = _whole.set(len(index))
    try:
        yield share(index)
    finally:
        _whole.reset(token)


def drawn(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """What `draw(rows of the whole minibatch)` gives this process's `rows`: every process draws for all and
    keeps its own part, so that together they draw what one process would have."""
    whole = _whole.get()
    return draw(rows) if count() < 2 or whole is None else share(draw(whole))


def dropout(values: Tensor, rate: float, is_training: bool) -> Tensor:
    """Dropout of rows [B, …] of a minibatch; that of one process whatever their number."""
    if count() < 2 or not is_training or rate <= 0:
        return F.dropout(values, rate, is_training)
    shape, layout = values.shape[1:], sorted(range(values.ndim), key=values.stride, reverse=True)

    def kept(rows: int) -> Tensor:  # filled in the order of memory, as torch's own
        empty = torch.empty_permuted((rows, *shape), layout, dtype=values.dtype, device=values.device)
        return empty.bernoulli_(1 - rate)

    return values * (drawn(len(values), kept) / (1 - rate))


def sum_gradients(parameters: list[nn.Parameter], weight: Tensor) -> Tensor:
    """Sum gradients over the processes, in place; the sum of the weights. One message for all of them."""
    flat = [p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in parameters]
    message = torch.cat([*flat, weight.reshape(1).to(flat[0])])
    dist.all_reduce(message)
    place = 0
    for parameter in parameters:
        part = message[place : place + parameter.numel()].view_as(parameter)
        if parameter.grad is None:
            parameter.grad = part.clone()
        else:
            parameter.grad.copy_(part)
        place += parameter.numel()
    return message[-1]


def align(module: nn.Module) -> None:
    """Every process takes over the first one's parameters and running statistics."""
    if count() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, 0)


def agree(values: Tensor) -> Tensor:
    """The first process's numbers, in every process."""
    if count() > 1:
        values = values.to(_device())
        dist.broadcast(values, 0)
    return values.cpu()


def decide(is_so: bool) -> bool:
    """The first process's answer, in every process: a last digit that differs must not part their ways."""
    return bool(agree(torch.tensor([float(is_so)], dtype=torch.float64))[0])


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
