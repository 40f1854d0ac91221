"""Ejection fraction from a clip of echo frames, end to end: a small CNN per frame, then a course over time.

After EchoNet-Dynamic (Ouyang 2020) in aim, not in size. Trained here on simulated clips only; a hospital that
wants it for care trains and validates it on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fusion import checkpoints
from fusion.config import CinePooling
from fusion.encoders.cine import COMPONENTS, HIDDEN, Course
from fusion.errors import BadInput, BundleMismatch, NotEnoughData
from fusion.fitting import Fit, fit
from fusion.imaging import kept
from fusion.imaging.kept import METADATA
from fusion.inputs import FloatArray
from fusion.numerics import without_denormals

FORMAT = 1
WEIGHTS = "ejection.safetensors"
LEAST_CLIPS = 10
Clip = tuple[FloatArray, FloatArray, float]  # frames [T, H, W], seconds [T], ejection fraction in %
Tell = Callable[[int, int, float, "float | None"], None]


class EjectionModel(nn.Module):
    """Frames float32 [B, T, H, W] in [0, 1], known bool [B, T], seconds [B, T] → ejection fraction [B], %.

    Pooling "frame" sees the middle frame alone, "mean" no order: what a cine model is compared with.

    frame  (H, W) in pixels of the clips it was trained on, to which others are resized; None before training
    """

    middle: Tensor
    spread: Tensor

    def __init__(self, pooling: CinePooling = CinePooling.GRU) -> None:
        super().__init__()
        self.pooling = pooling
        self.frame: tuple[int, int] | None = None
        layers: list[nn.Module] = []
        for before, after in ((1, 8), (8, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, COMPONENTS))
        is_still = pooling in (CinePooling.FRAME, CinePooling.MEAN)
        self.course = None if is_still else Course(pooling)
        self.head = nn.Linear(COMPONENTS if is_still else HIDDEN + 3 * COMPONENTS, 1)
        self.register_buffer("middle", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, frames: Tensor, known: Tensor, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """→ (ejection fraction [B], weight of each frame [B, T], sum 1)."""
        batch, length = known.shape
        if self.pooling == CinePooling.FRAME:
            place = (known.sum(1) - 1).clamp(min=0) // 2
            chosen = frames[torch.arange(batch), place]
            weights = nn.functional.one_hot(place, length).float()
            return self._scaled(self.cnn(chosen[:, None])), weights
        seen = self.cnn(frames.flatten(0, 1)[:, None]).view(batch, length, -1)
        seen = torch.where(known[..., None], seen, 0.0)
        count = known.sum(1, keepdim=True).clamp(min=1)
        mean = seen.sum(1) / count
        if self.course is None:
            return self._scaled(mean), known.float() / count
        highest = torch.where(known[..., None], seen, -torch.inf).amax(1)
        lowest = torch.where(known[..., None], seen, torch.inf).amin(1)
        course, weights = self.course(seen, known, seconds)
        return self._scaled(torch.cat([course, mean, highest, lowest], dim=1)), weights

    def predict(self, frames: FloatArray, seconds: FloatArray) -> tuple[float, list[float]]:
        """One clip [T, H, W] → (ejection fraction in %, weight of each frame). Raises BadInput."""
        _check(frames, seconds)
        self.eval()
        with torch.inference_mode(), without_denormals():
            known = torch.ones(1, len(frames), dtype=torch.bool)
            shown = torch.from_numpy(frames)[None]
            if self.frame is not None and self.frame != frames.shape[1:]:
                shown = nn.functional.interpolate(shown, size=self.frame, mode="bilinear", antialias=True)
            said, weights = self(shown, known, torch.from_numpy(seconds - seconds[0])[None])
        return float(said[0].clamp(0, 100)), weights[0].tolist()

    def save(self, folder: Path) -> str:
        """Write the folder; SHA-256 of its metadata, which holds that of its weights. Raises BadInput."""
        if self.frame is None:
            raise BadInput("only a trained model is saved: see train_ejection")
        about = {
            "format": FORMAT,
            "pooling": self.pooling.value,
            "inputs": {
                "shape": ["T", "H", "W"],
                "dtype": "float32",
                "range": [0, 1],
                "resized_to": self.frame,
                "times": "s",
            },
            "outputs": {"ejection fraction": "%", "frame weights": "sum 1"},
            "intended_use": "Research: a number beside its clip, checked by a person.",
        }
        return kept.write(folder, WEIGHTS, self.state_dict(), about)

    @classmethod
    def load(cls, folder: Path, *, digest: str = "") -> EjectionModel:
        """Read and check a folder. Raises BundleMismatch, saying what differs."""
        about, weights = kept.read(folder, WEIGHTS, what="ejection model", form=FORMAT, digest=digest)
        try:
            model = cls(CinePooling(about["pooling"]))
            height, width = about["inputs"]["resized_to"]
            model.frame = int(height), int(width)
            model.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as fault:
            raise BundleMismatch(f"{METADATA} does not describe these weights") from fault
        return model.eval()

    def _scaled(self, features: Tensor) -> Tensor:
        told: Tensor = self.head(features)[:, 0] * self.spread + self.middle
        return told


def train_ejection(
    train: Sequence[Clip],
    tuning: Sequence[Clip],
    *,
    pooling: CinePooling = CinePooling.GRU,
    epochs: int = 24,
    seed: int = 0,
    tell: Tell | None = None,
    checkpoint: Path | None = None,
) -> EjectionModel:
    """Clips with known ejection fraction → model; the best state by error on the tuning clips.

    All clips have one frame size. Raises NotEnoughData and BadInput.

    checkpoint  file that says how far it is: a training that was killed goes on from there
    """
    if len(train) < LEAST_CLIPS:
        raise NotEnoughData(f"{len(train)} clips; at least {LEAST_CLIPS} are needed")
    frames, known, seconds, true = _batch(train)
    watched = _batch(tuning) if tuning else None
    with torch.random.fork_rng(devices=[]), without_denormals():
        torch.manual_seed(seed)
        model = EjectionModel(pooling)
        model.frame = int(frames.shape[2]), int(frames.shape[3])
        model.middle.copy_(true.mean())
        model.spread.copy_(true.std().clamp(min=1))

        def loss(index: Tensor) -> Tensor:
            said, _ = model(frames[index], known[index], seconds[index])
            return nn.functional.smooth_l1_loss(said / model.spread, true[index] / model.spread)

        def tuning_loss() -> float | None:
            if watched is None:
                return None
            return float((model(*watched[:3])[0] - watched[3]).abs().mean())

        how = Fit(epochs, max(4, epochs // 3), 16, 2e-3, seed)
        data = (frames, known, seconds, true, *(watched or ()))
        fit(
            model,
            loss,
            tuning_loss,
            rows=len(train),
            how=how,
            tell=tell or _silent,
            checkpoint=checkpoint,
            belongs_to="" if checkpoint is None else f"{pooling} {checkpoints.digest(*data)}",
        )
    return model.eval()


def _batch(clips: Sequence[Clip]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    longest = max(len(frames) for frames, _, _ in clips)
    height, width = clips[0][0].shape[1:]
    frames = torch.zeros(len(clips), longest, height, width)
    known, seconds = torch.zeros(len(clips), longest, dtype=torch.bool), torch.zeros(len(clips), longest)
    for row, (values, when, ejection) in enumerate(clips):
        _check(values, when)
        if values.shape[1:] != (height, width) or not 0 <= ejection <= 100:
            raise BadInput("clips must have one frame size, and an ejection fraction of 0 to 100 %")
        frames[row, : len(values)] = torch.from_numpy(values)
        known[row, : len(values)] = True
        seconds[row, : len(values)] = torch.from_numpy(when - when[0])
    return frames, known, seconds, torch.tensor([ejection for _, _, ejection in clips])


def _check(frames: FloatArray, seconds: FloatArray) -> None:
    if frames.ndim != 3 or 0 in frames.shape or len(frames) != len(seconds):
        raise BadInput(f"a clip is frames [T, H, W] and T times in s, not {frames.shape} and {len(seconds)}")
    if not np.isfinite([frames.min(), frames.max(), *seconds]).all() or math.isnan(float(seconds[0])):
        raise BadInput("a clip holds values or times that are not finite")


def _silent(epoch: int, epochs: int, training: float, tuning: float | None) -> None:
    """Nobody listens."""
