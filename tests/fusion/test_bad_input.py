"""What does not fit is refused by a FusionError that names the field and what was expected there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import fusion
from fusion import Modality
from tests.fusion import simulated

QUICK = simulated.make_config(epochs=1, folds=2, modalities=(Modality.TABULAR, Modality.IMAGE))


def _image(held: np.ndarray) -> fusion.PatientInputs:
    pixels = fusion.PixelInput(
        "x", simulated.never_read, np.zeros(1, np.float32), {simulated.IMAGE.version: held}
    )
    return fusion.PatientInputs(key="a", images=(pixels,))


def test_values_that_are_not_finite_name_the_modality_and_its_shape(bundle: fusion.Bundle) -> None:
    for held in (np.nan, np.inf):
        with pytest.raises(fusion.BadInput, match=r"image: .*not finite.*float32 \[1, \d+\]"):
            fusion.predict(bundle, [_image(np.full((1, 32), held, np.float32))])
    note = fusion.NoteInput("n", "Well.", {simulated.TEXT.version: np.full((1, 128), np.nan, np.float32)})
    with pytest.raises(fusion.BadInput, match=r"text: .*not finite.*\[1, 128\]"):
        fusion.predict(bundle, [fusion.PatientInputs(key="a", notes=(note,))])


def test_an_embedding_of_another_width_names_both(bundle: fusion.Bundle) -> None:
    with pytest.raises(fusion.BadInput, match=r"\[1, 7\].*\[n, 32\]"):
        fusion.predict(bundle, [_image(np.zeros((1, 7), np.float32))])
    with pytest.raises(fusion.BadInput, match=r"\[7\].*\[n, 32\]"):
        fusion.predict(bundle, [_image(np.zeros(7, np.float32))])


def test_nothing_present_is_an_abstention_and_cannot_be_trained_on(bundle: fusion.Bundle) -> None:
    (prediction,) = fusion.predict(bundle, [fusion.PatientInputs(key="a")])
    assert prediction.out_of_scope
    assert prediction.missing == bundle.config.modalities
    empty = [
        dataclasses.replace(e, inputs=fusion.PatientInputs(key=e.inputs.key))
        for e in simulated.examples(40, 1)
    ]
    with pytest.raises(fusion.NotEnoughData, match=r"no modality.*3 of each are needed"):
        fusion.train(empty, [], QUICK)


def test_an_outcome_nobody_has_heard_of_is_named(bundle: fusion.Bundle) -> None:
    other = [dataclasses.replace(e, labels={"stroke": 1}) for e in simulated.examples(40, 90)]
    with pytest.raises(fusion.BadInput, match=r"they name stroke where icu, death \(0 or 1\)"):
        fusion.evaluate(bundle, other)
    with pytest.raises(fusion.BadInput, match=r"they name stroke where icu, death"):
        fusion.train(other, [], QUICK)
    unknown = [dataclasses.replace(e, labels={}) for e in other]
    with pytest.raises(fusion.NotEnoughData, match="icu: 0 with the event and 0 without"):
        fusion.train(unknown, [], QUICK)


@pytest.mark.parametrize("label", [2, -1, float("nan")])
def test_labels_are_zero_or_one(label: float) -> None:
    wrong = [dataclasses.replace(e, labels={"icu": label}) for e in simulated.examples(40, 1)]
    with pytest.raises(fusion.BadInput, match="label of icu must be 0 or 1"):
        fusion.train(wrong, [], QUICK)


def test_fields_outside_their_range_are_refused_as_missing_whatever_they_hold(bundle: fusion.Bundle) -> None:
    told = fusion.PatientInputs(key="a", fields={"f0": float("inf"), "f1": 1e9, "flag": float("nan")})
    (prediction,) = fusion.predict(bundle, [told])
    assert prediction.missing_fields == ("f0", "f1", "flag")
    assert np.isfinite([o.risk for o in prediction.outcomes]).all()
