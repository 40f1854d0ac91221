"""Every kind of fusion, every pattern: never worse than the best modality present, deaf to what is absent."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import pytest
import torch

import fusion
from fusion import FusionKind, Modality, second_stage
from fusion.fuse import AttentionFusion, Fusion, build_fusion
from fusion.metrics import auroc
from fusion.model import FusionModel
from fusion.patterns import all_subsets
from fusion.second_stage import WORSE, Told, _watched, fit_fusion, guard, margin_of
from tests.fusion import simulated

MODALITIES = (Modality.TABULAR, Modality.TEXT, Modality.IMAGE)
USEFUL = np.array([1.4, 0.0, 0.9])  # the text says nothing: its evidence is noise


def _model(kind: FusionKind) -> FusionModel:
    torch.manual_seed(0)
    config = simulated.make_config(modalities=MODALITIES, outcomes=simulated.OUTCOMES[:1], fusion=kind)
    model = FusionModel(config)
    model.trained.fill_(True)
    return model


def _told(count: int, seed: int, *, missing: float = 0.3) -> Told:
    """Evidence with known worth; the second modality is loud noise, surer of itself than the others."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, 3))
    labels = (rng.random(count) < 1 / (1 + np.exp(-(z @ USEFUL)))).astype(np.float32)
    evidence = z * np.array([1.4, 2.0, 0.9]) + 0.3 * rng.normal(size=(count, 3))
    present = rng.random((count, 3)) >= missing
    return (
        torch.from_numpy(evidence).float()[..., None],
        torch.from_numpy(present),
        torch.from_numpy(labels)[:, None],
    )


@lru_cache
def _fitted(kind: FusionKind) -> FusionModel:
    model = _model(kind)
    config = simulated.make_config(fusion=kind)
    fit_fusion(model, *_told(500, 1), _told(400, 5), config, lambda *_: None)
    return model


@pytest.mark.parametrize("kind", list(FusionKind))
def test_no_pattern_is_significantly_worse_than_its_best_modality(kind: FusionKind) -> None:
    """On new patients, paired bootstrap of the AUROC, for each of the 2^M patterns."""
    model = _fitted(kind)
    evidence, _, labels = _told(3000, 2, missing=0.0)
    y = labels[:, 0].double().numpy()
    rng = np.random.default_rng(0)
    for subset in all_subsets(3)[1:]:
        with torch.no_grad():
            fused = model.fuse(evidence, subset.expand(len(y), -1))[:, 0].double().numpy()
        singles = [evidence[:, m, 0].double().numpy() for m in torch.nonzero(subset).squeeze(1).tolist()]
        best = max(singles, key=lambda logits: auroc(logits, y) or 0)
        gaps = []
        for _ in range(100):
            rows = rng.integers(0, len(y), len(y))
            gaps.append((auroc(fused[rows], y[rows]) or 0) - (auroc(best[rows], y[rows]) or 0))
        assert np.percentile(gaps, 97.5) >= 0, (kind, subset.tolist(), np.mean(gaps))


@pytest.mark.parametrize("kind", list(FusionKind))
def test_fusing_two_useful_modalities_beats_either(kind: FusionKind) -> None:
    model = _fitted(kind)
    evidence, present, labels = _told(3000, 2, missing=0.0)
    y = labels[:, 0].double().numpy()
    with torch.no_grad():
        fused = model.fuse(evidence, present)[:, 0].double().numpy()
    best = max(auroc(evidence[:, m, 0].double().numpy(), y) or 0 for m in range(3))
    assert (auroc(fused, y) or 0) > best + 0.02


