"""Where a training stands, in one file: safetensors, with the plain numbers as JSON in its header.

Written beside its place and moved there, so that a process killed at any moment leaves the last whole one.
Nothing is pickled. A file that belongs to another training is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = 2


@dataclass(frozen=True, eq=False, slots=True)
class Checkpoint:
    """tensors by name; numbers are plain JSON."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def write(path: Path, belongs_to: str, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Replace the file at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}.part")
    header = {"format": FORMAT, "belongs_to": belongs_to, **numbers}
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(kept, half, metadata={"json": json.dumps(header, sort_keys=True)})
    with half.open("rb") as file:
        os.fsync(file.fileno())
    half.replace(path)


def read(path: Path, belongs_to: str) -> Checkpoint | None:
    """What was written there for this very training; None without a file, or for a file of another one."""
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads((file.metadata() or {}).get("json", "{}"))
            if numbers.get("format") != FORMAT or numbers.get("belongs_to") != belongs_to:
                return None
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, numbers)  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return None


def fingerprint(module: nn.Module, *said: object) -> str:
    """SHA-256 (hex) over what a training starts from: parameters, and whatever else decides its course."""
    found = hashlib.sha256(repr((str(torch.__version__), *said)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest(*tensors: Tensor) -> str:
    """SHA-256 (hex) over the data of a training, so that a checkpoint belongs to it."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its moments and step counts, by place and name."""
    return {
        f"{place}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for place, held in optimiser.state_dict()["state"].items()
        for name, value in held.items()
    }


def fill_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put moments and step counts back; the optimiser's groups are those it was made with."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        place, _, name = key.partition(".")
        state.setdefault(int(place), {})[name] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def random_states(generators: Sequence[torch.Generator]) -> Tensor:
    """The states of torch's own generator and of `generators`, uint8 [G, bytes]."""
    return torch.stack([torch.get_rng_state(), *(one.get_state() for one in generators)])


def set_random_states(states: Tensor, generators: Sequence[torch.Generator]) -> None:
    """The inverse of `random_states`."""
    torch.set_rng_state(states[0].clone())
    for one, state in zip(generators, states[1:], strict=True):
        one.set_state(state.clone())
