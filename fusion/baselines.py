"""What a fusion is compared with: logistic regression and boosting on one concatenated row (the HAIM recipe).

A row is: each pixel or text modality's mean embedding (reduced to principal components of the training rows),
fields, genomic findings and series summaries. Missing values stay NaN for boosting; for the regression they
are the training mean with an indicator beside them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusion.batch import Batch
from fusion.encoders.base import Projection
from fusion.inputs import Modality

Array = NDArray[np.float64]
EMBEDDED = (Modality.IMAGE, Modality.CINE, Modality.TEXT)
COMPONENTS = 32


def compare(
    train: Batch, labels: Array, held_out: Batch, modalities: Sequence[Modality], *, seed: int
) -> dict[str, Array]:
    """Baseline name → risks float64 [B] of the held-out patients.

    labels  float64 [B] of the training patients, NaN = unknown; needs both classes
    """
    fitted, asked = _rows(train, held_out, modalities)
    known = ~np.isnan(labels)
    measured = ~np.isnan(fitted[known]).all(axis=0)  # boosting cannot bin a column nobody has
    fitted, asked = fitted[:, measured], asked[:, measured]
    models = {
        "logistic regression": make_pipeline(
            SimpleImputer(add_indicator=True, keep_empty_features=True),
            StandardScaler(),
            LogisticRegression(C=0.1, max_iter=2000),
        ),
        "gradient boosting": HistGradientBoostingClassifier(
            max_iter=100, learning_rate=0.06, min_samples_leaf=10, random_state=seed
        ),
    }
    found: dict[str, Array] = {}
    for name, model in models.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a column without any value or without variance is normal here
            model.fit(fitted[known], labels[known].astype(int))
            found[name] = np.asarray(model.predict_proba(asked)[:, 1], np.float64)
    return found


def _rows(train: Batch, held_out: Batch, modalities: Sequence[Modality]) -> tuple[Array, Array]:
    """Concatenated rows float64 [B, F] of both sets; NaN = missing."""
    parts: list[tuple[Array, Array]] = []
    for modality in modalities:
        if modality in EMBEDDED:
            first, second = _pooled(train, modality), _pooled(held_out, modality)
            rows = torch.from_numpy(first[~np.isnan(first).any(axis=1)])
            if not len(rows):
                continue
            projection = Projection(first.shape[1], COMPONENTS)
            projection.fit(rows.float())
            parts.append((_projected(projection, first), _projected(projection, second)))
        else:
            parts.append((_flat(train, modality), _flat(held_out, modality)))
    return np.concatenate([p[0] for p in parts], axis=1), np.concatenate([p[1] for p in parts], axis=1)


def _pooled(batch: Batch, modality: Modality) -> Array:
    tokens = batch.tokens[modality]
    count = tokens.known.sum(dim=1, keepdim=True)
    mean = tokens.values.sum(dim=1).double() / count.clamp(min=1)
    return np.asarray(torch.where(count > 0, mean, torch.nan).numpy())


def _projected(projection: Projection, rows: Array) -> Array:
    return np.asarray(projection(torch.from_numpy(rows).float()).double().numpy())


def _flat(batch: Batch, modality: Modality) -> Array:
    tokens = batch.tokens[modality]
    return np.asarray(
        torch.where(tokens.known[..., None], tokens.values, torch.nan).flatten(1).double().numpy()
    )
