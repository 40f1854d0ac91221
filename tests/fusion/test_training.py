"""Training: what it refuses, what it tells, and that fusing pays where causes lie in several modalities."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import fusion
from fusion import Modality
from fusion.batch import collate
from fusion.encoders import trees
from fusion.encoders.record import RecordEncoder
from fusion.metrics import auroc
from fusion.patterns import sub_patterns
from fusion.predict import risks
from fusion.train import assign_folds
from tests.fusion import simulated

QUICK = simulated.make_config(epochs=2, folds=2, modalities=(Modality.TABULAR,))


def _relabelled(examples: list[fusion.Example], events: int) -> list[fusion.Example]:
    return [
        dataclasses.replace(e, labels={"icu": int(i < events), "death": e.labels.get("death", 0)})
        for i, e in enumerate(examples)
    ]


def test_too_few_events_are_refused_with_their_number() -> None:
    data = _relabelled(simulated.examples(40, 1), 4)
    with pytest.raises(fusion.NotEnoughData, match="icu: 4 with the event and 36 without"):
        fusion.train(data, [], QUICK)
    fusion.train(_relabelled(simulated.examples(40, 1), 5), [], QUICK)


def test_what_cannot_be_trained_is_refused_before_any_work() -> None:
    data = simulated.examples(40, 1)
    for changes, words in (
        ({"outcomes": ()}, "at least one outcome"),
        ({"outcomes": simulated.OUTCOMES[:1] * 2}, "named once"),
        ({"modalities": ()}, "at least one modality"),
        ({"finetune": "all"}, "finetune must be one of none, head, gradual, not 'all'"),
    ):
        with pytest.raises(fusion.BadInput, match=words):
            fusion.train(data, [], dataclasses.replace(QUICK, **changes))
    with pytest.raises(fusion.BadInput, match="both the training and the tuning"):
        fusion.train(data, data[:3], QUICK)
    with pytest.raises(fusion.BadInput, match="must be 0 or 1"):
        fusion.train([dataclasses.replace(data[0], labels={"icu": 2}), *data[1:]], [], QUICK)
    with pytest.raises(fusion.UnknownEncoder, match="resnet9000"):
        fusion.train(
            data, [], dataclasses.replace(QUICK, modalities=(Modality.IMAGE,), image_backbone="resnet9000")
        )


def test_a_modality_hardly_anybody_has_is_left_out_and_said() -> None:
    data = [
        dataclasses.replace(e, inputs=dataclasses.replace(e.inputs, cines=e.inputs.cines if i < 2 else ()))
        for i, e in enumerate(simulated.examples(40, 1, missing=0.0))
    ]
    config = dataclasses.replace(
        QUICK, outcomes=simulated.OUTCOMES[:1], modalities=(Modality.TABULAR, Modality.CINE)
    )
    bundle = fusion.train(data, [], config)
    assert "3 of each are needed" in bundle.metadata["left_out"]["cine, icu"]
    with_cine = simulated.examples(1, 9, missing=0.0)[0].inputs
    without = dataclasses.replace(with_cine, cines=())
    said, plain = fusion.predict(bundle, [with_cine, without])
    assert said.missing == (Modality.CINE,)
    assert said.outcomes[0].risk == plain.outcomes[0].risk


@pytest.mark.parametrize(("patients", "grown"), [(110, False), (140, True)])
def test_voices_that_no_fold_had_patients_for_are_silent_at_the_bedside_too(
    patients: int, grown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """110 patients would do for trees, the 88 of a fold would not: the fusion has heard none."""
    monkeypatch.setattr(trees, "LEAST_ROWS", 100)
    monkeypatch.setattr(trees, "LEAST_EVENTS", 5)
    config = dataclasses.replace(QUICK, folds=5)
    bundle = fusion.train(simulated.examples(patients, 3), [], config)
    encoder = bundle.model.encoder(Modality.TABULAR)
    assert isinstance(encoder, RecordEncoder)
    assert bool(encoder.trees.is_fitted[0]) == grown


def test_progress_rises_to_one_and_false_stops() -> None:
    told: list[fusion.Progress] = []

    def keep(at: fusion.Progress) -> bool:
        told.append(at)
        return True

    fusion.train(simulated.examples(40, 1), simulated.examples(30, 2), QUICK, progress=keep)
    fractions = [at.fraction for at in told]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert any(at.train_loss is not None and at.tuning_loss is not None for at in told)
    assert {"tabular, fold 1 of 2", "tabular, all patients", "fusion", "calibration"} <= {
        at.step for at in told
    }
    with pytest.raises(fusion.Cancelled, match="fold 2"):
        fusion.train(
            simulated.examples(40, 1),
            [],
            QUICK,
            progress=lambda at: not at.step.startswith("tabular, fold 2"),
        )


def test_folds_keep_groups_whole_and_events_even() -> None:
    rng = np.random.default_rng(0)
    groups = [f"p{i // 2}" for i in range(200)]
    labels = (rng.random((200, 1)) < 0.2).astype(np.float32)
    folds = assign_folds(groups, labels, 5, seed=0)
    for group in set(groups):
        assert len({f for f, g in zip(folds, groups, strict=True) if g == group}) == 1
    rates = [labels[folds == fold].mean() for fold in range(5)]
    assert max(rates) - min(rates) < 0.06
    assert not np.array_equal(folds, assign_folds(groups, labels, 5, seed=1))


def test_sub_patterns_cover_every_subset_with_weights_of_dropout() -> None:
    present = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])
    rows, masks, weights = sub_patterns(present, 0.3, seed=0)
    assert set(rows.tolist()) == {0, 2}
    assert len(rows) == 6
    assert not bool((masks & ~present[rows]).any())
    assert bool(masks.any(dim=1).all())
    first = {tuple(m.tolist()): w for r, m, w in zip(rows, masks, weights, strict=True) if r == 0}
    total = 0.49 + 2 * 0.21
    assert first[True, True, False] == pytest.approx(0.49 / total, abs=1e-6)
    assert first[True, False, False] == pytest.approx(0.21 / total, abs=1e-6)


@pytest.mark.parametrize("kind", list(fusion.FusionKind))
def test_fusing_beats_every_modality_alone_and_comes_near_the_oracle(kind: fusion.FusionKind) -> None:
    """Causes lie in record, image, cine and series. 300 patients, a quarter of modalities absent."""
    held = simulated.simulate(600, 33, missing=0.25)
    labels = np.array([s.example.labels["icu"] for s in held], float)
    config = simulated.make_config(
        epochs=25,
        fusion=kind,
        outcomes=simulated.OUTCOMES[:1],
        modalities=(Modality.TABULAR, Modality.SERIES, Modality.IMAGE, Modality.CINE),
    )
    bundle = fusion.train(
        simulated.examples(300, 31, missing=0.25), simulated.examples(100, 32, missing=0.25), config
    )
    batch = collate([s.example.inputs for s in held], config, bundle.embedder)
    fused = auroc(risks(bundle, batch)[:, 0], labels)
    alone = {m.value: auroc(risks(bundle, batch, only=[m])[:, 0], labels) for m in config.modalities}
    oracle = auroc(np.array([s.chance for s in held]), labels)
    assert fused is not None
    assert oracle is not None
    assert fused > max(a for a in alone.values() if a is not None) + 0.05, (fused, alone)
    assert fused > oracle - 0.14, "the oracle sees what a quarter of the patients lack"
    for modality, score in alone.items():
        assert score is not None
        assert score > 0.54, f"{modality} alone tells nothing: {score}"
