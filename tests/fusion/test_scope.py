"""What a model must not judge is left out with its reason, and the false alarms stay near what is stated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import fusion
from fusion import Frames, Modality, PatientInputs, PixelInput
from fusion.embedding import Embedder
from fusion.scope import UNLIKE, WRONG, Scope, known_values, screen
from fusion.scope_fitting import fit_scope
from tests.fusion import simulated

pytest.importorskip("efficientnet_lite_pytorch")  # random features cannot tell up from down
SIZE = 64
CONFIG = simulated.make_config(
    image_backbone="efficientnet_lite0",
    image_size=SIZE,
    scope_pictures=60,
    scope_fields=("f0",),
    modalities=(Modality.TABULAR, Modality.IMAGE),
    outcomes=simulated.OUTCOMES[:1],
    epochs=2,
    folds=2,
)


def picture(rng: np.random.Generator) -> np.ndarray:
    """A frame with a top and a bottom: dark, a bar above bright discs that fade downwards; [1, 48, 48]."""
    y, x = np.mgrid[0:48, 0:48].astype(np.float32)
    frame = 0.1 + 0.03 * rng.random((48, 48), dtype=np.float32)
    frame[3:8, 10:38] += 0.5
    for centre in (14, 34):
        cy, cx, radius = 24 + rng.normal(0, 2), centre + rng.normal(0, 1.5), 9 + rng.normal(0, 0.7)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        frame += inside * (0.75 - 0.7 * np.clip((y - cy + radius) / (2 * radius), 0, 1))
    return np.clip(frame, 0, 1).astype(np.float32)[None]


def pixels(key: str, frame: np.ndarray) -> PixelInput:
    frames = Frames(frame, np.zeros(1, np.float32))
    return PixelInput(key, lambda: frames, np.zeros(1, np.float32))


def patient(i: int, rng: np.random.Generator) -> PatientInputs:
    return PatientInputs(
        key=str(i),
        fields={"f0": float(rng.uniform(-3, 3)), "f1": float(rng.normal()), "flag": 1.0},
        images=(pixels(f"p{i}", picture(rng)),),
    )


@pytest.fixture(scope="module")
def trained() -> fusion.Bundle:
    rng = np.random.default_rng(0)
    examples = [fusion.Example(patient(i, rng), {"icu": i % 2}, str(i)) for i in range(120)]
    return fusion.train(examples[:100], examples[100:], CONFIG)


def reasons(bundle: fusion.Bundle, frames: list[np.ndarray]) -> list[str]:
    assert bundle.scope is not None
    assert bundle.scope.image is not None
    backbone = bundle.embedder.image_backbone
    return bundle.scope.image.reasons(np.concatenate([backbone.embed(f, SIZE) for f in frames]))


def test_pictures_like_those_of_training_are_seldom_called_out_of_scope(trained: fusion.Bundle) -> None:
    rng = np.random.default_rng(5)
    alarms = [bool(why) for why in reasons(trained, [picture(rng) for _ in range(150)])]
    assert trained.scope is not None
    assert trained.scope.image is not None
    stated = trained.scope.image.false_alarms
    assert stated == pytest.approx(2 / 101)  # 100 pictures cannot show less: the largest score of each kind
    assert np.mean(alarms) <= 3 * stated


KINDS = ["upside_down", "flipped", "inverted", "cut_up", "turned_left", "mostly_black"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_the_wrong_way_is_found_and_said_in_words(trained: fusion.Bundle, kind: str) -> None:
    rng = np.random.default_rng(6)
    words, make = WRONG[kind]
    said = reasons(trained, [np.ascontiguousarray(make(picture(rng))) for _ in range(40)])
    assert np.mean([bool(why) for why in said]) >= 0.9
    if kind in ("inverted", "upside_down"):
        assert max(set(said), key=said.count) in (words, UNLIKE, WRONG["flipped"][0])


def test_what_is_no_such_picture_at_all_is_found(trained: fusion.Bundle) -> None:
    rng = np.random.default_rng(7)
    others = [
        np.zeros((1, 48, 48), np.float32),
        np.ones((1, 40, 40), np.float32),
        rng.random((1, 48, 48)).astype(np.float32),
        np.kron(rng.random((6, 6)) > 0.5, np.ones((8, 8)))[None].astype(np.float32),
    ]
    assert all(reasons(trained, others))


def test_such_a_picture_is_left_out_and_the_rest_still_counts(trained: fusion.Bundle) -> None:
    rng = np.random.default_rng(8)
    right = patient(0, rng)
    wrong = dataclasses.replace(
        right, images=(pixels("up", np.ascontiguousarray(picture(rng)[..., ::-1, ::-1])),)
    )
    without = dataclasses.replace(right, images=())
    said, bare = fusion.predict(trained, [wrong, without])
    assert list(said.left_out) == ["up"]
    assert said.left_out["up"]
    assert said.out_of_scope == ""
    assert Modality.IMAGE in said.missing
    assert said.outcomes[0].risk == pytest.approx(bare.outcomes[0].risk, abs=1e-6)
    (share,), (expected,) = said.outcomes[0].contributions, bare.outcomes[0].contributions
    assert (share.modality, share.points) == (expected.modality, pytest.approx(expected.points, abs=1e-6))
    assert said.outcomes[0].summary == (
        f"{bare.outcomes[0].summary} A picture was left out: {said.left_out['up']}."
    )
    assert said.inputs_digest == wrong.digest(), "it stands for the inputs that were given"
    both = dataclasses.replace(right, images=(*wrong.images, *right.images))
    (kept,) = fusion.predict(trained, [both])
    assert Modality.IMAGE in kept.present
    assert list(kept.left_out) == ["up"]
    with pytest.raises(fusion.BadInput, match="left out"):
        fusion.explain_image(trained, both, both.images[0], outcome="icu")
    assert fusion.explain_image(trained, both, both.images[1], outcome="icu").values.max() <= 1


def test_with_nothing_left_the_model_abstains_and_says_why(trained: fusion.Bundle) -> None:
    blank = PatientInputs(key="b", images=(pixels("blank", np.zeros((1, 48, 48), np.float32)),))
    (said,) = fusion.predict(trained, [blank])
    assert said.out_of_scope == (
        "the picture cannot be judged (it is blank: every pixel is the same) and nothing else is known"
    )
    assert said.present == ()


def test_a_patient_outside_the_range_of_training_is_not_judged(trained: fusion.Bundle) -> None:
    rng = np.random.default_rng(9)
    inside = patient(1, rng)
    outside = dataclasses.replace(inside, fields={**inside.fields, "f0": 8.0})
    assert fusion.predict(trained, [inside])[0].out_of_scope == ""
    reason = fusion.predict(trained, [outside])[0].out_of_scope
    assert reason.startswith("first field is outside the range")
    assert "(-3 to 3 mmol/L)" in reason
    assert "8" not in reason, "a reason names the limits, not the patient's value"


def test_too_little_of_a_record_alone_is_not_judged(trained: fusion.Bundle) -> None:
    rng = np.random.default_rng(10)
    full = patient(2, rng)
    scant = dataclasses.replace(full, fields={"flag": 1.0}, images=())
    assert known_values(scant, CONFIG) == 1
    assert fusion.predict(trained, [scant])[0].out_of_scope.startswith("too little is known: 1 of the 3")
    assert fusion.predict(trained, [dataclasses.replace(scant, images=full.images)])[0].out_of_scope == ""
    waiting = dataclasses.replace(scant, pending=frozenset({Modality.IMAGE}))
    assert fusion.predict(trained, [waiting])[0].out_of_scope == "", "a preliminary score may come first"


def test_it_is_kept_in_the_bundle_without_any_picture(trained: fusion.Bundle, tmp_path: Path) -> None:
    digest = trained.save(tmp_path / "m")
    again = fusion.Bundle.load(tmp_path / "m", digest=digest)
    rng = np.random.default_rng(11)
    frames = [picture(rng), np.zeros((1, 48, 48), np.float32)]
    assert reasons(again, frames) == reasons(trained, frames)
    said = json.loads((tmp_path / "m" / "metadata.json").read_text())["scope"]
    assert said["image"]["pictures"] == 100
    assert said["record"]["ranges"]["f0"]["unit"] == "mmol/L"
    assert again.save(tmp_path / "m") == digest


def test_a_bundle_from_before_has_no_limits_and_a_torn_one_is_refused(
    trained: fusion.Bundle, tmp_path: Path
) -> None:
    trained.save(tmp_path / "m")
    path = tmp_path / "m" / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "scope": {"image": {"kinds": ["sideways"]}}}))
    with pytest.raises(fusion.BundleMismatch, match="scope"):
        fusion.Bundle.load(tmp_path / "m")
    del metadata["scope"]
    for name in ("scope_pictures", "scope_fields", "scope_false_alarms"):
        del metadata["config"][name]
    path.write_text(json.dumps(metadata))
    assert fusion.Bundle.load(tmp_path / "m").scope is None


def test_stored_embeddings_are_enough_to_be_screened(trained: fusion.Bundle) -> None:
    backbone = trained.embedder.image_backbone
    made = backbone.embed(np.zeros((1, 48, 48), np.float32), SIZE)
    held = PixelInput("s", simulated.never_read, np.zeros(1, np.float32), {backbone.version: made})
    inputs = PatientInputs(key="s", images=(held,))
    found = screen(trained.scope, inputs, CONFIG, trained.embedder)
    assert found.inputs.images == ()
    assert found.left_out == {"s": UNLIKE}


def test_it_is_not_fitted_unless_asked_for_nor_on_too_few() -> None:
    rng = np.random.default_rng(12)
    patients = [patient(i, rng) for i in range(20)]
    groups = [p.key for p in patients]
    embedder = Embedder(CONFIG)
    quiet = dataclasses.replace(CONFIG, scope_pictures=0, scope_fields=())
    assert fit_scope(patients, groups, quiet, embedder) is None
    few = fit_scope(patients, groups, CONFIG, embedder)
    assert few is not None
    assert few.image is None
    assert few.record is not None
    assert (few.record.ranges, few.record.least) == ({}, 0)
    unscreened = screen(None, patients[0], CONFIG, embedder)
    assert unscreened.inputs is patients[0]
    assert (unscreened.left_out, unscreened.reason) == ({}, "")


def test_the_same_patients_give_the_same_limits() -> None:
    def fitted() -> Scope:
        rng = np.random.default_rng(13)
        patients = [patient(i, rng) for i in range(40)]
        config = dataclasses.replace(CONFIG, scope_pictures=5)
        found = fit_scope(patients, [p.key for p in patients], config, Embedder(config))
        assert found is not None
        return found

    assert fitted().to_json() == fitted().to_json()


def test_a_field_the_model_does_not_have_cannot_bound_it() -> None:
    rng = np.random.default_rng(14)
    patients = [patient(i, rng) for i in range(40)]
    config = dataclasses.replace(CONFIG, scope_pictures=0, scope_fields=("height",))
    with pytest.raises(fusion.BadInput, match="height"):
        fit_scope(patients, [p.key for p in patients], config, Embedder(config))
