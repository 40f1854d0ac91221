"""What training patients say about a model's limits: its `Scope`, with thresholds from patients left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion.config import FusionConfig
from fusion.embedding import Embedder
from fusion.errors import BadInput
from fusion.inputs import FloatArray, Modality, PatientInputs, PixelInput
from fusion.rows import is_plausible
from fusion.scope import (
    WRONG,
    Array,
    ImageScope,
    Range,
    RecordScope,
    Scope,
    distances,
    known_values,
    log_softmax,
)

LEAST_PICTURES = 30  # training pictures needed to fit the detector, and to know its threshold
LEAST_PATIENTS = 30  # training patients with a known value, for a range of it
FOLDS = 4  # for scores of pictures whose patient was left out
COMPONENTS = 64  # of the classifier's inputs
STRENGTH = 0.05  # inverse penalty of the classifier (scikit-learn's C)


def fit_scope(
    inputs: Sequence[PatientInputs], groups: Sequence[str], config: FusionConfig, embedder: Embedder
) -> Scope | None:
    """What training patients say about the model's limits; None when the config asks for neither part.

    Reads the pixels of at most `config.scope_pictures` training pictures, to embed them wrong in seven ways.
    """
    image = None
    if config.scope_pictures > 0 and Modality.IMAGE in config.modalities:
        held = {p.key: (p, group) for i, group in zip(inputs, groups, strict=True) for p in i.images[:1]}
        image = _fit_image([p for p, _ in held.values()], [g for _, g in held.values()], config, embedder)
    record = _fit_record(inputs, config) if config.scope_fields else None
    return Scope(image, record) if image is not None or record is not None else None


def _fit_image(
    pictures: Sequence[PixelInput], groups: Sequence[str], config: FusionConfig, embedder: Embedder
) -> ImageScope | None:
    if len(pictures) < LEAST_PICTURES:
        return None
    rng = np.random.default_rng(config.seed)
    right = np.concatenate([embedder.image(p)[:1] for p in pictures])
    chosen = np.sort(rng.permutation(len(pictures))[: config.scope_pictures])
    wrong = np.stack([_embed_wrong(pictures[i], config, embedder) for i in chosen])  # [N, kinds, D]
    names = sorted(set(groups))
    dealt = dict(zip(names, rng.permutation(len(names)) % FOLDS, strict=True))
    fold = np.array([dealt[group] for group in groups])
    scores = np.zeros((len(right), 2))
    for number in range(FOLDS):
        out = fold == number
        if out.any() and (~out[chosen]).sum() >= 2:
            fitted = _Fitted.of(right[~out], wrong[~out[chosen]])
            scores[out] = fitted.scores(right[out])
    whole = _Fitted.of(right, wrong)
    allowed = max(1, math.floor(config.scope_false_alarms / 2 * (len(right) + 1)))
    distance, wrongness = np.sort(scores, axis=0)[-allowed]
    return ImageScope(
        whole.centre.astype(np.float32),
        whole.weights.astype(np.float32),
        whole.bias.astype(np.float32),
        tuple(WRONG),
        float(distance),
        float(wrongness),
        min(1.0, 2 * allowed / (len(right) + 1)),
        len(right),
    )


def _embed_wrong(pixels: PixelInput, config: FusionConfig, embedder: Embedder) -> FloatArray:
    """The picture wrong in every way: float32 [kinds, D]."""
    picture = pixels.read().values[:1]
    return np.concatenate(
        [
            embedder.image_backbone.embed(np.ascontiguousarray(make(picture)), config.image_size)
            for _, make in WRONG.values()
        ]
    )


@dataclass(frozen=True, eq=False, slots=True)
class _Fitted:
    centre: Array
    weights: Array
    bias: Array

    @classmethod
    def of(cls, right: FloatArray, wrong: FloatArray) -> _Fitted:
        """right float32 [N, D], wrong float32 [n, kinds, D]."""
        from sklearn.decomposition import PCA
        from sklearn.linear_model import LogisticRegression

        kinds, width = wrong.shape[1:]
        rows = np.concatenate([right, wrong.transpose(1, 0, 2).reshape(-1, width)]).astype(np.float64)
        which = np.concatenate([np.zeros(len(right)), np.repeat(np.arange(1, kinds + 1), len(wrong))])
        components = PCA(min(COMPONENTS, *rows.shape), random_state=0).fit(rows)
        parts = components.transform(rows)
        scale = np.maximum(parts.std(axis=0), 1e-9)
        share = np.where(which == 0, len(wrong) / len(right), 1.0)  # every kind weighs the same
        model = LogisticRegression(C=STRENGTH, max_iter=300).fit(parts / scale, which, sample_weight=share)
        weights = (components.components_.T / scale) @ model.coef_.T
        bias = model.intercept_ - components.mean_ @ weights
        unit = right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-9)
        centre = unit.mean(axis=0).astype(np.float64)
        return cls(centre / max(float(np.linalg.norm(centre)), 1e-9), weights, bias)

    def scores(self, embeddings: FloatArray) -> Array:
        logs = log_softmax(embeddings.astype(np.float64) @ self.weights + self.bias)
        return np.stack([distances(embeddings, self.centre), -logs[:, 0]], axis=1)


def _fit_record(inputs: Sequence[PatientInputs], config: FusionConfig) -> RecordScope:
    specs = {spec.name: spec for spec in config.fields}
    if unknown := [name for name in config.scope_fields if name not in specs]:
        raise BadInput(f"scope_fields names {', '.join(unknown)}, which the config's fields do not hold")
    ranges = {}
    for name in config.scope_fields:
        spec = specs[name]
        values = [v for i in inputs if (v := i.fields.get(name)) is not None and is_plausible(v, spec)]
        if len(values) >= LEAST_PATIENTS:
            ranges[name] = Range(
                spec.label, spec.unit, float(math.floor(min(values))), float(math.ceil(max(values)))
            )
    counts = [known_values(i, config) for i in inputs]
    known = [count for count in counts if count]
    most = sum(
        len(specs_)
        for modality, specs_ in (
            (Modality.TABULAR, config.fields),
            (Modality.GENOMICS, config.genomics),
            (Modality.SERIES, config.channels),
        )
        if modality in config.modalities
    )
    return RecordScope(ranges, min(known) if len(known) >= LEAST_PATIENTS else 0, most)
