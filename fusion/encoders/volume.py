"""CT and MR volumes: attention over slices (2.5D), or a 3D CNN on the resampled voxels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion import parallel
from fusion.batch import Tokens
from fusion.encoders.base import Encoded, Encoder, Projection, Trunk

COARSE, COMPONENTS = 4, 16  # boxes a side whose means the linear part sees; components kept of them
CHANNELS = (8, 16, 32)
AT_ONCE = 16  # volumes


class Residual(nn.Module):
    """Two 3 x 3 x 3 convolutions beside a shortcut, at half the resolution (He 2016, in three dimensions)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(before, after, 3, stride=2, padding=1)
        self.second = nn.Conv3d(after, after, 3, padding=1)
        self.short = nn.Conv3d(before, after, 1, stride=2)
        self.norms = nn.ModuleList([nn.GroupNorm(4, after), nn.GroupNorm(4, after)])

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(x)))
        out: Tensor = F.relu(self.short(x) + self.norms[1](self.second(inner)))
        return out


class VoxelEncoder(Encoder):
    """[B, 1, slices x size x size] → [B, E] by a residual 3D CNN, trained with everything else.

    First a penalised logistic model on the means of coarse boxes; then what the CNN sees beyond it, kept only
    where it helps patients set aside. So with few patients this is logistic regression.
    """

    least_rows = 40
    middle: Tensor
    spread: Tensor

    def __init__(self, slices: int, size: int, width: int, outcomes: int) -> None:
        super().__init__()
        self._shape = (slices, size, size)
        self.register_buffer("middle", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))
        self.projection = Projection(COARSE**3, COMPONENTS)
        self.trunk = Trunk(COMPONENTS, width, outcomes)
        pairs = zip((1, *CHANNELS), CHANNELS, strict=False)
        self.cnn = nn.Sequential(*(Residual(before, after) for before, after in pairs))
        self.said = nn.Linear(CHANNELS[-1], outcomes)
        nn.init.zeros_(self.said.weight)
        nn.init.zeros_(self.said.bias)

    def fit_statistics(self, tokens: Tokens) -> None:
        rows = tokens.values[tokens.known]
        if len(rows):
            self.middle.copy_(rows.mean())
            self.spread.copy_(rows.std().clamp(min=1e-4))
        self.projection.fit(self._coarse(rows))

    def prepare(self, tokens: Tokens) -> Tokens:
        values = (tokens.values - self.middle) / self.spread
        return Tokens(torch.where(tokens.known[..., None], values, 0.0), tokens.known)

    def features(self, prepared: Tokens) -> Tensor:
        values = torch.where(prepared.known[..., None], prepared.values, 0.0)[:, 0]
        told: Tensor = self.projection(self._coarse(values * self.spread + self.middle))
        return told

    def forward(self, prepared: Tokens, fixed: Tensor | None = None) -> Encoded:
        embedding, logits = self.trunk(self.features(prepared))
        if not self.training and not bool(self.said.weight.any()):
            return Encoded(embedding, logits)  # the CNN has nothing to add
        values = torch.where(prepared.known[..., None], prepared.values, 0.0)[:, 0]
        volumes = values.view(-1, 1, *self._shape)
        seen = torch.cat([self.cnn(part).mean(dim=(2, 3, 4)) for part in volumes.split(AT_ONCE)])
        return Encoded(embedding, logits + self.said(parallel.dropout(seen, 0.3, self.training)))

    def _coarse(self, rows: Tensor) -> Tensor:
        """[N, voxels] → [N, COARSE ^ 3]."""
        boxes: Tensor = F.adaptive_avg_pool3d(rows.view(-1, 1, *self._shape), COARSE)
        return boxes.flatten(1)
