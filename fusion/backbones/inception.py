"""Inception-v3 (Szegedy et al. 2016), convolutions only.

Parameter names are those of torchvision's inception_v3 checkpoint, which therefore drops in (as safetensors);
its auxiliary and final classifiers are not used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Conv(nn.Module):
    def __init__(
        self,
        a: int,
        b: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(a, b, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(b, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _mean3(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1)


class _A(nn.Module):
    def __init__(self, a: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(a, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _Conv(a, 48, 1), _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(a, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(a, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean3(x))], 1)


class _B(nn.Module):
    def __init__(self, a: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(a, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(a, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    def __init__(self, a: int, c: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Conv(a, 192, 1)
        self.branch7x7_1 = _Conv(a, c, 1)
        self.branch7x7_2 = _Conv(c, c, row, padding=(0, 3))
        self.branch7x7_3 = _Conv(c, 192, column, padding=(3, 0))
        self.branch7x7dbl_1 = _Conv(a, c, 1)
        self.branch7x7dbl_2 = _Conv(c, c, column, padding=(3, 0))
        self.branch7x7dbl_3 = _Conv(c, c, row, padding=(0, 3))
        self.branch7x7dbl_4 = _Conv(c, c, column, padding=(3, 0))
        self.branch7x7dbl_5 = _Conv(c, 192, row, padding=(0, 3))
        self.branch_pool = _Conv(a, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean3(x))], 1)


class _D(nn.Module):
    def __init__(self, a: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Conv(a, 192, 1), _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(a, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], 1)


class _E(nn.Module):
    def __init__(self, a: int) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.branch1x1 = _Conv(a, 320, 1)
        self.branch3x3_1 = _Conv(a, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, row, padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, column, padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(a, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, row, padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, column, padding=(1, 0))
        self.branch_pool = _Conv(a, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(_mean3(x)),
        ]
        return torch.cat(parts, 1)


class InceptionV3(nn.Module):
    """float32 [B, 3, H, W], H and W at least 75 → [B, 2048, h, w] (8 x 8 at 299)."""

    width = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c = _C(768, 128), _C(768, 160)
        self.Mixed_6d, self.Mixed_6e = _C(768, 160), _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b, self.Mixed_7c = _E(1280), _E(2048)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # type: ignore[no-any-return]
