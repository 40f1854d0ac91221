"""Feature maps at several strides of any backbone of the registry."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fusion.backbones.image import ImageBackbone
from fusion.errors import BadInput

PROBE = 128  # pixels a side of the picture that finds the strides
Call = tuple[str, int]  # a module's name, and how often it had been called before in the same pass


class Pyramid(nn.Module):
    """Frames float32 [B, C, S, S], prepared by the backbone → one map a stride, from fine to coarse.

    A stride's map is the last that the network computes at that resolution: for inverted bottlenecks the
    expanded one, as SSDLite reads it (Sandler 2018). The backbone stays in evaluation mode, so its running
    statistics never change.

    channels  of each map
    """

    def __init__(self, backbone: ImageBackbone, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.network = backbone.network
        found = self._probe()
        missing = [stride for stride in strides if stride not in found]
        if missing or not strides or list(strides) != sorted(set(strides)):
            raise BadInput(
                f"{backbone.name} has maps at strides {sorted(found)}, not at {missing or list(strides)}; "
                "name some of them, rising"
            )
        self._taps = tuple(found[stride][0] for stride in strides)
        self.channels = tuple(found[stride][1] for stride in strides)

    def forward(self, frames: Tensor) -> list[Tensor]:
        seen: dict[Call, Tensor] = {}

        def keep(call: Call, out: Tensor) -> None:
            if call in self._taps:
                seen[call] = out

        self._watched(frames, keep, {name for name, _ in self._taps})
        return [seen[call] for call in self._taps]

    def train(self, mode: bool = True) -> Pyramid:
        """Never: few pictures would spoil the running statistics."""
        super().train(False)
        return self

    def _probe(self) -> dict[int, tuple[Call, int]]:
        """Stride → (call, channels) of the last map at it."""
        found: dict[int, tuple[Call, int]] = {}

        def note(call: Call, out: Tensor) -> None:
            if not call[0].endswith("padding"):
                found[2 ** round(math.log2(PROBE / out.shape[2]))] = (call, int(out.shape[1]))

        leaves = {name for name, module in self.network.named_modules() if not list(module.children())}
        with torch.no_grad():
            self._watched(torch.zeros(1, 1, PROBE, PROBE), note, leaves)
        return found

    def _watched(self, frames: Tensor, see: Callable[[Call, Tensor], None], names: set[str]) -> None:
        """Run the network; `see` is told every map that one of the modules makes, in order."""
        calls: Counter[str] = Counter()

        def hook(name: str) -> Callable[[nn.Module, object, object], None]:
            def note(module: nn.Module, given: object, out: object) -> None:
                if isinstance(out, Tensor) and out.ndim == 4:
                    see((name, calls[name]), out)
                    calls[name] += 1

            return note

        hooks = [self.network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
        try:
            self.network(frames)
        finally:
            for one in hooks:
                one.remove()
