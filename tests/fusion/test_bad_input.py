"""What does not fit is refused by a FusionError that names the field and what was expected there."""

from __future__ import annotations

import dataclasses
from decimal import Decimal

import numpy as np
import pytest

import fusion
from fusion import Modality
from fusion.backbones.volume import Grid, resample
from fusion.examples import check_real, is_synthetic, pixel_keys
from fusion.imaging.segment import Segmenter, SegmenterConfig
from fusion.preparing import resized
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
        (np.linspace(0, 255, 1024).reshape(1, 32, 32), "from 0 to 255 .*", fusion.BadInput),
        (np.linspace(-5, 1, 1024).reshape(1, 32, 32), "from -5 to 1 ", fusion.BadInput),
        (np.full((1, 32, 32), 5), "from 5 to 5 ", fusion.BadInput),
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


def _clip(frames: int, times: object) -> fusion.PatientInputs:
    held = np.random.default_rng(0).normal(size=(frames, 32)).astype(np.float32)
    pixels = fusion.PixelInput("c3", simulated.never_read, times, {simulated.IMAGE.version: held})  # type: ignore[arg-type]
    return fusion.PatientInputs(key="a", cines=(pixels,))


@pytest.mark.parametrize(
    ("frames", "times", "words"),
    [
        (3, [0, np.nan, 80], r"not finite where times_ms float32 \[3\].* in ms"),
        (3, [0, 40, np.inf], r"not finite where times_ms float32 \[3\]"),
        (3, [-3e38, 0, 3e38], "not finite"),
        (3, [0, 1, 1e300], "not finite"),
        (3, ["a", "b", "c"], r"no numbers where times_ms float32 \[3\]"),
        (3, [0, 40], r"3 frames embedded but 2 times where times_ms float32 \[3\]"),
        (3, [[0], [40], [80]], r"times of shape \[3, 1\] where"),
        (3, None, r"times of shape \[\] where"),
    ],
)
def test_times_of_a_clip_are_finite_one_a_frame(
    bundle: fusion.Bundle, frames: int, times: object, words: str
) -> None:
    with pytest.raises(fusion.BadInput, match=f"cine 'c3': .*{words}"):
        fusion.predict(bundle, [_clip(frames, times)])


def test_an_embedding_without_rows_or_numbers_is_named(bundle: fusion.Bundle) -> None:
    with pytest.raises(fusion.BadInput, match=r"cine: .*'c3' has shape \[0, 32\] where .*n at least 1"):
        fusion.predict(bundle, [_clip(0, [])])
    with pytest.raises(fusion.BadInput, match=r"image: .*'x' has shape \[0, 32\] where .*n at least 1"):
        fusion.predict(bundle, [_image(np.zeros((0, 32), np.float32))])
    with pytest.raises(fusion.BadInput, match=r"image: .*'x' is list where float32 \[n, 32\]"):
        fusion.predict(bundle, [_image([[0.0] * 32])])  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["12", "x", [1.0, 2.0], object(), 1j])
def test_what_is_no_number_is_refused_by_the_name_of_its_field(bundle: fusion.Bundle, value: object) -> None:
    kind = type(value).__name__
    for held, name in (
        ({"fields": {"f0": value}}, r"field 'f0': .*{} where a number \(mmol/L\)"),
        ({"genomics": {"g0": value}}, r"field 'g0': .*{} where a number \(1\)"),
        (
            {"fields": {"f0": 1.0, "other": value}},
            r"field 'other'.* {}" if kind in ("complex", "object") else "",
        ),
        ({"series": _points(value)}, r"series 'c1': value: .*{} where a number \(mm\[Hg\]\)"),
        ({"series": _points(1.0, hours=value)}, r"series 'c1': hours_before: .*{} where a number \(h\)"),
    ):
        if name:
            with pytest.raises(fusion.BadInput, match=name.format(kind)):
                fusion.predict(bundle, [fusion.PatientInputs(key="a", **held)])  # type: ignore[arg-type]


def _points(value: object, hours: object = 2.0) -> tuple[fusion.SeriesPoint, ...]:
    return (fusion.SeriesPoint("c0", 1.0, 0.5), fusion.SeriesPoint("c1", hours, value))  # type: ignore[arg-type]


@pytest.mark.parametrize("hours", [np.nan, np.inf, None])
def test_hours_before_are_finite(bundle: fusion.Bundle, hours: float | None) -> None:
    with pytest.raises(fusion.BadInput, match="series 'c1': hours_before is not finite where hours back"):
        fusion.predict(bundle, [fusion.PatientInputs(key="a", series=_points(1.0, hours))])


@pytest.mark.parametrize(
    "one", [1, True, np.float32(1), np.float64(1), np.int64(1), np.bool_(True), Decimal(1)]
)
def test_every_kind_of_number_is_read_alike(bundle: fusion.Bundle, one: float) -> None:
    def told(x: float) -> fusion.PatientInputs:
        return fusion.PatientInputs(
            key="a",
            fields={"f0": x, "flag": x},
            genomics={"g0": x},
            series=_points(x, float(x) if isinstance(x, np.bool_) else x),
        )

    first, second = fusion.predict(bundle, [told(1.0), told(one)])
    assert [o.risk for o in first.outcomes] == pytest.approx([o.risk for o in second.outcomes])
    assert (second.missing, second.missing_fields) == (first.missing, first.missing_fields)
    assert second.inputs_digest


