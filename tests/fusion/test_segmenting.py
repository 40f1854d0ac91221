"""Segmenters learn discs, keep their size whatever the picture's, and refuse what they were not made for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fusion.config import CinePooling
from fusion.errors import BadInput, BundleMismatch, NotEnoughData
from fusion.imaging.ejection import EjectionModel, train_ejection
from fusion.imaging.overlap import dice
from fusion.imaging.segment import Drawn, Segmenter, SegmenterConfig, SegmenterKind, train_segmenter

SMALL = {"widths": (8, 16, 32), "size": 32, "batch_size": 4, "epochs": 25}


def disc(rng: np.random.Generator, shape: tuple[int, ...] = (32, 32)) -> Drawn:
    """A bright disc (a ball, with three axes) in noise."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    centre, radius = rng.uniform(-0.3, 0.3, len(shape)), rng.uniform(0.3, 0.6)
    inside = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2
    values = np.clip(0.3 + 0.4 * inside + rng.normal(0, 0.1, shape), 0, 1).astype(np.float32)
    return Drawn(values[None], np.asarray(inside)[None])


@pytest.mark.parametrize("kind", list(SegmenterKind))
def test_every_network_learns_and_answers_at_any_size(kind: SegmenterKind, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    is_3d = kind == SegmenterKind.UNET_3D
    shape = (8, 32, 32) if is_3d else (32, 32)
    config = SegmenterConfig(structures=("disc",), kind=kind, slices=8, learning_rate=5e-3, **SMALL)  # type: ignore[arg-type]
    drawn = [disc(rng, shape) for _ in range(20)]
    segmenter = train_segmenter(drawn[:16], drawn[16:], config)
    larger = disc(rng, (12, 50, 41) if is_3d else (50, 41))
    said = segmenter.masks(larger.values)["disc"]
    assert said.shape == larger.masks[0].shape
    assert dice(said, larger.masks[0]) > 0.8
    digest = segmenter.save(tmp_path)
    again = Segmenter.load(tmp_path, digest=digest)
    assert np.array_equal(again.masks(larger.values)["disc"], said)


def test_a_changed_folder_is_refused(tmp_path: Path) -> None:
    config = SegmenterConfig(structures=("disc",), widths=(8, 16), size=32)
    digest = Segmenter(config).save(tmp_path)
    with pytest.raises(BundleMismatch, match="registered"):
        Segmenter.load(tmp_path, digest="0" * 64)
    about = json.loads((tmp_path / "metadata.json").read_text())
    about["config"]["widths"] = [8, 32]
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    with pytest.raises(BundleMismatch):
        Segmenter.load(tmp_path, digest=digest)
    with pytest.raises(BundleMismatch, match="does not describe"):
        Segmenter.load(tmp_path)
    (tmp_path / "segmenter.safetensors").write_bytes(b"something else")
    with pytest.raises(BundleMismatch, match="not the file"):
        Segmenter.load(tmp_path)


def test_what_does_not_fit_is_refused_in_words() -> None:
    rng = np.random.default_rng(0)
    config = SegmenterConfig(structures=("disc",), widths=(8, 16), size=32)
    with pytest.raises(NotEnoughData, match="at least 4"):
        train_segmenter([disc(rng)], [], config)
    wrong = Drawn(disc(rng).values, np.zeros((2, 32, 32), bool))
    with pytest.raises(BadInput, match=r"masks must be bool \[1, 32, 32\]"):
        train_segmenter([wrong] * 4, [], config)
    with pytest.raises(BadInput, match=r"\[1, H, W\]"):
        Segmenter(config).masks(np.zeros((3, 8, 8), np.float32))
    with pytest.raises(BadInput, match="finite"):
        Segmenter(config).masks(np.full((1, 8, 8), np.nan, np.float32))
    with pytest.raises(BadInput, match="each once"):
        Segmenter(SegmenterConfig(structures=("lungs", "lungs")))


def clips(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Simulated: a disc that shrinks by a known share."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    made = []
    for _ in range(count):
        share = rng.uniform(0.1, 0.7)
        left = 1 - share * np.sin(np.linspace(0, np.pi, 8)) ** 2
        size = rng.uniform(0.5, 0.8)
        frames = np.stack([(y**2 + x**2 <= size**2 * part).astype(np.float32) for part in left])
        made.append((np.clip(frames + rng.normal(0, 0.05, frames.shape), 0, 1).astype(np.float32),
                     np.arange(8, dtype=np.float32) / 15, 100 * float(share)))  # fmt: skip
    return made


def test_ejection_fraction_needs_more_than_one_frame() -> None:
    train, tuning, held = clips(100, 0), clips(20, 1), clips(40, 2)
    errors = {}
    for pooling in (CinePooling.FRAME, CinePooling.GRU):
        model = train_ejection(train, tuning, pooling=pooling, epochs=25)
        errors[pooling] = np.mean([abs(model.predict(v, s)[0] - true) for v, s, true in held])
    constant = np.mean([abs(np.mean([t for *_, t in train]) - true) for *_, true in held])
    assert errors[CinePooling.GRU] < 0.6 * constant
    assert errors[CinePooling.GRU] < errors[CinePooling.FRAME]


@pytest.mark.parametrize("pooling", list(CinePooling))
def test_padding_frames_change_nothing(pooling: CinePooling) -> None:
    import torch

    torch.manual_seed(0)
    model = EjectionModel(pooling).eval()
    frames, seconds = torch.rand(2, 5, 32, 32), torch.rand(2, 5).cumsum(1)
    known = torch.ones(2, 5, dtype=torch.bool)
    said, weights = model(frames, known, seconds)
    more = (
        torch.cat([frames, torch.full((2, 3, 32, 32), 0.7)], 1),
        torch.cat([known, torch.zeros(2, 3, dtype=torch.bool)], 1),
        torch.cat([seconds, torch.zeros(2, 3)], 1),
    )
    again, also = model(*more)
    torch.testing.assert_close(again, said, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(also[:, :5], weights, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


@pytest.mark.parametrize("pooling", list(CinePooling))
def test_an_ejection_model_leaves_its_process(pooling: CinePooling, tmp_path: Path) -> None:
    """Saved and loaded it says the same, also of a clip of another size; a changed folder is refused."""
    import torch

    model = train_ejection(clips(10, 0), [], pooling=pooling, epochs=1)
    digest = model.save(tmp_path)
    again = EjectionModel.load(tmp_path, digest=digest)
    ((frames, seconds, _),) = clips(1, 5)
    assert again.predict(frames, seconds) == model.predict(frames, seconds)
    larger = np.kron(frames, np.ones((2, 2), np.float32))
    shrunk = torch.nn.functional.interpolate(
        torch.from_numpy(larger)[None], size=frames.shape[1:], mode="bilinear", antialias=True
    )
    assert again.predict(larger, seconds) == model.predict(shrunk[0].numpy(), seconds)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(BundleMismatch, match="registered"):
        EjectionModel.load(tmp_path, digest="0" * 64)
    about = tmp_path / "metadata.json"
    about.write_text(about.read_text().replace(f'"{pooling}"', '"lstm"' if pooling == "gru" else '"gru"'))
    with pytest.raises(BundleMismatch, match="does not describe"):
        EjectionModel.load(tmp_path)
    (tmp_path / "ejection.safetensors").write_bytes(b"something else")
    with pytest.raises(BundleMismatch, match="not the file"):
        EjectionModel.load(tmp_path)
    with pytest.raises(BundleMismatch, match="no ejection model"):
        EjectionModel.load(tmp_path / "nothing")
    with pytest.raises(BadInput, match="only a trained model"):
        EjectionModel(pooling).save(tmp_path)


def test_bad_clips_are_refused() -> None:
    good = clips(10, 0)
    with pytest.raises(NotEnoughData):
        train_ejection(good[:3], [])
    with pytest.raises(BadInput, match="0 to 100"):
        train_ejection([(v, s, 130.0) for v, s, _ in good], [])
    with pytest.raises(BadInput, match=r"\[T, H, W\]"):
        EjectionModel().predict(np.zeros((4, 8), np.float32), np.zeros(4, np.float32))
