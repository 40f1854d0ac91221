"""Out of scope: what a model must not judge, found from stored embeddings and the record alone.

Pictures. Two scores, both linear or nearly so in the embedding, so that serving takes microseconds:

    distance   1 - cosine to the mean direction of training pictures: other body parts, other modalities,
               photographs, noise, text, blank pictures
    wrongness  -log chance of "as trained" in a linear classifier of training pictures against the same
               pictures upside-down, flipped, turned, inverted, cut up in another order, mostly black
               (self-supervised: no other pictures and no labels are needed)

Each is compared with what training pictures score when their patient was left out of the fit. A picture is
out of scope when the conformal p-value of either is at most half the stated rate of false alarms (Vovk 2005;
Bonferroni over the two). The kept numbers are a mean, weights and thresholds: no picture of a patient.

Record. A patient whose named fields (age, say) lie outside the range met in training, or whose whole record
holds fewer known values than any training patient's, is out of scope. Exchangeable patients meet each
boundary with chance at most 1 / (n + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusion.config import FusionConfig
from fusion.errors import BlankPixels
from fusion.inputs import FloatArray, Modality, PatientInputs
from fusion.rows import Embeddings, is_plausible

if TYPE_CHECKING:  # small machines read a scope without torch
    from torch import Tensor

Array = NDArray[np.float64]
UNLIKE = "it does not look like the pictures the model was trained on"
BLANK = "it is blank: every pixel is the same"


def _cut_up(picture: FloatArray) -> FloatArray:
    """A 4 x 4 mosaic of the picture in another order, always the same."""
    side = [n // 4 * 4 for n in picture.shape[-2:]]
    whole = picture[..., : side[0], : side[1]]
    tiles = [t for rows in np.split(whole, 4, axis=-2) for t in np.split(rows, 4, axis=-1)]
    order = np.random.default_rng(4).permutation(16)
    return np.concatenate(
        [np.concatenate([tiles[order[4 * r + c]] for c in range(4)], axis=-1) for r in range(4)], axis=-2
    )


def _mostly_black(picture: FloatArray) -> FloatArray:
    """Only the upper third is left."""
    black = picture.copy()
    black[..., picture.shape[-2] // 3 :, :] = 0
    return black


WRONG: dict[str, tuple[str, Callable[[FloatArray], FloatArray]]] = {  # name → words, how it is made
    "upside_down": ("it seems to be upside-down", lambda x: x[..., ::-1, ::-1]),
    "flipped": ("it seems to be flipped top to bottom", lambda x: x[..., ::-1, :]),
    "turned_left": ("it seems to be turned by a quarter", lambda x: np.rot90(x, 1, axes=(-2, -1))),
    "turned_right": ("it seems to be turned by a quarter", lambda x: np.rot90(x, 3, axes=(-2, -1))),
    "inverted": ("its grey scale seems to be inverted", lambda x: 1 - x),
    "cut_up": (UNLIKE, _cut_up),
    "mostly_black": ("most of it is black", _mostly_black),
}


@dataclass(frozen=True, eq=False, slots=True)
class ImageScope:
    """Which embeddings are those of pictures the model may judge.

    centre       float32 [D], unit length
    weights      float32 [D, 1 + kinds], bias float32 [1 + kinds]: classifier, "as trained" first
    kinds        names in WRONG, in the classifier's order
    distance, wrongness   largest scores that are in scope
    false_alarms   chance, at most, that a picture like those of training is called out of scope
    pictures     training pictures the thresholds come from
    """

    centre: FloatArray
    weights: FloatArray
    bias: FloatArray
    kinds: tuple[str, ...]
    distance: float
    wrongness: float
    false_alarms: float
    pictures: int

    def scores(self, embeddings: FloatArray) -> Array:
        """Embeddings [N, D] → (distance, wrongness) float64 [N, 2]."""
        return np.stack(
            [distances(embeddings, self.centre.astype(np.float64)), -self._logs(embeddings)[:, 0]], axis=1
        )

    def reasons(self, embeddings: FloatArray) -> list[str]:
        """Why each embedding [N, D] is out of scope, in words for people; "" where it is not."""
        found = self.scores(embeddings)
        said = []
        for (distance, wrongness), row in zip(found, self._logs(embeddings), strict=True):
            if distance > self.distance:
                said.append(UNLIKE)
            elif wrongness > self.wrongness:
                said.append(WRONG[self.kinds[int(row[1:].argmax())]][0])
            else:
                said.append("")
        return said

    def _logs(self, embeddings: FloatArray) -> Array:
        weights, bias = self.weights.astype(np.float64), self.bias.astype(np.float64)
        return log_softmax(embeddings.astype(np.float64) @ weights + bias)


@dataclass(frozen=True, slots=True)
class Range:
    """Lowest and highest value of one field among training patients, in its unit."""

    label: str
    unit: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RecordScope:
    """Whose record the model may judge.

    ranges  field → Range
    least   fewest known values a training patient's record held; most, how many there are to know
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    least: int = 0
    most: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Scope:
    """What a bundle knows of its own limits. Either part may be missing: then it is not asked."""

    image: ImageScope | None = None
    record: RecordScope | None = None

    def arrays(self) -> dict[str, FloatArray]:
        """What is kept beside the model's weights."""
        if self.image is None:
            return {}
        return {"centre": self.image.centre, "weights": self.image.weights, "bias": self.image.bias}

    def tensors(self) -> dict[str, Tensor]:
        """The same as tensors."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.arrays().items()}

    def to_json(self) -> dict[str, Any]:
        """What is kept in the metadata, for people too."""
        said: dict[str, Any] = {}
        if self.image is not None:
            said["image"] = {
                "kinds": list(self.image.kinds),
                "distance": self.image.distance,
                "wrongness": self.image.wrongness,
                "false_alarms": self.image.false_alarms,
                "pictures": self.image.pictures,
            }
        if self.record is not None:
            said["record"] = asdict(self.record)
        return said

    @classmethod
    def from_json(cls, said: Mapping[str, Any], arrays: Mapping[str, ArrayLike]) -> Scope:
        """The inverse of `to_json` and of `arrays` (`tensors`). Raises KeyError, TypeError, ValueError."""
        image, record = None, None
        if "image" in said:
            kept = dict(said["image"])
            kinds = tuple(str(kind) for kind in kept.pop("kinds"))
            if unknown := set(kinds) - set(WRONG):
                raise ValueError(f"unknown kinds of wrong pictures: {', '.join(sorted(unknown))}")
            centre, weights, bias = (
                np.asarray(arrays[name], np.float32) for name in ("centre", "weights", "bias")
            )
            image = ImageScope(
                centre,
                weights,
                bias,
                kinds,
                float(kept["distance"]),
                float(kept["wrongness"]),
                float(kept["false_alarms"]),
                int(kept["pictures"]),
            )
        if "record" in said:
            kept = dict(said["record"])
            record = RecordScope(
                {name: Range(**one) for name, one in kept["ranges"].items()}, kept["least"], kept["most"]
            )
        return cls(image, record)


@dataclass(frozen=True, eq=False, slots=True)
class Screened:
    """A patient's inputs without what is out of scope.

    left_out  pixel key → why, in words
    reason    why the patient is not to be judged at all, or ""
    """

    inputs: PatientInputs
    left_out: dict[str, str]
    reason: str = ""


def screen(
    scope: Scope | None, inputs: PatientInputs, config: FusionConfig, embedder: Embeddings
) -> Screened:
    """Leave out pictures that are out of scope, and say whether the record is. Reads no pixels whose
    embeddings are there."""
    if scope is None:
        return Screened(inputs, {})
    left_out: dict[str, str] = {}
    if scope.image is not None and Modality.IMAGE in config.modalities:
        looked_at = inputs.images[: config.max_images]
        for pixels in looked_at:
            try:
                (why,) = scope.image.reasons(embedder.image(pixels)[:1])
            except BlankPixels:
                why = BLANK
            if why:
                left_out[pixels.key] = why
    kept = replace(inputs, images=tuple(p for p in inputs.images if p.key not in left_out))
    return Screened(kept, left_out, _record_reason(scope.record, kept, config))


def _record_reason(scope: RecordScope | None, inputs: PatientInputs, config: FusionConfig) -> str:
    if scope is None:
        return ""
    specs = {spec.name: spec for spec in config.fields}
    for name, range_ in scope.ranges.items():
        value = inputs.fields.get(name)
        if value is not None and is_plausible(value, specs[name]) and not range_.low <= value <= range_.high:
            unit = {"1": "", "a": " years"}.get(range_.unit, f" {range_.unit}")
            return (
                f"{range_.label.lower()} is outside the range of the patients the model was trained on "
                f"({range_.low:g} to {range_.high:g}{unit})"
            )
    others = set(config.modalities) - {Modality.TABULAR, Modality.GENOMICS, Modality.SERIES}
    if inputs.present() & others or inputs.pending & others:
        return ""
    known = known_values(inputs, config)
    if 0 < known < scope.least:
        return (
            f"too little is known: {known} of the {scope.most} values of the record that the model reads; "
            f"no patient it was trained on had fewer than {scope.least}"
        )
    return ""


def known_values(inputs: PatientInputs, config: FusionConfig) -> int:
    """How many fields, genomic findings and channels of the model hold a plausible value."""
    count = 0
    if Modality.TABULAR in config.modalities:
        count += sum(is_plausible(inputs.fields.get(spec.name), spec) for spec in config.fields)
    if Modality.GENOMICS in config.modalities:
        count += sum(is_plausible(inputs.genomics.get(spec.name), spec) for spec in config.genomics)
    if Modality.SERIES in config.modalities:
        count += len({p.channel for p in inputs.series} & {spec.name for spec in config.channels})
    return count


def distances(embeddings: FloatArray, centre: Array) -> Array:
    """1 - cosine to the centre, in [0, 2]; 1 for an embedding without length."""
    length = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    return np.asarray(1 - embeddings.astype(np.float64) @ centre / np.maximum(length, 1e-9))


def log_softmax(logits: Array) -> Array:
    """Of each row of logits, float64 [N, kinds]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