@pytest.mark.parametrize(
    "nothing", [None, float("nan"), np.float32("nan"), Decimal("nan"), float("inf"), 1e300, 10**400]
)
def test_none_nan_and_the_unbounded_are_missing(bundle: fusion.Bundle, nothing: float | None) -> None:
    bare = dataclasses.replace(
        bundle.config,
        fields=tuple(dataclasses.replace(spec, low=None, high=None) for spec in bundle.config.fields),
        channels=tuple(dataclasses.replace(spec, low=None, high=None) for spec in bundle.config.channels),
    )
    held = fusion.PatientInputs(key="a", fields={"f0": nothing, "f1": 1.0}, series=_points(nothing))
    without = fusion.PatientInputs(key="a", fields={"f1": 1.0}, series=_points(nothing)[:1])
    for config in (bundle.config, bare):
        first, second = fusion.predict(dataclasses.replace(bundle, config=config), [held, without])
        assert [o.risk for o in first.outcomes] == pytest.approx([o.risk for o in second.outcomes])
        assert first.missing_fields == second.missing_fields == ("f0", "flag")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_fused_logit_that_is_no_number_gives_no_risk(
    bundle: fusion.Bundle, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    patient = simulated.examples(1, 5)[0].inputs
    fuse = bundle.model.fuse

    def broken(*told: object) -> object:
        fused = fuse(*told).clone()  # type: ignore[arg-type]
        fused[..., 1] = wrong
        return fused

    monkeypatch.setattr(bundle.model, "fuse", broken)
    with pytest.raises(fusion.FusionError, match=r"^death: the fused logit is not finite"):
        fusion.predict(bundle, [patient])


def test_pixels_that_overshoot_a_little_pass_and_others_say_what_to_divide_by(bundle: fusion.Bundle) -> None:
    picture = np.linspace(-1e-3, 1 + 1e-3, 1024, dtype=np.float32).reshape(1, 32, 32)
    volume = fusion.Frames(picture.repeat(4, 0), np.zeros(4, np.float32), (1.0, 1.0), 2.0)
    segmenter = Segmenter(SegmenterConfig(structures=("heart",), size=32, widths=(4, 8)))
    frames = fusion.Frames(picture, np.zeros(1, np.float32))
    patient = fusion.PatientInputs(
        key="a", images=(fusion.PixelInput("p8", lambda: frames, frames.times_ms),)
    )
    assert np.isfinite([o.risk for (p,) in [fusion.predict(bundle, [patient])] for o in p.outcomes]).all()
    assert np.isfinite(simulated.IMAGE.embed(picture, 32)).all()
    assert np.isfinite(resized(picture, 16)).all()
    assert np.isfinite(resample(volume, Grid(16, 32.0, 2.0, 4)).numpy()).all()
    assert np.isfinite(segmenter.probabilities(picture)).all()
    for top, how in ((255, "8-bit pixels by 255"), (4095, "12-bit pixels by 4095"), (1e6, "rescale them")):
        large = np.clip(picture, 0, 1) * np.float32(top)
        deep = dataclasses.replace(volume, values=large.repeat(4, 0))
        for ask in (
            lambda large=large: simulated.IMAGE.embed(large, 32),
            lambda large=large: resized(large, 16),
            lambda large=large: resized(large, 16, backbone="small_cnn+harmonised"),
            lambda deep=deep: resample(deep, Grid(16, 32.0, 2.0, 4)),
            lambda large=large: segmenter.probabilities(large),
        ):
            with pytest.raises(fusion.BadInput, match=rf"from 0 to .* intensities in \[0, 1\].*{how}"):
                ask()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interval_level": 1.5}, "interval_level must be a number between 0 and 1, .*not 1.5"),
        ({"interval_level": float("nan")}, "interval_level must be .*not nan"),
        ({"modality_dropout": 2}, "modality_dropout must be a number from 0 to 1 .*not 2"),
        ({"epochs": -1}, "epochs must be a whole number of 1 or more .*not -1"),
        ({"epochs": 2.5}, "epochs must be a whole number .*not 2.5"),
        ({"folds": 0}, "folds must be a whole number of 2 or more .*not 0"),
        ({"batch_size": "16"}, "batch_size must be a whole number .*not '16'"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0, not 0.0"),
        ({"dp_noise": -1.0}, "dp_noise must be a number of 0 or more, not -1.0"),
        ({"fusion": "bogus"}, "fusion must be one of late, gated, attention, stacking.*not 'bogus'"),
        ({"imbalance": "bogus"}, "imbalance must be one of none, .*not 'bogus'"),
        ({"modalities": ("xray",)}, "modalities must be of tabular, .*not 'xray'"),
        ({"fields": simulated.FIELDS * 2}, "fields must each be named once; .*f0, f1, flag"),
        ({"genomics": simulated.GENOMICS * 2}, "genomics must each be named once; .*g0"),
        ({"channels": simulated.CHANNELS * 2}, "channels must each be named once; .*c0, c1"),
    ],
)
def test_settings_outside_their_range_train_nothing(change: dict[str, object], words: str) -> None:
    with pytest.raises(fusion.BadInput, match=words):
        fusion.train(simulated.examples(40, 1), [], dataclasses.replace(QUICK, **change))


def test_a_synthetic_volume_is_synthetic_too(bundle: fusion.Bundle) -> None:
    made = fusion.PixelInput("synthetic-7", simulated.never_read, np.zeros(1, np.float32))
    planted = fusion.Example(
        fusion.PatientInputs(key="x", volumes=(made,)), {"icu": 1, "death": 0}, "planted"
    )
    assert is_synthetic(planted)
    with pytest.raises(fusion.BadInput, match="1 synthetic pictures in the some split"):
        check_real(pixel_keys(planted), "some")
    with pytest.raises(fusion.BadInput, match="synthetic pictures in the held_out split"):
        fusion.evaluate(bundle, [planted])
    with pytest.raises(fusion.BadInput, match="synthetic pictures in the tuning split"):
        fusion.train(simulated.examples(40, 1), [planted], QUICK)
