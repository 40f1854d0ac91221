"""Simulated patients with a known oracle: what the outcome depends on is written here and nowhere else.

Each of four hidden causes shows in one modality only: z0 in field `f0`, z1 in the image, z2 in how much the
cine moves, z3 in the last value of channel `c0`. The chance of the event is
sigmoid(1.3 (z0 + z1 + z2 + z3) - 0.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion import (
    Example,
    FieldKind,
    FieldSpec,
    Frames,
    FusionConfig,
    NoteInput,
    OutcomeSpec,
    PatientInputs,
    PixelInput,
    SeriesPoint,
    load_backbone,
    load_text_backbone,
)
from fusion.config import USUAL

IMAGE = load_backbone("small_cnn")
TEXT = load_text_backbone("hashing")
FIELDS = (
    FieldSpec("f0", "First field", "mmol/L", low=-10, high=10),
    FieldSpec("f1", "Second field", "mmol/L", low=-10, high=10),
    FieldSpec("flag", "A flag", kind=FieldKind.BINARY),
)
CHANNELS = (
    FieldSpec("c0", "First channel", "mm[Hg]", low=-10, high=10),
    FieldSpec("c1", "Second channel", "mm[Hg]", low=-10, high=10),
)
GENOMICS = (FieldSpec("g0", "A variant", kind=FieldKind.BINARY),)
OUTCOMES = (OutcomeSpec("icu", "ICU admission", 336.0), OutcomeSpec("death", "Death", 720.0))
AXIS = np.random.default_rng(99).normal(size=IMAGE.width).astype(np.float32)


def make_config(**changes: object) -> FusionConfig:
    """Tiny and quick; keyword arguments replace single settings."""
    settled: dict[str, object] = {
        "outcomes": OUTCOMES,
        "fields": FIELDS,
        "genomics": GENOMICS,
        "channels": CHANNELS,
        "image_backbone": "small_cnn",
        "cine_backbone": "small_cnn",
        "text_backbone": "hashing",
        "image_size": 32,
        "cine_size": 32,
        "cine_frames": 8,
        "folds": 3,
        "epochs": 6,
        "batch_size": 16,
    }
    return FusionConfig(**{**settled, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Simulated:
    """One simulated patient and the chance that truly was theirs."""

    example: Example
    chance: float


def never_read() -> Frames:
    """Stands where pixels must not be read."""
    raise AssertionError("pixels were read although their embedding is there")


def simulate(count: int, seed: int, *, missing: float = 0.0) -> list[Simulated]:
    """Patients whose modalities are each absent with chance `missing` (the record never)."""
    rng = np.random.default_rng(seed)
    return [_patient(f"{seed}-{i}", rng, missing) for i in range(count)]


def examples(count: int, seed: int, *, missing: float = 0.3) -> list[Example]:
    """Only what a model gets."""
    return [s.example for s in simulate(count, seed, missing=missing)]


def _patient(key: str, rng: np.random.Generator, missing: float) -> Simulated:
    z = rng.normal(size=4)
    chance = float(1 / (1 + np.exp(-(1.3 * z.sum() - 0.4))))
    event = int(rng.random() < chance)
    here = rng.random(5) >= missing
    image = (0.5 * rng.normal(size=IMAGE.width) + z[1] * AXIS / 4).astype(np.float32)[None]
    t = np.arange(12)
    beat = np.sin(t)[:, None] * np.exp(0.7 * z[2])
    cine = (0.3 * rng.normal(size=(12, IMAGE.width)) + beat * AXIS).astype(np.float32)
    series = [SeriesPoint("c0", 0.5, float(z[3]))]
    series += [SeriesPoint(c, float(h), float(rng.normal())) for c in ("c0", "c1") for h in (6, 12, 30)]
    words = f"Patient seen. {'Short of breath' if rng.random() < 0.5 else 'Well'} today."
    inputs = PatientInputs(
        key=key,
        fields={
            "f0": float(z[0]),
            "f1": float(rng.normal()) if rng.random() < 1 - missing else None,
            "flag": float(rng.random() < 0.4),
        },
        genomics={"g0": float(rng.random() < 0.3)} if here[4] else {},
        series=tuple(series) if here[2] else (),
        notes=(NoteInput(f"n{key}", words, {TEXT.version: TEXT.embed(words)}, 3.0),) if here[3] else (),
        images=(PixelInput(f"i{key}", never_read, np.zeros(1, np.float32), {IMAGE.version: image}),)
        if here[0]
        else (),
        cines=(PixelInput(f"c{key}", never_read, (t * 40).astype(np.float32), {IMAGE.version: cine}),)
        if here[1]
        else (),
    )
    labels = {"icu": event}
    if rng.random() < 0.9:  # a tenth of deaths is unknown
        labels["death"] = int(rng.random() < chance * 0.6)
    return Simulated(
        Example(inputs, labels, key, {"sex": "female" if rng.random() < 0.5 else "male"}), chance
    )


EVERY = USUAL
