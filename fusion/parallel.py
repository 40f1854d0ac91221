"""Several processes training one model: what they tell each other. Started by `torchrun`.

    torchrun --nproc-per-node 4 train_ours.py                                # one machine
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d \\
             --rdzv-endpoint FIRST_MACHINE:29400 --rdzv-id 7 train_ours.py   # the same line on each of two

Every process holds the whole model and reads the same examples; each takes its share of every minibatch and
the gradients are summed, so that several processes do what one would have done with the same minibatch.
Without `torchrun` there is one process and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist


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
    """The first process's numbers, float64, in every process."""
    if count() > 1:
        values = values.to(_device())
        dist.broadcast(values, 0)
    return values.cpu()


def gather(row: Tensor) -> Tensor:
    """Each process's row, stacked in the order of ranks."""
    if count() < 2:
        return row[None]
    rows = [torch.empty_like(row, device=_device()) for _ in range(count())]
    dist.all_gather(rows, row.to(_device()))
    return torch.stack(rows).cpu()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
