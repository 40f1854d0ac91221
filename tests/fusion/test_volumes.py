"""Volumes: millimetres mean millimetres, in 2.5D and in 3D, and a volume is a modality like any other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import fusion
from fusion import BadInput, Frames, Modality, PixelInput, VolumeKind
from fusion.backbones import Grid, VolumeBackbone, kept_slices
from fusion.backbones.volume import resample
from fusion.batch import Tokens
from fusion.edge_export import export_bundle
from fusion.encoders.volume import VoxelEncoder
from fusion.wording import slice_words
from tests.fusion import simulated

GRID = Grid(size=24, extent_mm=96.0, step_mm=6.0, slices=12)


def ball(
    radius_mm: float, spacing: tuple[float, float, float], side_mm: float = 72.0, at: float = 0.0
) -> Frames:
    """A bright ball in a cube of air, `at` mm above its middle."""
    axes = [np.arange(round(side_mm / mm)) * mm + mm / 2 - side_mm / 2 for mm in spacing]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    values = (((z - at) ** 2 + y**2 + x**2) < radius_mm**2).astype(np.float32)
    return Frames(values, np.zeros(len(values), np.float32), spacing[1:], spacing[0])


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (6.0, 2.0, 1.5), (3.0, 4.0, 4.0)])
def test_the_same_ball_has_the_same_size_whatever_its_spacing(spacing: tuple[float, float, float]) -> None:
    volume = resample(ball(24.0, spacing), GRID)
    assert volume.shape == (12, 1, 24, 24)
    millilitres = float(volume.sum()) * (96 / 24) ** 2 * 6 / 1000
    assert millilitres == pytest.approx(4 / 3 * np.pi * 2.4**3, rel=0.08)
    centre = (volume.sum((1, 2, 3)) * torch.arange(12)).sum() / volume.sum()
    assert float(centre) == pytest.approx(5.5, abs=0.3)


def test_a_larger_ball_is_larger_and_embeddings_agree_between_spacings() -> None:
    backbone = VolumeBackbone("small_cnn/96mm/6mm/12")
    fine, coarse, small = (
        backbone.embed(ball(r, s), 24).mean(0)
        for r, s in ((24.0, (2.0, 1.0, 1.0)), (24.0, (6.0, 2.0, 2.0)), (9.0, (2.0, 1.0, 1.0)))
    )
    assert np.linalg.norm(fine - coarse) < 0.35 * np.linalg.norm(fine - small)


def test_more_slices_than_the_grid_holds_keep_the_middle_and_are_told_apart() -> None:
    long = ball(10.0, (2.0, 2.0, 2.0), side_mm=200.0)
    volume = resample(long, GRID)
    assert volume.shape[0] == 12
    assert float(volume[5:7].sum()) > 0
    behind = kept_slices(100, 2.0, GRID)
    assert len(behind) == 12
    assert behind == sorted(behind)
    assert abs(np.mean(behind) - 49.5) < 2


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (Frames(np.zeros((4, 8, 8), np.float32), np.zeros(4, np.float32), (1.0, 1.0)), "spacing"),
        (Frames(np.zeros((4, 8, 8), np.float32), np.zeros(4, np.float32), None, 2.0), "spacing"),
        (Frames(np.zeros((4, 8), np.float32), np.zeros(4, np.float32), (1.0, 1.0), 2.0), r"\[D, H, W\]"),
        (Frames(np.full((4, 8, 8), np.nan, np.float32), np.zeros(4, np.float32), (1.0, 1.0), 2.0), "finite"),
    ],
)
def test_what_cannot_be_measured_in_millimetres_is_refused(frames: Frames, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        VolumeBackbone("voxels/96mm/6mm/12").embed(frames, 24)


def test_names_that_are_none_are_refused() -> None:
    with pytest.raises(fusion.UnknownEncoder, match="EXTENTmm"):
        VolumeBackbone("efficientnet_lite0")


def volume_examples(count: int, seed: int) -> list[fusion.Example]:
    """Events have a larger ball; a quarter has no volume. The field knows nothing."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        event = int(rng.random() < 0.5)
        frames = ball(12 + 9 * event + rng.normal(), (6.0, 4.0, 4.0), at=6 * rng.normal())
        pixels = PixelInput(f"v{seed}-{number}", lambda f=frames: f, frames.times_ms, slice_mm=6.0)  # type: ignore[misc]
        inputs = fusion.PatientInputs(
            key=f"{seed}-{number}",
            fields={"f0": float(rng.normal())},
            volumes=(pixels,) if rng.random() > 0.25 else (),
        )
        made.append(fusion.Example(inputs, {"icu": event}, f"{seed}-{number}"))
    return made


