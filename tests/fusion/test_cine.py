"""Clips: whatever looks at their course, padding and batch order change nothing, and it learns what moves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion
from fusion import CinePooling, Modality
from fusion.batch import Tokens
from fusion.encoders.cine import CineEncoder
from tests.fusion import simulated


def random_encoder(pooling: CinePooling, seed: int = 0) -> CineEncoder:
    torch.manual_seed(seed)
    encoder = CineEncoder(8, 4, 2, pooling).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    encoder.fit_statistics(Tokens(torch.randn(6, 5, 8), torch.ones(6, 5, dtype=torch.bool)))
    return encoder


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    extra=st.integers(1, 6),
    pooling=st.sampled_from(list(CinePooling)),
    same_time=st.booleans(),
)
def test_padding_and_batch_order_change_nothing(
    lengths: list[int], extra: int, pooling: CinePooling, same_time: bool
) -> None:
    encoder, longest = random_encoder(pooling), max([1, *lengths])
    torch.manual_seed(sum(lengths))
    known = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    gaps = torch.zeros(len(lengths), longest) if same_time else torch.rand(len(lengths), longest) * 90
    tokens = Tokens(torch.randn(len(lengths), longest, 8), known, gaps.cumsum(1))
    plain = encoder(encoder.prepare(tokens))
    padded = Tokens(
        torch.cat(
            [
                torch.where(known[..., None], tokens.values, torch.nan),
                torch.full((len(known), extra, 8), 9e9),
            ],
            1,
        ),
        torch.cat([known, torch.zeros(len(known), extra, dtype=torch.bool)], 1),
        torch.cat([tokens.times_ms, torch.full((len(known), extra), -5.0)], 1),  # type: ignore[list-item]
    )
    again = encoder(encoder.prepare(padded))
    torch.testing.assert_close(again.logits, plain.logits, atol=1e-4, rtol=1e-4)
    order = torch.randperm(len(lengths))
    turned = encoder(encoder.prepare(tokens.rows(order)))
    torch.testing.assert_close(turned.logits, plain.logits[order], atol=1e-4, rtol=1e-4)
    assert plain.weights is not None
    torch.testing.assert_close(plain.weights.sum(1), known.any(dim=1).float())
    assert bool((plain.weights[~known] == 0).all())


def test_when_frames_were_taken_matters_to_a_course_and_not_to_the_mean() -> None:
    values, known = torch.randn(1, 6, 8), torch.ones(1, 6, dtype=torch.bool)
    for pooling in CinePooling:
        encoder = random_encoder(pooling)
        said = [
            encoder(encoder.prepare(Tokens(values, known, torch.arange(6)[None] * gap))).logits
            for gap in (20.0, 400.0)
        ]
        is_course = pooling not in (CinePooling.MEAN, CinePooling.FRAME)
        assert torch.allclose(*said) is not is_course


def test_a_single_frame_model_sees_the_middle_frame_only() -> None:
    encoder = random_encoder(CinePooling.FRAME)
    values, known = torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    other = torch.randn(1, 5, 8)
    other[:, 2] = values[:, 2]
    one, two = (encoder(encoder.prepare(Tokens(v, known, torch.zeros(1, 5)))).logits for v in (values, other))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("pooling", [CinePooling.GRU, CinePooling.LSTM, CinePooling.ATTENTION])
def test_it_learns_an_order_that_no_mean_can_see(pooling: CinePooling) -> None:
    """Simulated: brightness rises in one half of the clips and falls in the other."""
    rng = np.random.default_rng(0)
    version = simulated.IMAGE.version
    examples = []
    for number in range(240):
        label = number % 2
        course = np.linspace(-1, 1, 8) * (1 if label else -1)
        rows = rng.normal(0, 0.1, (8, simulated.IMAGE.width)).astype(np.float32)
        rows[:, 0] += course.astype(np.float32)
        times = np.cumsum(rng.uniform(20, 60, 8)).astype(np.float32)
        clip = fusion.PixelInput(str(number), simulated.never_read, times, {version: rows})
        inputs = fusion.PatientInputs(key=str(number), cines=(clip,))
        examples.append(fusion.Example(inputs, {"icu": label}, str(number)))
    config = simulated.make_config(
        outcomes=simulated.OUTCOMES[:1],
        modalities=(Modality.CINE,),
        cine_pooling=pooling,
        epochs=60,
        patience=30,
        folds=2,
        learning_rate=1e-2,
    )
    known = [e.labels["icu"] for e in examples[180:]]
    bundle = fusion.train(examples[:120], examples[120:180], config)
    said = [p.outcomes[0].risk for p in fusion.predict(bundle, [e.inputs for e in examples[180:]])]
    assert fusion_auroc(said, known) > 0.95
    still = dataclasses.replace(config, cine_pooling=CinePooling.MEAN)
    flat = fusion.train(examples[:120], examples[120:180], still)
    said = [p.outcomes[0].risk for p in fusion.predict(flat, [e.inputs for e in examples[180:]])]
    assert fusion_auroc(said, known) < 0.7
    (first,) = fusion.predict(bundle, [examples[200].inputs])
    assert sum(next(iter(first.frame_weights.values()))) == pytest.approx(1, abs=1e-5)


def fusion_auroc(said: list[float], known: list[int]) -> float:
    from fusion.metrics import auroc

    found = auroc(np.array(said), np.array(known, float))
    assert found is not None
    return found