@pytest.mark.parametrize("kind", [FusionKind.GATED, FusionKind.ATTENTION])
def test_bent_kinds_without_tuning_patients_watch_a_part_of_whom_they_have(
    kind: FusionKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stop early on groups that they do not learn from, and are guarded by these."""
    told, groups = _told(400, 1), np.arange(400) // 2
    watched = _watched(groups, told[2], 0)
    assert 70 <= int(watched.sum()) <= 90
    assert not set(groups[watched.numpy()]) & set(groups[~watched.numpy()])
    assert not _watched(np.arange(55), told[2][:55], 0).any(), "too few to spare any"
    judged = []
    monkeypatch.setattr(second_stage, "guard", lambda model, told, groups: judged.append((told, groups)))
    losses = list[float | None]()
    config = simulated.make_config(fusion=kind)
    model = _model(kind)
    fit_fusion(model, *told, None, config, lambda *said: losses.append(said[3]), groups=groups)
    assert len(losses) < 200
    assert losses.index(min(one for one in losses if one is not None)) < len(losses) - 1
    ((asked, of),) = judged
    assert torch.equal(asked[0], told[0][watched])
    assert np.array_equal(of, groups[watched.numpy()])


def test_the_guard_leaves_out_what_harms_and_only_that() -> None:
    """A fusion that listens to noise, not trained at all: the guard lets the noise in nowhere it harms."""
    model = _model(FusionKind.LATE)
    with torch.no_grad():
        model.fusion.weight.fill_(1.0)  # type: ignore[union-attr]
        model.fusion.redundancy.zero_()  # type: ignore[union-attr]
    assert bool(model.heard[-1].all())
    guard(model, _told(1500, 3, missing=0.0))
    heard = model.heard[..., 0]
    assert heard[0b111].tolist() == [True, False, True]
    assert heard[0b011].tolist() == [True, False, False]
    assert heard[0b101].tolist() == [True, False, True], "two useful modalities are both let in"
    assert heard[0b010].tolist() == [False, True, False], "a lone modality is all there is"
    few = _model(FusionKind.LATE)
    guard(few, _told(40, 3, missing=0.0))
    assert bool((few.heard == _model(FusionKind.LATE).heard).all()), "too few patients to judge"


def test_the_guard_seldom_leaves_out_what_neither_helps_nor_harms() -> None:
    """The second and third modality tell as much as they disturb: of six ways to hear less none is better,
    and yet the best of the six is, by one standard error, among many a hundred patients."""
    useful, noise = np.array([1.0, 0.5, 0.5]), np.array([0.0, 0.8, 0.8])
    left_out, draws, patients = 0, 60, 100
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(patients, 3))
        labels = (rng.random(patients) < 1 / (1 + np.exp(0.5 - z @ useful))).astype(np.float32)
        evidence = z * useful + noise * rng.normal(size=z.shape)
        model = _model(FusionKind.LATE)
        with torch.no_grad():
            model.base_logit.fill_(float(np.log(labels.mean() / (1 - labels.mean()))))
            model.fusion.weight.fill_(1.0)  # type: ignore[union-attr]
            model.fusion.redundancy.zero_()  # type: ignore[union-attr]
        told = torch.from_numpy(evidence).float()[..., None], torch.ones(patients, 3, dtype=torch.bool)
        guard(model, (*told, torch.from_numpy(labels)[:, None]))
        left_out += not bool(model.heard[-1].all())
    assert left_out / draws <= NormalDist().cdf(-WORSE), left_out
    assert margin_of(1) == pytest.approx(WORSE)
    assert margin_of(6) == pytest.approx(1.94, abs=0.01)


@pytest.mark.parametrize("kind", list(FusionKind))
def test_garbage_in_absent_places_changes_not_one_bit(kind: FusionKind) -> None:
    model = _fitted(kind)
    evidence, present, _ = _told(64, 4, missing=0.5)
    with torch.no_grad():
        plain = model.fuse(evidence, present)
        for garbage in (torch.nan, torch.inf, -1e30, 7.0):
            wild = torch.where(present[..., None], evidence, torch.tensor(garbage))
            assert torch.equal(model.fuse(wild, present), plain), garbage


def test_absent_pixels_and_notes_cannot_reach_a_risk(
    bundle: fusion.Bundle, patient: fusion.PatientInputs
) -> None:
    """The same through the whole of a trained model: batches whose absent tokens hold NaN, bit for bit."""
    from fusion.batch import Batch, Tokens, collate
    from fusion.predict import risks

    batch = collate([patient] * 64, bundle.config, bundle.embedder)
    hidden = all_subsets(6)
    wild, calm = {}, {}
    for place, (modality, tokens) in enumerate(batch.tokens.items()):
        known = tokens.known & hidden[:, [place]]
        for into, held in ((calm, 0.0), (wild, torch.nan)):
            into[modality] = Tokens(
                torch.where(known[..., None], tokens.values, torch.tensor(held)), known, tokens.times_ms
            )
    present = batch.present & hidden
    first = risks(bundle, Batch(calm, present, batch.frames, batch.refused))
    second = risks(bundle, Batch(wild, present, batch.frames, batch.refused))
    assert np.isfinite(first).all()
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("kind", list(FusionKind))
def test_outcomes_may_hear_different_modalities(kind: FusionKind) -> None:
    torch.manual_seed(0)
    fuse = build_fusion(kind, 3, 2).eval()
    for parameter in fuse.parameters():
        torch.nn.init.normal_(parameter)
    evidence, present = torch.randn(10, 3, 2), torch.rand(10, 3, 2) < 0.6
    both = fuse(evidence, present)
    for r in range(2):
        torch.testing.assert_close(both[:, r], fuse(evidence, present[..., r])[:, r])


def _drawn(kind: FusionKind) -> Fusion:
    """Of four modalities and two outcomes, every weight drawn."""
    torch.manual_seed(0)
    fuse = build_fusion(kind, 4, 2).eval()
    for parameter in fuse.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return fuse


@pytest.mark.parametrize("kind", list(FusionKind))
def test_varying_one_modality_is_asking_for_each_by_itself(kind: FusionKind) -> None:
    """The short way of every kind, under masks that differ by outcome, beside the long way of them all; and
    what stands in the place that is varied, or in one that nobody hears, is not looked at."""
    fuse = _drawn(kind)
    present, said = torch.rand(16, 4, 2) < 0.6, 2 * torch.randn(9, 2)
    present[:, 3] = False
    evidence = 2 * torch.randn(4, 2)
    heard = []
    with torch.no_grad():
        for place in range(3):
            expected = Fusion.varied(fuse, evidence, present, place, said)
            wild = evidence.clone()
            wild[[place, 3]] = torch.nan
            torch.testing.assert_close(fuse.varied(wild, present, place, said), expected)
            heard.append(float(expected.std(1).max()))
    assert max(heard) > 0.1


def test_attention_multiplied_out_is_the_attention_of_torch() -> None:
    fuse = _drawn(FusionKind.ATTENTION)
    assert isinstance(fuse, AttentionFusion)
    evidence, present = 2 * torch.randn(50, 4, 2), torch.rand(50, 4) < 0.6
    with torch.no_grad():
        held = torch.where(present[..., None], evidence, torch.zeros(()))
        tokens = torch.cat([fuse.summary.expand(50, -1, -1), fuse.content(held) + fuse.name], dim=1)
        hidden = torch.cat([torch.zeros(50, 1, dtype=torch.bool), ~present], dim=1)
        attended, _ = fuse.attention(tokens[:, :1], tokens, tokens, key_padding_mask=hidden)
        expected = fuse.head(attended[:, 0]) + (fuse.through * held).sum(1)
        torch.testing.assert_close(fuse(evidence, present), expected * present.any(1, keepdim=True))


def test_a_stacked_bundle_is_saved_and_loaded_whole(tmp_path) -> None:
    config = simulated.make_config(
        fusion=FusionKind.STACKING, modalities=(Modality.TABULAR, Modality.IMAGE), epochs=2, folds=2
    )
    made = fusion.train(simulated.examples(60, 1), simulated.examples(30, 2), config)
    made.model.heard[3, 0, 0] = False
    made.save(tmp_path / "model")
    loaded = fusion.Bundle.load(tmp_path / "model")
    asked = [e.inputs for e in simulated.examples(5, 3)]
    assert torch.equal(loaded.model.heard, made.model.heard)
    first, second = (fusion.predict(b, asked, explain=False) for b in (made, loaded))
    assert first == second


def test_a_pattern_with_enough_patients_gets_weights_of_its_own() -> None:
    """Where image and record say the same, stacking trusts each less together than alone."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=3000)
    labels = torch.from_numpy((rng.random(3000) < 1 / (1 + np.exp(-1.5 * z))).astype(np.float32))[:, None]
    evidence = torch.from_numpy(np.stack([1.5 * z, 0 * z, 1.5 * z], 1)).float()[..., None]
    model = _model(FusionKind.STACKING)
    present = torch.rand(3000, 3) < 0.7
    fit_fusion(model, evidence, present, labels, None, model_config(FusionKind.STACKING), lambda *_: None)
    with torch.no_grad():
        one = model.fuse(torch.full((1, 3, 1), 1.5), torch.tensor([[True, False, False]]))
        two = model.fuse(torch.full((1, 3, 1), 1.5), torch.tensor([[True, False, True]]))
    assert float(one) == pytest.approx(1.5, abs=0.35)
    assert float(two) == pytest.approx(1.5, abs=0.35), "said twice is not known twice"


def model_config(kind: FusionKind) -> fusion.FusionConfig:
    return dataclasses.replace(simulated.make_config(), fusion=kind)
