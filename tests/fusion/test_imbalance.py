"""Remedies for rare classes: what each promises, and that risks stay risks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusion
from fusion import Imbalance, Modality
from fusion.augment import Augmentation
from fusion.balance import balanced_rows, class_weights, drawn_alike, focal_loss, prior_corrected
from fusion.batch import collate
from fusion.errors import BadInput, NotEnoughData
from fusion.examples import check_real
from fusion.imaging.synthesise import SIDE, synthesise, train_gan
from fusion.losses import masked_bce
from tests.fusion import simulated


def test_class_weights_make_every_class_as_heavy() -> None:
    counts = np.array([900, 90, 10])
    weights = class_weights(counts).numpy()
    assert weights * counts == pytest.approx(np.full(3, counts.sum() / 3))
    assert class_weights(counts, exponent=0).numpy() == pytest.approx(np.ones(3))
    with pytest.raises(BadInput, match="a row each"):
        class_weights(np.array([5, 0]))


def test_focal_loss_is_cross_entropy_at_zero_and_forgives_what_is_told_well() -> None:
    logits, target = torch.randn(50, 4), torch.randint(4, (50,))
    plain = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(focal_loss(logits, target, gamma=0), plain)
    sure, unsure = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    first = torch.tensor([0])
    ratio = focal_loss(sure, first) / focal_loss(unsure, first)
    assert ratio < 0.1 * focal_loss(sure, first, gamma=0) / focal_loss(unsure, first, gamma=0)
    labels = torch.tensor([[1.0], [0.0], [torch.nan]])
    said = torch.tensor([[2.0], [-1.0], [5.0]])
    assert masked_bce(said, labels, gamma=2.0) < masked_bce(said, labels)


def test_a_balanced_sample_draws_every_class_alike_and_every_row_of_it() -> None:
    classes = np.array([0] * 950 + [1] * 45 + [2] * 5)
    drawn = balanced_rows(classes, 6000, torch.Generator().manual_seed(0)).numpy()
    shares = np.bincount(classes[drawn]) / 6000
    assert shares == pytest.approx(np.full(3, 1 / 3), abs=0.03)
    assert set(drawn[classes[drawn] == 2]) == set(range(995, 1000))


def test_a_bent_prior_is_put_back() -> None:
    """Classifiers of one simulated world, trained under equal and under true shares, then agree."""
    rng = np.random.default_rng(0)
    true = np.array([0.9, 0.1])
    x = rng.normal(size=4000)
    logits = torch.from_numpy(np.stack([np.zeros(4000), 2 * x], axis=1))  # learned under equal shares
    said = torch.softmax(prior_corrected(logits, torch.tensor([0.5, 0.5]), torch.from_numpy(true)), dim=1)
    odds = np.exp(2 * x) * true[1] / true[0]
    assert said[:, 1].numpy() == pytest.approx(odds / (1 + odds), abs=1e-6)


@pytest.mark.parametrize("imbalance", list(Imbalance))
def test_whatever_the_remedy_risks_match_the_rate_of_a_rare_event(imbalance: Imbalance) -> None:
    rng = np.random.default_rng(0)
    examples = []
    for number in range(1200):
        value = rng.normal()
        chance = 1 / (1 + np.exp(3.2 - 1.5 * value - 0.8 * value**2))
        inputs = fusion.PatientInputs(key=str(number), fields={"f0": value})
        examples.append(fusion.Example(inputs, {"icu": int(rng.random() < chance)}, str(number)))
    config = simulated.make_config(
        outcomes=simulated.OUTCOMES[:1],
        fields=simulated.FIELDS[:1],
        modalities=(Modality.TABULAR,),
        imbalance=imbalance,
        epochs=12,
        folds=2,
    )
    bundle = fusion.train(examples[:700], examples[700:900], config)
    said = np.array([p.outcomes[0].risk for p in fusion.predict(bundle, [e.inputs for e in examples[900:]])])
    rate = np.mean([e.labels["icu"] for e in examples[900:]])
    assert said.mean() == pytest.approx(rate, abs=0.05)


def test_augmentation_keeps_shape_range_and_seed() -> None:
    pictures = torch.rand(5, 3, 40, 30)
    change = Augmentation(flips=True)
    one, two = (change(pictures, torch.Generator().manual_seed(7)) for _ in range(2))
    torch.testing.assert_close(one, two)
    assert one.shape == pictures.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    assert not torch.allclose(one, change(pictures, torch.Generator().manual_seed(8)))
    off = Augmentation(degrees=0, shift=0, zoom=0, brightness=0, contrast=0, gamma=0, noise=0, blur=0)
    torch.testing.assert_close(off(pictures, torch.Generator()), pictures, atol=1e-4, rtol=0)


def test_a_gan_learns_the_colour_of_each_class_and_says_that_it_made_them_up() -> None:
    rng = np.random.default_rng(0)
    bright = np.repeat([0.25, 0.75], 30)
    pictures = np.clip(bright[:, None, None, None] + rng.normal(0, 0.05, (60, 1, SIDE, SIDE)), 0, 1)
    maker = train_gan(pictures.astype(np.float32), np.repeat([0, 1], 30), steps=120, batch=16)
    made = synthesise(maker, {0: 20, 1: 20})
    assert made.values.shape == (40, 1, SIDE, SIDE)
    assert made.values[20:].mean() > made.values[:20].mean() + 0.1
    with pytest.raises(BadInput, match="40 synthetic pictures in the held_out split"):
        check_real(made.keys, "held_out")
    with pytest.raises(BadInput, match="classes 0 to 1"):
        synthesise(maker, {2: 1})
    with pytest.raises(NotEnoughData, match="20 pictures"):
        train_gan(pictures[:25].astype(np.float32), np.repeat([0, 1], (20, 5)))


@pytest.mark.parametrize("split", ["tuning", "held_out"])
def test_no_synthetic_picture_tunes_or_measures_a_model(split: str) -> None:
    real = simulated.examples(40, 1)
    rows = np.zeros((1, simulated.IMAGE.width), np.float32)
    made = fusion.PixelInput(
        "synthetic-1", simulated.never_read, np.zeros(1, np.float32), {simulated.IMAGE.version: rows}
    )
    planted = fusion.Example(fusion.PatientInputs(key="x", images=(made,)), {"icu": 1, "death": 0}, "x")
    config = simulated.make_config(epochs=1, folds=2)
    if split == "tuning":
        with pytest.raises(BadInput, match="synthetic"):
            fusion.train(real, [planted], config)
        return
    bundle = fusion.train(real, [], config)
    with pytest.raises(BadInput, match="synthetic"):
        fusion.evaluate(bundle, [planted])


def test_balanced_sampling_leaves_risks_unbiased_where_a_modality_is_held_by_sicker_patients() -> None:
    """Fields are known of 900 patients, half of whom have the event; unknown of 1800 who rarely have it."""
    rng = np.random.default_rng(0)
    examples = []
    for number in range(2700):
        has_fields = number % 3 == 0
        one, two = rng.normal(size=2)
        chance = 1 / (1 + np.exp(-2.5 * one * two)) if has_fields else 0.05
        inputs = fusion.PatientInputs(
            key=str(number),
            fields={"f0": one, "f1": two} if has_fields else {},
            genomics={"g0": float(rng.random() < 0.5)},
        )
        examples.append(fusion.Example(inputs, {"icu": int(rng.random() < chance)}, str(number)))
    config = simulated.make_config(
        outcomes=simulated.OUTCOMES[:1],
        fields=simulated.FIELDS[:2],
        modalities=(Modality.TABULAR, Modality.GENOMICS),
        imbalance=Imbalance.BALANCED_SAMPLING,
        epochs=40,
        folds=2,
        modality_dropout=0.0,
    )
    bundle = fusion.train(examples[:2100], examples[2100:], config)
    held = [e for e in examples[:2100] if e.inputs.fields]
    with torch.no_grad():
        said = bundle.model.encode(collate([e.inputs for e in held], config, bundle.embedder)).logits[:, 0, 0]
        risk = torch.sigmoid(said + bundle.model.base_logit)
    assert float(risk.std()) > 0.1, "the product of two fields is learned by steps"
    assert float(risk.mean()) == pytest.approx(np.mean([e.labels["icu"] for e in held]), abs=0.05)


def test_balanced_sampling_is_of_one_outcome() -> None:
    config = simulated.make_config(imbalance=Imbalance.BALANCED_SAMPLING, epochs=1, folds=2)
    with pytest.raises(
        BadInput, match=r"balanced-sampling draws rows by one outcome, and the model has 2 \(icu, death\)"
    ):
        fusion.train(simulated.examples(40, 1), [], config)


def test_an_unknown_label_is_not_drawn_as_no_event() -> None:
    labels = torch.tensor([[1.0], [torch.nan], [0.0], [torch.nan], [torch.nan]])
    draw, log_odds = drawn_alike(labels, torch.Generator().manual_seed(0))
    assert set(draw(100).tolist()) == {0, 2}
    assert float(log_odds) == pytest.approx(0)
    with pytest.raises(BadInput, match="both"):
        drawn_alike(labels[1:], torch.Generator())


def test_synthetic_pictures_teach_encoders_and_nothing_else() -> None:
    """300 made-up events among 400 real patients: base rate, fusion and calibration are of the real ones."""
    rng = np.random.default_rng(0)

    def example(key: str, event: int) -> fusion.Example:
        row = (0.5 * rng.normal(size=simulated.IMAGE.width) + event * simulated.AXIS / 4).astype(np.float32)
        picture = fusion.PixelInput(
            key, simulated.never_read, np.zeros(1, np.float32), {simulated.IMAGE.version: row[None]}
        )
        return fusion.Example(fusion.PatientInputs(key=key, images=(picture,)), {"icu": event}, key)

    real = [example(f"p{i}", int(rng.random() < 0.15)) for i in range(600)]
    made = [example(f"synthetic-{i}", 1) for i in range(300)]
    config = simulated.make_config(
        outcomes=simulated.OUTCOMES[:1], modalities=(Modality.IMAGE,), folds=2, epochs=2
    )
    bundle = fusion.train([*real[:400], *made], [], config)
    rate = np.mean([e.labels["icu"] for e in real[:400]])
    assert bundle.metadata["cohort"]["base_rate"]["icu"] == pytest.approx(rate)
    said = np.array([p.outcomes[0].risk for p in fusion.predict(bundle, [e.inputs for e in real[400:]])])
    assert said.mean() == pytest.approx(np.mean([e.labels["icu"] for e in real[400:]]), abs=0.06)
