"""A shift of the inputs is seen, chance alone is not called one, and the remedy undoes what scanners do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion
from fusion import Modality, PatientInputs, PixelInput
from fusion.embedding import Embedder
from fusion.harmonise import harmonise
from fusion.preparing import resized
from fusion.shift import Band, ShiftReport, Summary, compare_inputs, psi, summarise_inputs
from tests.fusion import simulated

CONFIG = simulated.make_config(summarise=True, modalities=(Modality.TABULAR, Modality.SERIES, Modality.IMAGE))
EMBEDDER = Embedder(CONFIG)


def patients(
    count: int, seed: int, *, move: float = 0.0, hide: float = 0.3, tint: float = 0.0
) -> list[PatientInputs]:
    """Simulated patients; `move` shifts field f0, `hide` loses f1, `tint` shifts the picture embeddings."""
    rng = np.random.default_rng(seed)
    found = []
    for i, one in enumerate(simulated.simulate(count, seed)):
        inputs = one.example.inputs
        values = {**inputs.fields, "f0": float(rng.normal() + move)}
        values["f1"] = None if rng.random() < hide else float(rng.normal())
        made = (rng.normal(size=(1, simulated.IMAGE.width)) + tint).astype(np.float32)
        picture = PixelInput(
            f"x{seed}-{i}", simulated.never_read, np.zeros(1, np.float32), {simulated.IMAGE.version: made}
        )
        found.append(dataclasses.replace(inputs, fields=values, images=(picture,)))
    return found


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise_inputs(patients(300, 1), CONFIG, EMBEDDER)


def compared(summary: Summary, recent: list[PatientInputs]) -> ShiftReport:
    return compare_inputs(summary, recent, CONFIG, EMBEDDER)


def test_the_same_kind_of_patients_is_seldom_called_a_shift(summary: Summary) -> None:
    """At most a twentieth of reports by design; inputs 0.05, pictures 0.01."""
    reports = [compared(summary, patients(60, seed)) for seed in range(100, 130)]
    assert np.mean([any(one.band != Band.STEADY for one in r.inputs) for r in reports]) <= 0.15
    assert np.mean([r.pictures.band != Band.STEADY for r in reports]) <= 0.1


def test_a_moved_field_is_named_and_red_the_others_steady(summary: Summary) -> None:
    report = compared(summary, patients(80, 2, move=1.5))
    first = report.inputs[0]
    assert (first.kind, first.name, first.label, first.band) == ("field", "f0", "First field", Band.RED)
    assert first.psi is not None
    assert first.psi > 0.25
    assert {one.name for one in report.inputs if one.band != Band.STEADY} == {"f0"}


def test_values_that_stop_coming_are_seen(summary: Summary) -> None:
    report = compared(summary, patients(80, 3, hide=0.9))
    gone = next(one for one in report.inputs if one.name == "f1")
    assert gone.band == Band.RED
    assert gone.missing_then == pytest.approx(0.3, abs=0.08)
    assert gone.missing_now == pytest.approx(0.9, abs=0.1)


def test_pictures_of_another_scanner_are_seen_with_few_images(summary: Summary) -> None:
    steady, moved = compared(summary, patients(30, 4)), compared(summary, patients(30, 4, tint=0.7))
    assert steady.pictures.band == Band.STEADY
    assert moved.pictures.band == Band.RED
    assert moved.pictures.p < 1e-6
    assert moved.pictures.effect > 1 > steady.pictures.effect


def test_with_too_few_patients_nothing_is_said(summary: Summary) -> None:
    report = compared(summary, patients(10, 5, move=3.0, tint=3.0))
    assert {one.band for one in report.inputs} == {Band.TOO_FEW}
    assert (report.pictures.band, report.pictures.p) == (Band.TOO_FEW, None)
    with pytest.raises(fusion.NotEnoughData, match="20"):
        summarise_inputs(patients(10, 6), CONFIG, EMBEDDER)


@settings(max_examples=50, deadline=None)
@given(then=st.lists(st.integers(1, 50), min_size=2, max_size=10), now=st.data())
def test_psi_is_zero_for_equal_shares_and_never_negative(then: list[int], now: st.DataObject) -> None:
    counts = np.array(then)
    shares = list(counts / counts.sum())
    assert psi(shares, int(counts.sum()), counts) == pytest.approx(0, abs=1e-9)
    other = np.array(now.draw(st.lists(st.integers(0, 50), min_size=len(then), max_size=len(then))))
    assert psi(shares, int(counts.sum()), other) >= -1e-12


def test_psi_as_worked_out_by_hand() -> None:
    """(0.8 - 0.5) ln(0.8 / 0.5) + (0.2 - 0.5) ln(0.2 / 0.5), with many patients."""
    expected = 0.3 * np.log(1.6) - 0.3 * np.log(0.4)
    assert psi([0.5, 0.5], 10**6, np.array([800_000, 200_000])) == pytest.approx(expected, rel=1e-3)


def test_no_value_of_a_patient_is_kept(summary: Summary) -> None:
    said = json.dumps(summary.to_json())
    given = patients(300, 1)
    assert not any(one.key in said for one in given)
    edges = next(one.edges for one in summary.inputs if one.name == "f0")
    assert len(edges) == 9, "tenths, not values"
    assert min(v for one in given if (v := one.fields["f0"]) is not None) not in edges


def test_it_travels_in_the_bundle(tmp_path: Path) -> None:
    examples = [fusion.Example(one, {"icu": i % 2}, one.key) for i, one in enumerate(patients(60, 7))]
    config = dataclasses.replace(CONFIG, outcomes=simulated.OUTCOMES[:1], epochs=1, folds=2)
    bundle = fusion.train(examples, [], config)
    digest = bundle.save(tmp_path / "m")
    again = fusion.Bundle.load(tmp_path / "m", digest=digest)
    assert again.summary is not None
    recent = patients(40, 8, move=2.0, tint=1.0)
    assert compared(again.summary, recent) == compared(bundle.summary, recent)
    quiet = fusion.train(examples, [], dataclasses.replace(config, summarise=False))
    assert quiet.summary is None


def chest(rng: np.random.Generator) -> np.ndarray:
    """Two dark fields in a bright body, [1, 80, 64]."""
    y, x = np.mgrid[0:80, 0:64].astype(np.float32)
    frame = 0.75 + 0.1 * np.sin(y / 5)
    for centre in (19, 45):
        frame -= 0.5 * np.exp(-(((y - 38) / 22) ** 4) - ((x - centre) / 9) ** 4)
    return np.clip(frame + 0.02 * rng.random((80, 64)), 0, 1).astype(np.float32)[None]


@pytest.mark.parametrize(
    "scanner",
    [
        lambda x: x**0.5,
        lambda x: x**2,
        lambda x: 0.2 + 0.5 * x,
        lambda x: np.pad(x, ((0, 0), (8, 8), (6, 6))),
    ],
    ids=["gamma 0.5", "gamma 2", "narrow window", "borders"],
)
def test_harmonising_undoes_what_a_scanner_did(scanner) -> None:
    picture = chest(np.random.default_rng(0))
    seen = scanner(picture).astype(np.float32)
    plain, other = harmonise(picture), harmonise(seen)
    assert other.shape == plain.shape
    assert np.abs(plain - other).mean() < 0.02
    if seen.shape == picture.shape:
        assert np.abs(plain - other).mean() < 0.3 * np.abs(picture - seen).mean()


def test_harmonising_keeps_order_range_and_shape_and_stops_at_its_own_result() -> None:
    picture = chest(np.random.default_rng(1))
    once = harmonise(picture)
    assert once.dtype == np.float32
    assert 0 <= once.min() <= once.max() <= 1
    assert np.median(once) == pytest.approx(0.5, abs=0.02)
    assert np.abs(harmonise(once) - once).mean() < 0.02
    colour = np.repeat(picture[:, None], 3, axis=1)
    assert harmonise(colour) == pytest.approx(np.repeat(once[:, None], 3, axis=1), abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_picture_stays_as_it_is(value: float) -> None:
    flat = np.full((1, 20, 30), value, np.float32)
    assert np.array_equal(harmonise(flat), flat)


def test_a_backbone_can_harmonise_what_it_sees() -> None:
    plain, even = fusion.load_backbone("small_cnn"), fusion.load_backbone("small_cnn+harmonised")
    assert even.version.startswith("small_cnn+harmonised:")
    assert even.version != plain.version
    picture = chest(np.random.default_rng(2))
    dark = np.pad(picture**2, ((0, 0), (8, 8), (6, 6))).astype(np.float32)
    kept, moved = even.embed(picture, 32), even.embed(dark, 32)
    assert np.abs(kept - moved).mean() < 0.2 * np.abs(plain.embed(picture, 32) - plain.embed(dark, 32)).mean()
    both = even.embed(np.concatenate([picture, picture**2]), 32)
    assert both[:1] == pytest.approx(kept, abs=1e-5), "each frame by itself"
    assert even.prepare(picture, 32).equal(plain.prepare(harmonise(picture), 32))
    without_torch = resized(picture, 32, backbone=even.name)
    assert np.array_equal(without_torch, resized(harmonise(picture), 32)), "and the same on small machines"
    with pytest.raises(fusion.UnknownEncoder, match="harmonised"):
        fusion.load_backbone("unknown+harmonised")


def test_a_map_of_a_cropped_picture_lies_where_the_picture_does() -> None:
    config = simulated.make_config(
        image_backbone="small_cnn+harmonised", modalities=(Modality.IMAGE,), image_size=64, epochs=2, folds=2,
        outcomes=simulated.OUTCOMES[:1],
    )  # fmt: skip
    rng = np.random.default_rng(3)

    def example(i: int) -> fusion.Example:
        frame = np.pad(chest(rng) * (1 - 0.3 * (i % 2)), ((0, 0), (10, 10), (12, 4))).astype(np.float32)
        frames = fusion.Frames(frame, np.zeros(1, np.float32))
        pixels = PixelInput(f"b{i}", lambda: frames, np.zeros(1, np.float32))
        return fusion.Example(PatientInputs(key=str(i), images=(pixels,)), {"icu": i % 2}, str(i))

    bundle = fusion.train([example(i) for i in range(24)], [], config)
    inputs = example(1).inputs
    found = fusion.explain_image(bundle, inputs, inputs.images[0], outcome="icu")
    assert found.values.shape == (224, 179)
    assert found.values[:22].max() == 0, "nothing on the border"
    assert found.values[:, :24].max() == 0
