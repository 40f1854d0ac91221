"""Laws every model obeys, whatever it has learned."""

from __future__ import annotations

import dataclasses
from itertools import chain, combinations

import numpy as np
import pytest
import torch

import fusion
from fusion import Modality
from fusion.batch import Tokens, collate
from fusion.config import USUAL
from fusion.encoders import build_encoder
from fusion.fuse import build_fusion
from fusion.rows import VIEWS
from tests.fusion import simulated

EMPTY = {
    Modality.TABULAR: {"fields": {}},
    Modality.GENOMICS: {"genomics": {}},
    Modality.SERIES: {"series": ()},
    Modality.TEXT: {"notes": ()},
    Modality.IMAGE: {"images": ()},
    Modality.CINE: {"cines": ()},
}
SUBSETS = list(chain.from_iterable(combinations(USUAL, n) for n in range(7)))


def without(patient: fusion.PatientInputs, *modalities: Modality) -> fusion.PatientInputs:
    for modality in modalities:
        patient = dataclasses.replace(patient, **EMPTY[modality])
    return patient


def risks(bundle: fusion.Bundle, *patients: fusion.PatientInputs) -> np.ndarray:
    """float64 [B, R]."""
    return np.array([[o.risk for o in p.outcomes] for p in fusion.predict(bundle, patients, explain=False)])


def test_every_subset_of_modalities_has_a_risk(bundle: fusion.Bundle, patient: fusion.PatientInputs) -> None:
    asked = [without(patient, *absent) for absent in SUBSETS]
    for absent, prediction in zip(SUBSETS, fusion.predict(bundle, asked, explain=False), strict=True):
        assert set(prediction.missing) == set(absent)
        for outcome in prediction.outcomes:
            assert 0 < outcome.risk < 1
            assert 0 <= outcome.low <= outcome.risk <= outcome.high <= 1


def test_nothing_known_gives_the_base_rate_and_says_so(
    bundle: fusion.Bundle, patient: fusion.PatientInputs
) -> None:
    (prediction,) = fusion.predict(bundle, [without(patient, *USUAL)])
    for outcome in prediction.outcomes:
        assert outcome.risk == pytest.approx(outcome.base_rate, abs=1e-9)
        assert outcome.contributions == ()
        assert outcome.drivers == ()
        assert "average alone" in outcome.summary
    assert prediction.out_of_scope
    events = bundle.metadata["cohort"]["base_rate"]
    assert prediction.outcomes[0].base_rate == pytest.approx(events["icu"], abs=1e-6)


def test_batch_and_its_order_change_nothing(bundle: fusion.Bundle) -> None:
    several = [e.inputs for e in simulated.examples(9, 7)]
    together = risks(bundle, *several)
    assert risks(bundle, *several[::-1])[::-1] == pytest.approx(together, abs=1e-6)
    assert np.stack([risks(bundle, one)[0] for one in several]) == pytest.approx(together, abs=1e-6)


