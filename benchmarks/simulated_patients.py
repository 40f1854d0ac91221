"""Simulated patients for timing: embeddings, fields, series and notes with a little signal. Nobody's."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

import fusion
from fusion import (
    Example,
    FieldSpec,
    FusionConfig,
    Modality,
    NoteInput,
    OutcomeSpec,
    PatientInputs,
    PixelInput,
)
from fusion.embedding import backbone_versions

FIELDS = tuple(FieldSpec(f"f{i}", f"Field {i}", "1", low=-10, high=10) for i in range(20))
CHANNELS = tuple(FieldSpec(f"c{i}", f"Channel {i}", "1", low=-10, high=10) for i in range(10))
MODALITIES = (Modality.TABULAR, Modality.SERIES, Modality.TEXT, Modality.IMAGE)
CONFIG = FusionConfig(
    outcomes=(OutcomeSpec("icu", "ICU admission", 336.0), OutcomeSpec("death", "Death", 720.0)),
    fields=FIELDS,
    channels=CHANNELS,
    modalities=MODALITIES,
)


def many(count: int, *, seed: int = 0, config: FusionConfig = CONFIG) -> tuple[list[Example], FusionConfig]:
    """Patients with 20 fields, 10 channels of 3 values, and mostly a note and an image (as embeddings)."""
    rng = np.random.default_rng(seed)
    versions = backbone_versions(config)
    image_axis = rng.normal(size=1280).astype(np.float32)
    text_axis = rng.normal(size=384).astype(np.float32)
    examples = []
    for number in range(count):
        causes = rng.normal(size=4)
        chance = 1 / (1 + np.exp(1 - 1.2 * causes.sum()))
        picture = (rng.normal(size=(1, 1280)) * 0.5 + causes[0] * image_axis / 10).astype(np.float32)
        sentences = (rng.normal(size=(3, 384)) * 0.5 + causes[1] * text_axis / 10).astype(np.float32)
        inputs = PatientInputs(
            key=str(number),
            fields={
                spec.name: _within(causes[2] + rng.normal()) if rng.random() > 0.2 else None
                for spec in FIELDS
            },
            series=tuple(
                fusion.SeriesPoint(spec.name, hours, _within(causes[3] + rng.normal()))
                for spec in CHANNELS
                for hours in (1.0, 5.0, 20.0)
            ),
            notes=(NoteInput(str(number), "", {versions[Modality.TEXT]: sentences}),)
            if rng.random() > 0.2
            else (),
            images=(_image(str(number), versions[Modality.IMAGE], picture),) if rng.random() > 0.4 else (),
        )
        labels = {"icu": int(rng.random() < chance), "death": int(rng.random() < chance / 2)}
        sex = "female" if rng.random() < 0.5 else "male"
        examples.append(Example(inputs, labels, str(number), {"sex": sex}))
    return examples, config


def four_modalities(count: int) -> tuple[fusion.Bundle, list[PatientInputs]]:
    """A quickly trained bundle and patients who have all four modalities."""
    examples, config = many(count, config=dataclasses.replace(CONFIG, epochs=5))
    bundle = fusion.train(examples[: count // 2], examples[count // 2 : count // 2 + 60], config)
    whole = [e.inputs for e in examples[count // 2 :] if len(e.inputs.present()) == len(MODALITIES)]
    return bundle, whole * (1 + 512 // max(1, len(whole)))


def with_image(
    bundle: fusion.Bundle, patient: PatientInputs, embedding: NDArray[np.float32]
) -> PatientInputs:
    """The same patient with another newest image."""
    version = bundle.versions[Modality.IMAGE]
    return dataclasses.replace(patient, images=(_image("new", version, embedding),))


def radiographs(count: int) -> NDArray[np.float32]:
    """Simulated chest radiographs float32 [N, 1024, 1024] in [0, 1]."""
    from PIL import Image

    from cds.demo.radiograph import ChestFindings, draw_chest

    drawn = []
    for number in range(count):
        rng = np.random.default_rng(number)
        findings = ChestFindings(cardiothoracic_ratio=rng.uniform(0.4, 0.65), opacity=rng.uniform(0, 1))
        picture = Image.fromarray(draw_chest(findings, rng)).resize((1024, 1024), Image.Resampling.BICUBIC)
        drawn.append(np.clip(np.asarray(picture, np.float32), 0, 1))
    return np.stack(drawn)


def _image(key: str, version: str, embedding: NDArray[np.float32]) -> PixelInput:
    return PixelInput(key, _absent, np.zeros(1, np.float32), {version: embedding})


def _absent() -> fusion.Frames:
    raise FileNotFoundError("only the embedding of this picture is kept")


def _within(value: float) -> float:
    return float(np.clip(value, -9, 9))
