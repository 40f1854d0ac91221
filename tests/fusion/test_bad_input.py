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
    with pytest.raises(fusion.BadInput, match=r"image: .*\[1, 7\] where float32 \[n, 32\]"):
        fusion.predict(bundle, [_image(np.zeros((1, 7), np.float32))])
    with pytest.raises(fusion.BadInput, match=r"image: .*\[7\] where float32 \[n, 32\]"):
        fusion.predict(bundle, [_image(np.zeros(7, np.float32))])


@pytest.mark.parametrize(
    ("values", "words", "kind"),
    [
        (np.zeros((1, 32, 32)), "every pixel is the same", fusion.BlankPixels),
        (np.full((1, 32, 32), np.nan), "not finite", fusion.BadInput),
        (np.full((1, 2, 32, 32), 0.5), r"of shape \[1, 2, 32, 32\]", fusion.BadInput),
        (np.ones((32, 32)), r"of shape \[32, 32\]", fusion.BadInput),
    ],
)
def test_pixels_that_cannot_be_read_are_named_with_what_was_expected(
    bundle: fusion.Bundle, values: np.ndarray, words: str, kind: type[fusion.BadInput]
) -> None:
    frames = fusion.Frames(values.astype(np.float32), np.zeros(1, np.float32))
    pixels = fusion.PixelInput("p7", lambda: frames, frames.times_ms)
    expected = rf"'p7': .*{words}.*float32 \[T, H, W\] .*intensities in \[0, 1\] \(no unit\)"
    for patient, name in (
        (fusion.PatientInputs(key="a", images=(pixels,)), "image"),
        (fusion.PatientInputs(key="a", cines=(pixels,)), "cine"),
    ):
        with pytest.raises(kind, match=f"{name} {expected}"):
            fusion.predict(bundle, [patient])


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
