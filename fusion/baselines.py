"""What a fusion is compared with: a simple stack, and one concatenated row (the HAIM recipe).

simple stack          each modality by itself: principal components and logistic regression for embeddings,
                      logistic regression for fields and findings, boosting for series; the sum of logits
logistic regression,  on one row of everything: each pixel or text modality's mean embedding (reduced to the
gradient boosting     principal components of the training rows), fields, genomic findings, series summaries

Missing values stay NaN for boosting; for a regression they are the training mean with an indicator beside
them. A modality that a patient lacks adds nothing to the stack. A field whose value stands in the series
too is left to the series (`counted_once`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from fusion.batch import SUMMARY, Batch, Tokens
from fusion.calibrate import sigmoid
from fusion.config import FusionConfig
from fusion.inputs import Modality

Array = NDArray[np.float64]
Blocks = Mapping[Modality, Array]  # modality → float64 [B, F]; NaN = missing
RECORD = (Modality.TABULAR, Modality.GENOMICS, Modality.SERIES)
COMPONENTS = 32
LEAST = 3  # events, and others, without which a modality says nothing


def compare(
    train: Batch, labels: Array, held_out: Batch, config: FusionConfig, *, seed: int
) -> list[dict[str, Array]]:
    """Of each outcome: baseline name → risks float64 [B] of the held-out patients.

    labels  float64 [N, R] of the training patients, NaN = unknown; each outcome needs both classes
    """
    like, others = (blocks(batch, config.modalities) for batch in (train, held_out))
    seen, told = (counted_once(rows, like, config) for rows in (like, others))
    pairs = {m: _reduced(m, rows, told[m], seed) for m, rows in seen.items()}
    fitted, asked = ({m: pair[side] for m, pair in pairs.items()} for side in (0, 1))
    found = []
    for known in labels.T:
        stack = stacked(fitted, known, asked, seed=seed, is_reduced=True)
        rest = concatenated(fitted, known, asked, seed=seed, is_reduced=True)
        found.append({"simple stack": stack["sum of logits"], **rest})
    return found


def blocks(batch: Batch, modalities: Sequence[Modality]) -> dict[Modality, Array]:
    """Each modality as one row a patient: the mean of its embeddings, or its values one beside the other."""
    return {
        modality: _flat(batch.tokens[modality], modality)
        if modality in RECORD
        else _pooled(batch.tokens[modality])
        for modality in modalities
    }


def counted_once(rows: Blocks, like: Blocks, config: FusionConfig) -> Blocks:
    """The blocks without fields that stand in the series too: a sum of logits would count them twice, and be
    a worse bar than the series alone. Without any field left there is no tabular block.

    like  blocks that tell which fields those are: there the channel of that name ends with the field's value
          in every patient (a latest value from before the series begin is another, and stays)
    """
    if Modality.TABULAR not in rows or Modality.SERIES not in rows or not config.channels:
        return rows
    fields, series = like[Modality.TABULAR], like[Modality.SERIES]
    wide = series.shape[1] // len(config.channels)  # numbers a channel, the last value first
    last = {spec.name: series[:, wide * place] for place, spec in enumerate(config.channels)}
    kept = [
        place
        for place, spec in enumerate(config.fields)
        if spec.name not in last or not np.allclose(fields[:, place], last[spec.name], equal_nan=True)
    ]
    if len(kept) == len(config.fields):
        return rows
    return {
        modality: block[:, kept] if modality == Modality.TABULAR else block
        for modality, block in rows.items()
        if modality != Modality.TABULAR or kept
    }


def stacked(
    train: Blocks,
    labels: Array,
    held_out: Blocks,
    *,
    seed: int,
    is_reduced: bool = False,
    components: int = COMPONENTS,
) -> dict[str, Array]:
    """Risks of each modality by itself (by its name) and of the "sum of logits".

    The sum counts the event rate once: base logit plus what each modality adds to it.
    is_reduced  whether embeddings are principal components already
    components  of an embedding that are kept
    """
    known = ~np.isnan(labels)
    rate = np.clip(labels[known].mean(), 1e-4, 1 - 1e-4)
    base = float(np.log(rate / (1 - rate)))
    total = np.full(len(next(iter(held_out.values()))), base)
    found: dict[str, Array] = {}
    for modality, rows in train.items():
        kept = None if is_reduced else components
        shift = _shift(modality, rows[known], labels[known], held_out[modality], base, seed, kept)
        total += shift
        found[modality.value] = sigmoid(base + shift)
    return {**found, "sum of logits": sigmoid(total)}


def concatenated(
    train: Blocks, labels: Array, held_out: Blocks, *, seed: int, is_reduced: bool = False
) -> dict[str, Array]:
    """Risks by logistic regression and by gradient boosting on one row of everything."""
    known = ~np.isnan(labels)
    parts = [
        (rows[known], held_out[m]) if is_reduced else _reduced(m, rows[known], held_out[m], seed)
        for m, rows in train.items()
    ]
    fitted, asked = (np.concatenate(side, axis=1) for side in zip(*parts, strict=True))
    measured = ~np.isnan(fitted).all(axis=0)  # boosting cannot bin a column nobody has
    fitted, asked = fitted[:, measured], asked[:, measured]
    models = {"logistic regression": _regression(10.0), "gradient boosting": _boosting(seed)}
    return {name: _fit(model, fitted, labels[known], asked) for name, model in models.items()}


def _shift(
    modality: Modality,
    rows: Array,
    labels: Array,
    asked: Array,
    base: float,
    seed: int,
    components: int | None,
) -> Array:
    """What one modality adds to the base logit, float64 [B]; 0 for patients who lack it.

    components  of an embedding that are kept; None: they are components already
    """
    have, are_asked = ~np.isnan(rows).all(axis=1), ~np.isnan(asked).all(axis=1)
    events, others = int((labels[have] == 1).sum()), int((labels[have] == 0).sum())
    shift = np.zeros(len(asked))
    if min(events, others) < LEAST or not are_asked.any():
        return shift
    fitted, seen = rows[have], asked[are_asked]
    if components is not None:
        fitted, seen = _reduced(modality, fitted, seen, seed, components)
    model = _boosting(seed) if modality == Modality.SERIES else _regression(1.0)
    measured = ~np.isnan(fitted).all(axis=0)
    risks = np.clip(_fit(model, fitted[:, measured], labels[have], seen[:, measured]), 1e-6, 1 - 1e-6)
    shift[are_asked] = np.log(risks / (1 - risks)) - base
    return shift


def _reduced(
    modality: Modality, rows: Array, asked: Array, seed: int, components: int = COMPONENTS
) -> tuple[Array, Array]:
    """Embeddings as principal components of the training rows that have them; other blocks as they are."""
    have = ~np.isnan(rows).any(axis=1)
    if modality in RECORD or not have.any():
        return rows, asked
    scaler = StandardScaler().fit(rows[have])
    count = min(components, rows.shape[1], max(1, int(have.sum()) - 1))
    found = PCA(count, random_state=seed).fit(scaler.transform(rows[have]))
    return _components(scaler, found, rows), _components(scaler, found, asked)


def _components(scaler: StandardScaler, components: PCA, rows: Array) -> Array:
    have = ~np.isnan(rows).any(axis=1)
    found = np.full((len(rows), components.n_components_), np.nan)
    if have.any():
        found[have] = components.transform(scaler.transform(rows[have]))
    return found


def _fit(model: Pipeline | HistGradientBoostingClassifier, rows: Array, labels: Array, asked: Array) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a column without any value or without variance is normal here
        model.fit(rows, labels.astype(int))
        return np.asarray(model.predict_proba(asked)[:, 1], np.float64)


def _regression(strength: float) -> Pipeline:
    """Logistic regression; `strength` of its penalty: 1 is the usual one, 10 suits the one long row."""
    return make_pipeline(
        SimpleImputer(add_indicator=True, keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(C=1 / strength, max_iter=2000),
    )


def _boosting(seed: int) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=150, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=10, random_state=seed
    )


def _pooled(tokens: Tokens) -> Array:
    count = tokens.known.sum(dim=1, keepdim=True)
    known = torch.where(tokens.known[..., None], tokens.values, 0.0)
    mean = known.sum(dim=1).double() / count.clamp(min=1)
    return np.asarray(torch.where(count > 0, mean, torch.nan).numpy())


def _flat(tokens: Tokens, modality: Modality) -> Array:
    """Values one beside the other; of a series, its summary alone."""
    values = tokens.values[..., : len(SUMMARY)] if modality == Modality.SERIES else tokens.values
    return np.asarray(torch.where(tokens.known[..., None], values, torch.nan).flatten(1).double().numpy())
