"""Pictures changed as a person would not mind: moved, lit otherwise, taken by another scanner. Seeded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion import parallel
from fusion.config import Augment


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How much, at most. Each picture draws its own amounts; 0 leaves that part out.

    degrees, shift, zoom   of the picture: degrees turned, share of a side moved, share larger or smaller
    flips                  left-right and up-down (skin; never radiographs: the heart has a side)
    brightness, contrast   shares; gamma: exponent up to exp(gamma) or down to exp(-gamma)
    noise, blur            standard deviations, in intensities and in pixels
    """

    degrees: float = 10.0
    shift: float = 0.05
    zoom: float = 0.1
    flips: bool = False
    brightness: float = 0.1
    contrast: float = 0.15
    gamma: float = 0.2
    noise: float = 0.02
    blur: float = 0.7

    def __call__(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """float32 [T, C, H, W] in [0, 1] → the same shape and range."""
        return self.scanned(self.lit(self.moved(pictures, generator), generator), generator)

    def moved(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Geometric: turned, shifted, zoomed, flipped; what comes in from outside is the border's value."""
        count = len(pictures)
        draw = parallel.drawn(count, lambda rows: torch.rand(rows, 4, generator=generator)) * 2 - 1
        angle = draw[:, 0] * math.radians(self.degrees)
        scale = 1 / (1 + draw[:, 1] * self.zoom)
        shift = draw[:, 2:] * 2 * self.shift
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
        moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        if self.flips:
            flips = parallel.drawn(count, lambda rows: torch.rand(2, rows, generator=generator).T) < 0.5
            for axis, flip in zip((2, 3), flips.T, strict=True):
                moved = torch.where(flip.view(-1, 1, 1, 1), moved.flip(axis), moved)
        return moved.clamp(0, 1)

    def lit(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Intensity: brightness, contrast around the mean, gamma."""
        draw = parallel.drawn(len(pictures), lambda rows: torch.rand(3, rows, generator=generator).T)
        draw = (draw.T * 2 - 1).view(3, -1, 1, 1, 1)
        mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
        lit = (pictures - mean) * (1 + draw[0] * self.contrast) + mean + draw[1] * self.brightness
        return lit.clamp(0, 1) ** torch.exp(draw[2] * self.gamma)

    def scanned(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Scanner-like: a little blur and noise."""
        found = pictures
        sigma = float(torch.rand(1, generator=generator)) * self.blur
        if sigma > 0.2:
            reach = torch.arange(-2, 3, dtype=torch.float32)
            kernel = torch.exp(-(reach**2) / (2 * sigma**2))
            kernel = (kernel / kernel.sum()).repeat(found.shape[1], 1)
            found = F.pad(found, (2, 2, 2, 2), mode="replicate")
            found = F.conv2d(found, kernel[:, None, :, None], groups=found.shape[1])
            found = F.conv2d(found, kernel[:, None, None, :], groups=found.shape[1])
        count, shape = len(found), found.shape[1:]
        amount = parallel.drawn(count, lambda rows: torch.rand(rows, 1, 1, 1, generator=generator))
        noise = parallel.drawn(count, lambda rows: torch.randn(rows, *shape, generator=generator))
        return (found + amount * self.noise * noise).clamp(0, 1)


def augmentation(named: Augment) -> Augmentation | None:
    """The amounts of that name."""
    return {
        Augment.NONE: None,
        Augment.UPRIGHT: Augmentation(),
        Augment.ANY_WAY_UP: Augmentation(degrees=180.0, flips=True),
    }[named]
