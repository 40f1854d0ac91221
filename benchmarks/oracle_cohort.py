"""A simulated cohort whose best possible risk is known for every pattern of present modalities.

Five hidden causes z, jointly Gaussian (neighbours correlate 0.3), decide with noise whether the event
happens: it does when weights·z + N(0, 1) > threshold, for some 34 %. Fields show z0 (three times, noisily,
each missing one time in ten) and z4 exactly ("age"), beside four fields that mean nothing; the image's
embedding shows z1 in one direction among louder ones; a note's four sentences show z2; a channel's six values
show z3. All of it is linear and Gaussian, so the posterior of z, and with it the oracle's risk, has a closed
form for whatever is present: Phi((weights·mean - threshold) / sqrt(1 + weights' covariance weights)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

import fusion
from fusion import Modality

Array = NDArray[np.float64]
MODALITIES = (Modality.TABULAR, Modality.SERIES, Modality.TEXT, Modality.IMAGE)
SHOWN_BY = {0: Modality.TABULAR, 1: Modality.IMAGE, 2: Modality.TEXT, 3: Modality.SERIES, 4: Modality.TABULAR}
WEIGHTS = np.array([0.8, 1.2, 0.8, 1.0, 0.5])
BLUR = {1: 0.5, 2: 0.6, 3: 0.5}  # standard deviation between a cause and what its modality shows of it
FIELD_BLUR, SENTENCE_BLUR, VALUE_BLUR, PIXEL_BLUR = 1.0, 0.4, 0.5, 0.3
SENTENCES, VALUES, THRESHOLD = 4, 6, 1.2
PRIOR = np.array([[0.3 ** abs(i - j) for j in range(5)] for i in range(5)])
IMAGE, TEXT = fusion.load_backbone("small_cnn"), fusion.load_text_backbone("hashing")
CAUSES = np.linalg.cholesky(PRIOR)
IMAGE_AXES = np.linalg.qr(np.random.default_rng(1).normal(size=(IMAGE.width, 8)))[0].T
TEXT_AXES = np.linalg.qr(np.random.default_rng(2).normal(size=(TEXT.width, 8)))[0].T
CONFIG = fusion.FusionConfig(
    outcomes=(fusion.OutcomeSpec("event", "The event", 336.0),),
    fields=(
        *(fusion.FieldSpec(f"f{i}", f"Field {i}", low=-20, high=20) for i in range(7)),
        fusion.FieldSpec("age", "Age, standardised", low=-20, high=20),
    ),
    channels=tuple(fusion.FieldSpec(f"c{i}", f"Channel {i}", low=-20, high=20) for i in range(2)),
    modalities=MODALITIES,
    image_backbone="small_cnn",
    text_backbone="hashing",
    batch_size=64,
)


@dataclass(frozen=True, eq=False, slots=True)
class Cohort:
    """shown, precision float64 [B, 5]: what the inputs tell of each cause, and how exactly (0: nothing)."""

    examples: list[fusion.Example]
    shown: Array
    precision: Array

    @property
    def labels(self) -> Array:
        """float64 [B], 0 or 1."""
        return np.array([e.labels["event"] for e in self.examples], float)

    def oracle(self, hidden: NDArray[np.bool_] | None = None) -> Array:
        """The best possible risk float64 [B] from what is present.

        hidden  bool [B, M]: modalities hidden besides, in the order of MODALITIES
        """
        precision = self.precision.copy()
        if hidden is not None:
            for cause, modality in SHOWN_BY.items():
                precision[hidden[:, MODALITIES.index(modality)], cause] = 0
        covariance = np.linalg.inv(np.linalg.inv(PRIOR) + precision[:, :, None] * np.eye(5))
        mean = np.einsum("bij,bj->bi", covariance, precision * self.shown)
        spread = np.sqrt(1 + np.einsum("i,bij,j->b", WEIGHTS, covariance, WEIGHTS))
        return np.asarray(norm.cdf((mean @ WEIGHTS - THRESHOLD) / spread), np.float64)


def simulate(count: int, seed: int, *, missing: float) -> Cohort:
    """Patients whose modalities are each absent with chance `missing`, whatever their causes."""
    rng = np.random.default_rng(seed)
    made = [_patient(f"{seed}-{i}", rng, missing) for i in range(count)]
    return Cohort(
        [one[0] for one in made], np.stack([one[1] for one in made]), np.stack([m[2] for m in made])
    )


def _patient(key: str, rng: np.random.Generator, missing: float) -> tuple[fusion.Example, Array, Array]:
    """The example, and what it shows of each cause [5] and how exactly [5]."""
    z = CAUSES @ rng.normal(size=5)
    event = int(WEIGHTS @ z + rng.normal() > THRESHOLD)
    seen = {cause: z[cause] + blur * rng.normal() for cause, blur in BLUR.items()}
    present = {m: bool(rng.random() >= missing) for m in MODALITIES}
    readings, known = z[0] + FIELD_BLUR * rng.normal(size=3), rng.random(3) < 0.9
    values = seen[3] + VALUE_BLUR * rng.normal(size=VALUES)
    image = seen[1] * IMAGE_AXES[0] + 2 * rng.normal(size=7) @ IMAGE_AXES[1:]
    image = image + PIXEL_BLUR * rng.normal(size=IMAGE.width)
    note = (seen[2] + SENTENCE_BLUR * rng.normal(size=SENTENCES))[:, None] * TEXT_AXES[0]
    note = (
        note
        + rng.normal(size=(SENTENCES, 7)) @ TEXT_AXES[1:]
        + 0.02 * rng.normal(size=(SENTENCES, TEXT.width))
    )
    inputs = fusion.PatientInputs(
        key=key,
        fields=_fields(readings, known, z[4], rng) if present[Modality.TABULAR] else {},
        series=_series(values, rng) if present[Modality.SERIES] else (),
        notes=(fusion.NoteInput(f"n{key}", "", {TEXT.version: note.astype(np.float32)}),)
        if present[Modality.TEXT]
        else (),
        images=(_picture(key, image),) if present[Modality.IMAGE] else (),
    )
    sex = "female" if rng.random() < 0.5 else "male"
    age = "older" if z[4] > 0.5 else "younger"
    mean = readings[known].mean() if known.any() else 0.0
    shown = np.array([mean, image @ IMAGE_AXES[0], (note @ TEXT_AXES[0]).mean(), values.mean(), z[4]])
    exact = np.array(
        [
            known.sum() / FIELD_BLUR**2,
            1 / (BLUR[1] ** 2 + PIXEL_BLUR**2),
            1 / (BLUR[2] ** 2 + (SENTENCE_BLUR**2 + 0.02**2) / SENTENCES),
            1 / (BLUR[3] ** 2 + VALUE_BLUR**2 / VALUES),
            1e6,
        ]
    )
    is_here = np.array([present[SHOWN_BY[cause]] for cause in range(5)])
    example = fusion.Example(inputs, {"event": event}, key, {"sex": sex, "age": age})
    return example, shown, np.where(is_here, exact, 0.0)


def _fields(
    readings: Array, known: NDArray[np.bool_], age: float, rng: np.random.Generator
) -> dict[str, float | None]:
    told: dict[str, float | None] = {
        f"f{i}": float(value) if here else None
        for i, (value, here) in enumerate(zip(readings, known, strict=True))
    }
    return {**told, **{f"f{i}": float(rng.normal()) for i in range(3, 7)}, "age": float(age)}


def _series(values: Array, rng: np.random.Generator) -> tuple[fusion.SeriesPoint, ...]:
    hours = np.sort(rng.uniform(0, 48, size=VALUES))
    channels = {"c0": values, "c1": rng.normal(size=VALUES)}
    return tuple(
        fusion.SeriesPoint(channel, float(hour), float(value))
        for channel, row in channels.items()
        for hour, value in zip(hours, row, strict=True)
    )


def _picture(key: str, image: Array) -> fusion.PixelInput:
    held = {IMAGE.version: image.astype(np.float32)[None]}
    return fusion.PixelInput(f"i{key}", _never, np.zeros(1, np.float32), held)


def _never() -> fusion.Frames:
    raise AssertionError("the embedding is there; pixels need not be read")
