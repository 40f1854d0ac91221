"""What a fusion is compared with: fair to the baselines, blind to the held-out patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion import Modality
from fusion.baselines import blocks, compare, concatenated, counted_once, stacked
from fusion.batch import collate
from fusion.calibrate import sigmoid
from fusion.embedding import Embedder
from fusion.examples import labels_of
from fusion.metrics import auroc
from tests.fusion import simulated

NAN = np.nan


def drawn(count: int, seed: int) -> tuple[dict[Modality, np.ndarray], np.ndarray]:
    """Two causes, each seen by one modality; a tenth of values missing."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(count, 2))
    labels = (rng.random(count) < sigmoid(1.5 * cause.sum(1))).astype(float)
    fields = np.column_stack([cause[:, 0], rng.normal(size=(count, 3))])
    fields[rng.random(fields.shape) < 0.1] = NAN
    axis = np.random.default_rng(7).normal(size=60)
    image = rng.normal(size=(count, 60)) + np.outer(cause[:, 1], axis)
    return {Modality.TABULAR: fields, Modality.IMAGE: image}, labels


def test_the_stack_beats_each_of_its_modalities() -> None:
    train, labels = drawn(600, 0)
    held, happened = drawn(600, 1)
    found = stacked(train, labels, held, seed=0)
    scores = {name: auroc(risks, happened) for name, risks in found.items()}
    assert scores["sum of logits"] > max(scores["tabular"], scores["image"]) + 0.02
    assert abs(found["sum of logits"].mean() - happened.mean()) < 0.1, "the event rate is counted once"
    for risks in concatenated(train, labels, held, seed=0).values():
        assert auroc(risks, happened) > max(scores["tabular"], scores["image"])


def test_a_lacking_modality_adds_nothing() -> None:
    train, labels = drawn(300, 0)
    held, _ = drawn(50, 1)
    held[Modality.IMAGE][:20] = NAN
    found = stacked(train, labels, held, seed=0)
    assert np.allclose(found["sum of logits"][:20], found["tabular"][:20])
    assert np.allclose(found["image"][:20], labels.mean())
    for risks in concatenated(train, labels, held, seed=0).values():
        assert np.isfinite(risks).all()


def test_a_modality_nobody_had_in_training_says_the_base_rate() -> None:
    train, labels = drawn(200, 0)
    train[Modality.IMAGE][:] = NAN
    held, _ = drawn(30, 1)
    found = stacked(train, labels, held, seed=0)
    assert np.allclose(found["image"], labels.mean())
    for risks in concatenated(train, labels, held, seed=0).values():
        assert np.isfinite(risks).all()


def test_held_out_patients_do_not_influence_each_other() -> None:
    train, labels = drawn(200, 0)
    held, _ = drawn(40, 1)
    first = {m: rows[:10] for m, rows in held.items()}
    for recipe in (stacked, concatenated):
        whole, part = recipe(train, labels, held, seed=0), recipe(train, labels, first, seed=0)
        for name, risks in part.items():
            assert np.allclose(risks, whole[name][:10])


def test_unknown_labels_are_left_out_not_counted_as_no() -> None:
    train, labels = drawn(200, 0)
    held, _ = drawn(20, 1)
    hidden = labels.copy()
    hidden[:80] = NAN
    kept = {m: rows[80:] for m, rows in train.items()}
    for recipe in (stacked, concatenated):
        with_gaps = recipe(train, hidden, held, seed=0)
        for name, risks in recipe(kept, labels[80:], held, seed=0).items():
            assert np.allclose(risks, with_gaps[name])


def test_every_baseline_speaks_on_a_batch_with_gaps() -> None:
    config = simulated.make_config()
    examples, asked = simulated.examples(120, 1), simulated.examples(30, 2)
    embedder = Embedder(config)
    train = collate([e.inputs for e in examples], config, embedder)
    held = collate([e.inputs for e in asked], config, embedder)
    labels = labels_of(examples, config)[:, 0].double().numpy()
    (found,) = compare(train, labels[:, None], held, config, seed=0)
    assert set(found) == {"simple stack", "logistic regression", "gradient boosting"}
    for risks in found.values():
        assert risks.shape == (30,)
        assert ((risks >= 0) & (risks <= 1)).all()


def test_a_row_is_the_mean_of_its_known_embeddings() -> None:
    config = simulated.make_config(modalities=(Modality.CINE, Modality.TABULAR))
    one = simulated.examples(3, 5, missing=0.0)
    batch = collate([e.inputs for e in one], config, Embedder(config))
    rows = blocks(batch, config.modalities)
    tokens = batch.tokens[Modality.CINE]
    assert rows[Modality.CINE][0] == pytest.approx(
        tokens.values[0][tokens.known[0]].mean(0).double().numpy(), abs=1e-5
    )
    assert rows[Modality.TABULAR].shape == (3, len(config.fields))


def test_a_field_that_stands_in_the_series_too_is_counted_once() -> None:
    """The sum must not be surer of it than the series is; a value the series do not hold stays a field."""
    config = simulated.make_config(modalities=(Modality.TABULAR, Modality.SERIES))
    config = replace(config, channels=config.fields)
    train, labels = drawn(300, 0)
    held, _ = drawn(100, 1)

    def with_series(fields: np.ndarray) -> dict[Modality, np.ndarray]:
        channels = np.repeat(fields, 2, axis=1) * np.tile([1.0, -1.0], fields.shape[1])  # last, another
        return {Modality.TABULAR: fields, Modality.SERIES: channels}

    rows, asked = (with_series(each[Modality.TABULAR][:, :3]) for each in (train, held))
    assert set(counted_once(rows, rows, config)) == {Modality.SERIES}
    seen, told = (counted_once(each, rows, config) for each in (rows, asked))
    found = stacked(seen, labels, told, seed=0)
    assert np.array_equal(found["sum of logits"], found["series"])

    older = {m: block.copy() for m, block in rows.items()}
    older[Modality.SERIES][0, 0] = NAN  # of one patient only the field knows the first value
    older[Modality.TABULAR][0, 0] = 1.0
    partly = counted_once(older, older, config)
    assert np.array_equal(partly[Modality.TABULAR], older[Modality.TABULAR][:, :1], equal_nan=True)
    other = replace(config, channels=simulated.CHANNELS + config.fields[:1])
    assert counted_once(rows, rows, other) is rows, "other channels"
    only = {Modality.TABULAR: rows[Modality.TABULAR]}
    assert counted_once(only, only, config) is only, "no series that could hold them"


def test_as_many_components_are_kept_as_are_asked_for() -> None:
    train, labels = drawn(600, 0)
    held, happened = drawn(600, 1)
    few = stacked(train, labels, held, seed=0, components=1)["image"]
    usual, many = (stacked(train, labels, held, seed=0, components=n)["image"] for n in (32, 60))
    assert np.array_equal(usual, stacked(train, labels, held, seed=0)["image"])
    assert not np.allclose(usual, many)
    assert auroc(many, happened) > auroc(few, happened) - 0.05