@pytest.mark.parametrize("modality", [Modality.CINE, Modality.IMAGE, Modality.TEXT, Modality.TABULAR])
def test_padding_and_what_it_holds_change_nothing(modality: Modality) -> None:
    config = simulated.make_config()
    torch.manual_seed(0)
    encoder = build_encoder(modality, config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    widths = {Modality.TABULAR: 1, Modality.TEXT: 128, Modality.IMAGE: 32 + len(VIEWS), Modality.CINE: 32}
    length, width = 3 if modality == Modality.TABULAR else 5, widths[modality]
    values, known = torch.randn(4, length, width), torch.ones(4, length, dtype=torch.bool)
    known[1, 2:] = False
    times = torch.arange(length).repeat(4, 1) * 40.0
    tokens = Tokens(values, known, times)
    encoder.fit_statistics(tokens)
    plain = encoder(encoder.prepare(tokens))
    other = torch.where(known[..., None], values, torch.tensor(torch.nan))
    padded = Tokens(other, known, torch.where(known, times, 9e9))
    if modality != Modality.TABULAR:
        padded = Tokens(
            torch.cat([other, torch.full((4, 3, width), torch.inf)], 1),
            torch.cat([known, torch.zeros(4, 3, dtype=torch.bool)], 1),
            torch.cat([padded.times_ms, torch.zeros(4, 3)], 1),
        )
    again = encoder(encoder.prepare(padded))
    torch.testing.assert_close(again.logits, plain.logits)
    torch.testing.assert_close(again.embedding, plain.embedding)
    if plain.weights is not None:
        torch.testing.assert_close(again.weights[:, :length], plain.weights)
        assert bool((again.weights[:, length:] == 0).all())


@pytest.mark.parametrize("kind", list(fusion.FusionKind))
def test_what_an_absent_modality_would_have_said_cannot_matter(kind: fusion.FusionKind) -> None:
    torch.manual_seed(0)
    fuse = build_fusion(kind, 4, 2).eval()
    for parameter in fuse.parameters():
        torch.nn.init.normal_(parameter)
    said, present = torch.randn(16, 4, 2), torch.rand(16, 4) < 0.5
    present[0], present[1] = False, True
    changed = torch.where(present[..., None], said, torch.tensor(torch.nan))
    torch.testing.assert_close(fuse(changed, present), fuse(said, present))
    assert bool((fuse(said, present)[0] == 0).all()), "nothing present must not move the base rate"
    assert not torch.equal(fuse(said + 1, present)[1], fuse(said, present)[1])


def test_a_field_that_is_missing_is_not_a_field_that_is_zero(
    bundle: fusion.Bundle, patient: fusion.PatientInputs
) -> None:
    asked = [
        dataclasses.replace(patient, fields={**patient.fields, "f0": value})
        for value in (None, float("nan"), 0.0)
    ]
    # Each asked alone: rows of one batch may differ by float32 rounding, as processors take them in fours.
    absent, not_a_number, zero = (float(risks(bundle, one)[0, 0]) for one in asked)
    assert absent == not_a_number
    assert absent != pytest.approx(zero, abs=1e-6)
    assert fusion.predict(bundle, asked[:1], explain=False)[0].missing_fields == ("f0",)


def test_a_field_that_nobody_had_in_training_is_not_called_missing() -> None:
    """Nothing was learned from it: the risk is the same with it, and nobody need go and measure it."""
    rare = fusion.FieldSpec("rare", "Seldom measured", "mL")
    config = simulated.make_config(fields=(*simulated.FIELDS, rare), modalities=(Modality.TABULAR,))
    bundle = fusion.train(simulated.examples(60, 1), [], config)
    patient = dataclasses.replace(simulated.examples(1, 2)[0].inputs, fields={})
    measured = dataclasses.replace(patient, fields={"f0": 1.0, "rare": 40.0})
    assert fusion.predict(bundle, [patient], explain=False)[0].missing_fields == ("f0", "f1", "flag")
    same = dataclasses.replace(patient, fields={"f0": 1.0})
    assert risks(bundle, measured) == pytest.approx(risks(bundle, same), abs=1e-6)


def test_an_implausible_value_is_refused_as_missing_and_counted(
    bundle: fusion.Bundle, patient: fusion.PatientInputs
) -> None:
    wild = dataclasses.replace(patient, fields={**patient.fields, "f0": 4000.0, "flag": 0.5})
    absent = dataclasses.replace(patient, fields={**patient.fields, "f0": None, "flag": None})
    assert risks(bundle, wild) == pytest.approx(risks(bundle, absent), abs=1e-12)
    assert fusion.predict(bundle, [wild], explain=False)[0].missing_fields == ("f0", "flag")
    batch = collate([wild], bundle.config, bundle.embedder)
    assert batch.refused == [("f0", "flag")]


def test_training_twice_gives_the_same_model() -> None:
    config = simulated.make_config(epochs=2, folds=2, modalities=(Modality.TABULAR, Modality.CINE))
    data, tuning = simulated.examples(40, 5), simulated.examples(25, 6)
    torch.manual_seed(1)
    first = fusion.train(data, tuning, config)
    torch.manual_seed(2)  # whatever happened before must not matter
    before = torch.random.get_rng_state()
    second = fusion.train(data, tuning, config)
    assert torch.equal(before, torch.random.get_rng_state()), (
        "training must leave the caller's generator alone"
    )
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert first.calibration == second.calibration
    assert first.intervals == second.intervals
    other = fusion.train(data, tuning, dataclasses.replace(config, seed=9))
    assert any(not torch.equal(t, other.model.state_dict()[n]) for n, t in first.model.state_dict().items())


def test_unknown_fields_and_channels_are_ignored(
    bundle: fusion.Bundle, patient: fusion.PatientInputs
) -> None:
    more = dataclasses.replace(
        patient,
        fields={**patient.fields, "new_in_catalogue": 3.0},
        series=(*patient.series, fusion.SeriesPoint("new_channel", 1.0, 2.0)),
    )
    assert risks(bundle, more) == pytest.approx(risks(bundle, patient), abs=1e-12)


def test_pixels_are_read_only_when_the_embedding_is_missing(bundle: fusion.Bundle) -> None:
    read = []
    values = np.random.default_rng(0).random((1, 40, 30)).astype(np.float32)

    def frames() -> fusion.Frames:
        read.append(1)
        return fusion.Frames(values, np.zeros(1, np.float32))

    image = fusion.PixelInput("pixels", frames, np.zeros(1, np.float32))
    ready = dataclasses.replace(
        image, embeddings={simulated.IMAGE.version: simulated.IMAGE.embed(values, 32)}
    )
    first = risks(bundle, fusion.PatientInputs(key="a", images=(image,)))
    again = risks(bundle, fusion.PatientInputs(key="a", images=(image,)))
    held = risks(bundle, fusion.PatientInputs(key="a", images=(ready,)))
    assert len(read) == 1, "computed once, then kept"
    assert np.array_equal(first, again)
    assert first == pytest.approx(held, abs=1e-6)


def test_an_embedding_of_another_shape_is_refused(bundle: fusion.Bundle) -> None:
    narrow = np.zeros((1, 7), np.float32)
    image = fusion.PixelInput(
        "x", simulated.never_read, np.zeros(1, np.float32), {simulated.IMAGE.version: narrow}
    )
    with pytest.raises(fusion.BadInput, match=r"\[1, 7\].*\[n, 32\]"):
        risks(bundle, fusion.PatientInputs(key="a", images=(image,)))
    clip = fusion.PixelInput(
        "x",
        simulated.never_read,
        np.zeros(3, np.float32),
        {simulated.IMAGE.version: np.zeros((5, 32), np.float32)},
    )
    with pytest.raises(fusion.BadInput, match="5 frames embedded but 3 times"):
        risks(bundle, fusion.PatientInputs(key="a", cines=(clip,)))
