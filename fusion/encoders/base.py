"""What every encoder shares: a fixed part fitted on training statistics, then a small trained part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fusion import parallel
from fusion.batch import Tokens
from fusion.choosing import MARGIN
from fusion.encoders.linear import fit_linear

DROPOUT = 0.2
SIMPLE_COMPONENTS = 32  # principal components that the simple stack keeps (`fusion.baselines`)
OLD_LIMIT = 20.0  # of all principal components, in bundles from before each had its own
CLIP = 5.0  # standard deviations beyond which a standardised value tells nothing more


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """embedding float32 [B, E]; logits float32 [B, R]; weights float32 [B, L] over tokens, sum 1, or None."""

    embedding: Tensor
    logits: Tensor
    weights: Tensor | None = None


class Encoder(nn.Module, ABC):
    """Tokens → Encoded. Rows without a known token give finite numbers that fusion then ignores.

    trunk       turns features into logits
    least_rows  patients below which nothing is trained beyond what `fit_first` fits
    is_trained  whether anything is (see `expect`)
    is_fixed    whether every patient has as many tokens: fields and channels, not sentences, views and frames
    """

    trunk: Trunk
    is_fixed: bool = False
    least_rows: int = 300
    is_trained: bool = True

    def expect(self, rows: int, known: Tensor) -> None:
        """How few patients any fold will fit this encoder on: what needs more is fitted in none of them, nor
        on all patients, so that evidence out of fold is of the same kind as evidence at the bedside.

        rows   with the modality
        known  int [R, 2]: of these, with an outcome known, and of the rarer kind
        """
        self.is_trained = rows >= self.least_rows

    @abstractmethod
    def fit_statistics(self, tokens: Tokens) -> None:
        """Set means, scales and projections from training patients."""

    @abstractmethod
    def prepare(self, tokens: Tokens) -> Tokens:
        """The fixed part: standardise and project; [B, L, D] → [B, L, P]. Hidden tokens become zero."""

    @abstractmethod
    def forward(self, prepared: Tokens, fixed: Tensor | None = None) -> Encoded:
        """The trained part; `fixed` is what `fixed_voice` says of the same, where that is at hand."""

    def shown(self, prepared: Tokens, known: Tensor) -> Tensor:
        """One patient's prepared tokens, each time only some of them shown, bool [U, L] → logits [U, R]."""
        alike = prepared.rows(torch.zeros(len(known), dtype=torch.long))
        encoded: Encoded = self(alike.hiding(known))
        return encoded.logits

    def fixed_voice(self, prepared: Tokens) -> Tensor | None:
        """What `fit_first` fitted and no epoch changes, float32 [B, R], where asking anew takes long."""
        return None

    @abstractmethod
    def features(self, prepared: Tokens) -> Tensor:
        """What the trunk sees, float32 [B, P]."""

    def simple_features(self) -> NDArray[np.int64] | None:
        """Places of those features that the simple stack (`fusion.baselines`) has too; None where its recipe
        is no regression."""
        return np.arange(min(SIMPLE_COMPONENTS, self.trunk.linear.in_features))

    def end_training(self, *, helped: bool) -> None:
        """Called before what `fit_first` leaves is trained, and with `helped` False where it is put back."""

    def fit_first(
        self,
        prepared: Tokens,
        labels: Tensor,
        base: Tensor,
        folds: NDArray[np.int64],
        *,
        seed: int,
        penalty: Tensor | None = None,
        groups: NDArray[np.int64] | None = None,
        margin: float = MARGIN,
    ) -> None:
        """Whatever is fitted to its optimum before the rest is trained: here the trunk's linear part.

        prepared  of N patients who have the modality;  labels float32 [N, R], NaN = unknown
        base      float32 [R], logit of the event rate;  folds int [N], one group in one fold
        groups, margin  see `encoders.linear.fit_linear`
        """
        self.eval()
        with torch.no_grad():
            features = self.features(prepared)
        self.trunk.fit_linear(
            features,
            labels,
            base,
            folds,
            penalty=penalty,
            simple=self.simple_features(),
            groups=groups,
            margin=margin,
        )