def config_of(kind: VolumeKind) -> fusion.FusionConfig:
    return simulated.make_config(
        outcomes=simulated.OUTCOMES[:1],
        modalities=(Modality.TABULAR, Modality.VOLUME),
        volume_kind=kind,
        volume_backbone="small_cnn",
        volume_size=24,
        volume_extent_mm=96.0,
        volume_step_mm=6.0,
        volume_slices=12,
        folds=2,
        epochs=4,
    )


@pytest.mark.parametrize("kind", list(VolumeKind))
def test_a_volume_is_fused_with_the_record_and_may_be_absent(kind: VolumeKind, tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = config_of(kind)
    fusion.train(volume_examples(140, 1), [], config).save(tmp_path / "bundle")
    bundle = fusion.Bundle.load(tmp_path / "bundle")
    asked = volume_examples(80, 2)
    said = fusion.predict(bundle, [e.inputs for e in asked])
    have = np.array([Modality.VOLUME in p.present for p in said])
    risks = np.array([p.outcomes[0].risk for p in said])
    labels = np.array([e.labels["icu"] for e in asked])
    assert risks[have & (labels == 1)].mean() > risks[have & (labels == 0)].mean() + 0.3
    assert np.ptp(risks[~have]) < 0.3
    for prediction, example in zip(said, asked, strict=True):
        outcome = prediction.outcomes[0]
        assert sum(c.points for c in outcome.contributions) == pytest.approx(
            outcome.risk - outcome.base_rate, abs=1e-6
        )
        weights = prediction.frame_weights
        if kind == VolumeKind.SLICES and example.inputs.volumes:
            key = example.inputs.volumes[0].key
            assert sum(weights[key]) == pytest.approx(1, abs=1e-5)
            assert len(weights[key]) == len(prediction.frame_indices[key])
    hidden = [dataclasses.replace(e.inputs, volumes=()) for e in asked[:4]]
    assert all(Modality.VOLUME in p.missing for p in fusion.predict(bundle, hidden, explain=False))
    if kind == VolumeKind.SLICES:
        with pytest.raises(BadInput, match="small machine"):
            export_bundle(bundle, tmp_path / "edge")


def test_the_3d_network_sees_what_coarse_means_do_not() -> None:
    """Two patterns with the same mean in every coarse box: layers along the slices, or along the rows."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(160, generator=generator) < 0.5).float()
    layers = (torch.arange(16) % 2).float()
    flat, upright = layers[:, None, None].expand(16, 16, 16), layers[None, :, None].expand(16, 16, 16)
    along = torch.where(labels[:, None, None, None] > 0.5, flat, upright)
    values = along + 0.3 * torch.randn(160, 16, 16, 16, generator=generator)
    tokens = Tokens(values.reshape(160, 1, -1), torch.ones(160, 1, dtype=torch.bool))
    torch.manual_seed(0)
    encoder = VoxelEncoder(16, 16, 8, 1)
    encoder.fit_statistics(tokens)
    prepared = encoder.prepare(tokens)
    features = encoder.features(prepared)
    assert abs(np.corrcoef(features[:, 0].numpy(), labels.numpy())[0, 1]) < 0.3
    steps = torch.optim.Adam(encoder.parameters(), 5e-3)
    encoder.train()
    for _ in range(25):
        index = torch.randperm(120, generator=generator)[:32]
        said = encoder(prepared.rows(index)).logits[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(said, labels[index])
        steps.zero_grad()
        loss.backward()
        steps.step()
    encoder.eval()
    with torch.no_grad():
        held = encoder(prepared.rows(torch.arange(120, 160))).logits[:, 0]
    assert float(((held > 0) == (labels[120:] > 0.5)).float().mean()) > 0.9


def test_the_slice_that_stands_out_is_said() -> None:
    assert slice_words([0.1, 0.7, 0.2], [4, 14, 24], 30) == "In the volume, slice 15 of 30 weighed most."
    assert slice_words([0.33, 0.34, 0.33], [4, 14, 24], 30) == ""
    assert slice_words([], [], 30) == ""


def test_a_hidden_volume_cannot_matter() -> None:
    encoder = VoxelEncoder(4, 8, 8, 1).eval()
    torch.nn.init.normal_(encoder.said.weight)
    known = torch.zeros(2, 1, dtype=torch.bool)
    one = Tokens(torch.zeros(2, 1, 256), known)
    other = Tokens(torch.full((2, 1, 256), 9.0), known)
    with torch.no_grad():
        torch.testing.assert_close(encoder(one).logits, encoder(other).logits)
