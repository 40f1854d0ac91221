"""What every encoder shares: a fixed part fitted on training statistics, then a small trained part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.batch import Tokens

DROPOUT = 0.2
CLIP = 5.0  # standard deviations beyond which a standardised value tells nothing more


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """embedding float32 [B, E]; logits float32 [B, R]; weights float32 [B, L] over tokens, sum 1, or None."""

    embedding: Tensor
    logits: Tensor
    weights: Tensor | None = None


class Encoder(nn.Module, ABC):
    """Tokens → Encoded. Rows without a known token give finite numbers that fusion then ignores."""

    @abstractmethod
    def fit_statistics(self, tokens: Tokens) -> None:
        """Set means, scales and projections from training patients."""

    @abstractmethod
    def prepare(self, tokens: Tokens) -> Tokens:
        """The fixed part: standardise and project; [B, L, D] → [B, L, P]. Hidden tokens become zero."""

    @abstractmethod
    def forward(self, prepared: Tokens) -> Encoded:
        """The trained part."""


class Trunk(nn.Module):
    """Features [B, P] → embedding [B, E] and logits [B, R]: a linear model plus a small bent one.

    With little data the penalty keeps the bent part near zero, and this is logistic regression.
    """

    def __init__(self, features: int, width: int, outcomes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.linear = nn.Linear(features, outcomes)
        self.head = nn.Linear(width, outcomes, bias=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        features = F.dropout(features, DROPOUT, self.training)
        embedding = F.gelu(self.embed(features))
        return embedding, self.linear(features) + self.head(embedding)


class Projection(nn.Module):
    """Embeddings [.., D] → principal components [.., P], fitted on training rows; fixed afterwards.

    Scaled so that the first component has unit variance: the penalty then weighs on the lesser ones.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, width: int, kept: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.zeros(width, kept))

    def fit(self, rows: Tensor, *, most: int = 4000) -> None:
        """rows float32 [N, D]; at most `most` of them, evenly taken, are used."""
        if len(rows) > most:
            rows = rows[torch.linspace(0, len(rows) - 1, most).long()]
        mean = rows.double().mean(0)
        centred = rows.double() - mean
        _, values, right = torch.linalg.svd(centred, full_matrices=False)
        kept = min(self.components.shape[1], int((values > 1e-6 * values[:1].clamp(min=1e-12)).sum()))
        right = (
            right[:kept]
            * right[:kept].sum(1).sign().where(right[:kept].sum(1) != 0, torch.tensor(1.0))[:, None]
        )
        spread = values[0] / max(1, len(rows) - 1) ** 0.5 if len(values) else torch.tensor(1.0)
        self.mean.copy_(mean.float())
        self.components.zero_()
        if kept:
            self.components[:, :kept] = (right.T / spread.clamp(min=1e-6)).float()

    def forward(self, values: Tensor) -> Tensor:
        return ((values - self.mean) @ self.components).clamp(-4 * CLIP, 4 * CLIP)


def attention_weights(scores: Tensor, known: Tensor) -> Tensor:
    """Softmax of scores [B, L] over known tokens; rows without any give zeros."""
    scores = scores.masked_fill(~known, -1e9)
    return torch.softmax(scores, dim=1) * known.any(dim=1, keepdim=True)