class Trunk(nn.Module):
    """Features [B, P] → embedding [B, E] and logits [B, R]: a linear model plus a small bent one.

    The linear part is fitted first, to its optimum (`encoders.linear`); what it cannot see is learned after
    it, and only where there are patients enough. Until then this is logistic regression.
    """

    penalty: Tensor

    def __init__(self, features: int, width: int, outcomes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.linear = nn.Linear(features, outcomes)
        self.head = nn.Linear(width, outcomes, bias=False)
        self.register_buffer("penalty", torch.zeros(outcomes, 2))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.head.weight)

    def fit_linear(
        self,
        features: Tensor,
        labels: Tensor,
        base: Tensor,
        folds: NDArray[np.int64],
        *,
        penalty: Tensor | None,
        simple: NDArray[np.int64] | None,
        groups: NDArray[np.int64] | None,
        margin: float,
    ) -> None:
        """Set the linear part (see `encoders.linear.fit_linear`); training leaves it as it is after that."""
        weights, offsets, chosen = fit_linear(
            features, labels, base, folds, penalty=penalty, simple=simple, groups=groups, margin=margin
        )
        with torch.no_grad():
            self.linear.weight.copy_(weights)
            self.linear.bias.copy_(offsets)
            self.penalty.copy_(chosen)
        self.linear.requires_grad_(False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embedding = F.gelu(self.embed(parallel.dropout(features, DROPOUT, self.training)))
        return embedding, self.linear(features) + self.head(embedding)


class Projection(nn.Module):
    """Embeddings [.., D] → principal components [.., P], fitted on training patients; fixed afterwards.

    Fit them on each patient's mean (`means`), which is what a linear part sees: of single tokens, they would
    tell slices of one patient apart first. Each of the D numbers is standardised first, so that no loud one
    drowns the others. The first component has unit variance, a later one the square root of its share of the
    first one's: half-way between all alike and as they come, so that the penalty weighs more on the lesser
    ones, and does not silence them.

    limit  of each component's absolute value, `CLIP` standard deviations of training tokens: a number that
           next to no training patient had is nearly constant there, so that in another it is huge
    """

    mean: Tensor
    components: Tensor
    limit: Tensor

    def __init__(self, width: int, kept: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.zeros(width, kept))
        self.register_buffer("limit", torch.full((kept,), OLD_LIMIT))

    def fit(self, rows: Tensor, tokens: Tensor | None = None, *, most: int = 4000) -> None:
        """rows float32 [N, D]; at most `most` of them, evenly taken, are used. tokens float32 [T, D]: what
        rows are the means of, where they are."""
        if len(rows) > most:
            rows = rows[torch.linspace(0, len(rows) - 1, most).long()]
        mean = rows.double().mean(0)
        scale = rows.double().std(0, correction=0) if len(rows) else torch.ones_like(mean)
        scale = torch.where(scale > 1e-6 * scale.max().clamp(min=1e-12), scale, torch.inf)
        values, right = _principal((rows.double() - mean) / scale)
        kept = min(self.components.shape[1], int((values > 1e-6 * values[:1].clamp(min=1e-12)).sum()))
        right = right[:kept]
        signs = right.sum(1).sign()
        right = right * torch.where(signs != 0, signs, 1.0)[:, None]
        spread = (values[:kept] * values[:1]).sqrt() / max(1, len(rows) - 1) ** 0.5
        self.mean.copy_(mean.float())
        self.components.zero_()
        if kept:
            self.components[:, :kept] = ((right / scale).T / spread.clamp(min=1e-6)).float()
            seen = ((rows if tokens is None else tokens) - self.mean) @ self.components
            self.limit.copy_(CLIP * seen.std(0, correction=0).clamp(min=1e-6))

    def forward(self, values: Tensor) -> Tensor:
        return torch.clamp((values - self.mean) @ self.components, -self.limit, self.limit)


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, falling, and right singular vectors as rows; by whichever way is shorter."""
    if len(rows) <= rows.shape[1]:
        squares, left = torch.linalg.eigh(rows @ rows.T)
        values = squares.flip(0).clamp(min=0).sqrt()
        least = 1e-12 * values[:1].clamp(min=1e-12)
        return values, (left.flip(1).T @ rows) / values.clamp(min=least)[:, None]
    squares, columns = torch.linalg.eigh(rows.T @ rows)
    return squares.flip(0).clamp(min=0).sqrt(), columns.T.flip(0)


def means(values: Tensor, known: Tensor) -> Tensor:
    """Tokens float32 [N, L, D], known bool [N, L] → each row's mean float32 [N', D], without rows that have
    no token."""
    values, known = values[known.any(dim=1)], known[known.any(dim=1)]
    total = torch.where(known[..., None], values, 0.0).sum(dim=1, dtype=torch.float64)
    return (total / known.sum(dim=1, keepdim=True)).float()


def attention_weights(scores: Tensor, known: Tensor) -> Tensor:
    """Softmax of scores [B, L] over known tokens; rows without any give zeros."""
    scores = scores.masked_fill(~known, -1e9)
    return torch.softmax(scores, dim=1) * known.any(dim=1, keepdim=True)
