"""The first convolution of an RGB network, for grey pictures too: three channels of weights folded into one.

A network made for RGB sees a grey picture g as three channels (g - mean_c) / scale_c. Since a convolution is
linear, the three cost no more than one: with the grey channel normalised by the mean of the means and of the
scales, g' = (g - m) / s, each RGB channel is a_c g' + b_c, so that

    conv(RGB, W) = conv(g', Σ a_c W_c) + conv(1, Σ b_c W_c)

The second term depends on no pixel. It is one number per filter inside the picture and another along its
border, where zeros are padded; it is computed once per size. Where all channels share one mean and one scale
it is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FirstLayer(nn.Conv2d):
    """A convolution of float32 [B, 3, H, W] or [B, 1, H, W]; parameters and their names are unchanged.

    is_same  padding as TensorFlow's SAME: as much as the size needs, the odd row below, the odd column right
    """

    def __init__(
        self, conv: nn.Conv2d, mean: Sequence[float], scale: Sequence[float], *, is_same: bool
    ) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=tuple(conv.stride),  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            device="meta",  # nothing is drawn for weights that are replaced at once
        )
        self.weight, self.bias = conv.weight, conv.bias
        self._is_same = is_same
        grey_mean, grey_scale = grey_constants(mean, scale)
        self._gain = tuple(grey_scale / s for s in scale)
        self._offset = tuple((grey_mean - m) / s for m, s in zip(mean, scale, strict=True))
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == self.in_channels:
            return self._convolved(x, self.weight, self.bias)
        weight, border = self._for_grey(x)
        found = self._convolved(x, weight, self.bias)
        return found + border if any(self._offset) else found

    def _for_grey(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Folded weights [O, 1, k, k] and what differing channel means add [1, O, h, w].

        Kept for each size while the weights stay the same; made anew for every batch while they are trained.
        """
        size = (int(x.shape[2]), int(x.shape[3]))
        if self.weight.requires_grad:
            return self._folds(size, x.device)
        held = self._kept.get(size)
        if held is None or not (torch.compiler.is_exporting() or torch.equal(held[0], self.weight)):
            with torch.inference_mode(False), torch.no_grad():
                held = (self.weight.detach().clone(), *self._folds(size, self.weight.device))
            if not torch.compiler.is_exporting():
                self._kept[size] = held
        return held[1].to(x.device), held[2].to(x.device)

    def _folds(self, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        gain, offset = (self.weight.new_tensor(f).view(1, -1, 1, 1) for f in (self._gain, self._offset))
        ones = torch.ones(1, 1, *size, device=device)
        border = self._convolved(ones, (self.weight * offset).sum(1, keepdim=True), None)
        return (self.weight * gain).sum(1, keepdim=True), border

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._is_same:
            (top, bottom), (left, right) = (
                _same(int(x.shape[axis]), self.kernel_size[axis - 2], self.stride[axis - 2])
                for axis in (2, 3)
            )
            x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without what was computed from the weights."""
        return {**self.__dict__, "_kept": {}}


def grey_constants(mean: Sequence[float], scale: Sequence[float]) -> tuple[float, float]:
    """Mean and scale of the one channel that stands for all."""
    return sum(mean) / len(mean), sum(scale) / len(scale)


def fold_first(network: nn.Module, mean: Sequence[float], scale: Sequence[float]) -> FirstLayer:
    """Replace the network's first convolution by one that takes grey pictures as well."""
    for name, module in network.named_modules():
        if isinstance(module, FirstLayer):
            return module
        if isinstance(module, nn.Conv2d):
            is_same = type(module).__name__ == "Conv2dDynamicSamePadding"
            layer = FirstLayer(module, mean, scale, is_same=is_same)
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, layer)
            return layer
    raise TypeError(f"{type(network).__name__} has no convolution")


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    wanted = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return wanted // 2, wanted - wanted // 2
