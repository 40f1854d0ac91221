"""Shift at serving: do recent patients look like those the model was trained on? From summaries alone.

Training keeps, per input, the edges of tenths of its values, the share of patients in each and the share
without a value; per picture embedding, a mean and the directions in which training pictures vary. No value
of a patient is kept. Later, recent inputs are compared with that:

    PSI        population stability index of each input: sum (now - then) ln(now / then) over the tenths;
               amber from 0.1, red from 0.25. Chance alone gives about (bins - 1)(1/n + 1/N), so a band also
               needs a PSI that chance would give in at most 5 % of reports (chi-squared, Bonferroni)
    missing    the same bands for the change of the share without a value
    pictures   Hotelling's T-squared of mean embeddings in the training pictures' own units, its p-value, and
               the distance of the means as effect

A shift says that the inputs changed (another scanner, unit, population), not that the risks are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.batch import is_plausible
from fusion.config import FieldKind, FieldSpec, FusionConfig
from fusion.embedding import Embedder
from fusion.errors import NotEnoughData
from fusion.inputs import FloatArray, Modality, PatientInputs

Array = NDArray[np.float64]
AMBER, RED = 0.1, 0.25  # PSI, and change of the share that is missing
TENTHS = 10
LEAST = 20  # patients, or pictures, below which nothing is said
REPORTS = 0.05  # share of reports in which chance alone may colour an input
COMPONENTS = 16
PICTURES_AMBER, PICTURES_RED = 0.01, 1e-4  # p-values
PICTURES_EFFECT = 1.0  # distance of means, in standard deviations of training, that red needs too


class Band(StrEnum):
    """What a comparison comes to."""

    STEADY = "steady"
    AMBER = "amber"
    RED = "red"
    TOO_FEW = "too few"


@dataclass(frozen=True, slots=True)
class InputSummary:
    """One input among training patients.

    edges    rising, between the bins; shares: of patients with a value, one a bin, sum 1
    missing  share of patients without a value; known: how many had one
    """

    kind: str  # field | genomics | channel
    name: str
    label: str
    unit: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    missing: float
    known: int


@dataclass(frozen=True, eq=False, slots=True)
class PictureSummary:
    """mean float32 [D]; directions float32 [D, K], scaled so that training pictures have unit variance."""

    mean: Tensor
    directions: Tensor
    pictures: int


@dataclass(frozen=True, eq=False, slots=True)
class Summary:
    """What a bundle keeps of the inputs it was trained on."""

    patients: int
    inputs: tuple[InputSummary, ...]
    pictures: PictureSummary | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What is kept beside the model's weights."""
        if self.pictures is None:
            return {}
        return {"mean": self.pictures.mean, "directions": self.pictures.directions}

    def to_json(self) -> dict[str, Any]:
        """What is kept in the metadata, for people too."""
        return {
            "patients": self.patients,
            "inputs": [asdict(one) for one in self.inputs],
            "pictures": self.pictures.pictures if self.pictures else 0,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Summary:
        """The inverse. Raises KeyError, TypeError or ValueError."""
        inputs = tuple(
            InputSummary(**{**one, "edges": tuple(one["edges"]), "shares": tuple(one["shares"])})
            for one in said["inputs"]
        )
        pictures = None
        if said["pictures"]:
            pictures = PictureSummary(tensors["mean"], tensors["directions"], int(said["pictures"]))
        return cls(int(said["patients"]), inputs, pictures)


@dataclass(frozen=True, slots=True)
class InputShift:
    """One input, then and now. `psi` is None with too few known values."""

    kind: str
    name: str
    label: str
    psi: float | None
    missing_then: float
    missing_now: float
    known: int
    band: Band


@dataclass(frozen=True, slots=True)
class PictureShift:
    """Pictures, then and now. effect: distance of the means, in standard deviations of training pictures."""

    pictures: int
    p: float | None
    effect: float | None
    band: Band


@dataclass(frozen=True, slots=True)
class ShiftReport:
    """Recent patients beside training patients; inputs with the largest PSI first."""

    patients: int
    inputs: tuple[InputShift, ...]
    pictures: PictureShift | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def summarise_inputs(inputs: Sequence[PatientInputs], config: FusionConfig, embedder: Embedder) -> Summary:
    """What to keep of training patients. Raises NotEnoughData for fewer than 20."""
    if len(inputs) < LEAST:
        raise NotEnoughData(f"{len(inputs)} training patients; a summary of inputs needs {LEAST}")
    kept = []
    for kind, spec in _specs(config):
        values = _values(inputs, kind, spec, config)
        edges = _edges(values, spec)
        counts = _counts(values, edges)
        kept.append(
            InputSummary(
                kind, spec.name, spec.label, spec.unit, edges,
                tuple(float(s) for s in counts / max(1, counts.sum())),
                1 - len(values) / len(inputs), len(values),
            )
        )  # fmt: skip
    return Summary(len(inputs), tuple(kept), _summarise_pictures(inputs, config, embedder))


def compare_inputs(
    summary: Summary, recent: Sequence[PatientInputs], config: FusionConfig, embedder: Embedder
) -> ShiftReport:
    """Recent patients beside those of training; one row a patient. Reads no pixels that are embedded."""
    specs = {(kind, spec.name): spec for kind, spec in _specs(config)}
    found = []
    for then in summary.inputs:
        spec = specs.get((then.kind, then.name))
        if spec is not None:
            values = _values(recent, then.kind, spec, config)
            found.append(_compare(then, values, summary.patients, len(recent), len(summary.inputs)))
    found.sort(key=lambda one: -(one.psi or 0.0))
    pictures = None
    if summary.pictures is not None:
        pictures = compare_pictures(summary.pictures, _newest_pictures(recent, embedder))
    return ShiftReport(len(recent), tuple(found), pictures)


def compare_pictures(then: PictureSummary, now: FloatArray) -> PictureShift:
    """Embeddings float32 [N, D] of recent pictures, one a patient, beside those of training."""
    from scipy.stats import chi2

    count = len(now)
    if count < LEAST:
        return PictureShift(count, None, None, Band.TOO_FEW)
    directions = then.directions.double().numpy()
    places = (now.astype(np.float64) - then.mean.double().numpy()) @ directions
    noise = 1 / count + 1 / then.pictures
    squared = float((places.mean(axis=0) ** 2).sum())
    width = directions.shape[1]
    p = float(chi2.sf(squared / noise, width))
    effect = float(np.sqrt(max(0.0, squared - width * noise)))
    band = Band.STEADY
    if p <= PICTURES_AMBER:
        band = Band.RED if p <= PICTURES_RED and effect >= PICTURES_EFFECT else Band.AMBER
    return PictureShift(count, p, effect, band)


def psi(then: Sequence[float], known_then: int, now: NDArray[np.int64]) -> float:
    """Population stability index of bin shares `then` and bin counts `now`, half a patient added to each."""
    bins = len(then)
    before = (np.asarray(then) * known_then + 0.5) / (known_then + 0.5 * bins)
    after = (now + 0.5) / (now.sum() + 0.5 * bins)
    return float(((after - before) * np.log(after / before)).sum())


def _compare(then: InputSummary, values: Array, patients: int, recent: int, inputs: int) -> InputShift:
    from scipy.stats import chi2, norm

    missing = 1 - len(values) / recent if recent else 0.0
    counts = _counts(values, then.edges)
    index = psi(then.shares, then.known, counts) if min(len(values), then.known) >= LEAST else None
    if recent < LEAST:
        return InputShift(
            then.kind, then.name, then.label, None, then.missing, missing, len(values), Band.TOO_FEW
        )
    share = REPORTS / max(1, inputs) / 2  # half for the values, half for what is missing
    bands = []
    if index is not None and len(then.shares) > 1:
        chance = float(chi2.isf(share, len(then.shares) - 1)) * (1 / len(values) + 1 / then.known)
        bands.append(_band(index, index > chance))
    pooled = (then.missing * patients + missing * recent) / (patients + recent)
    spread = float(np.sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / patients + 1 / recent)))
    change = abs(missing - then.missing)
    bands.append(_band(change, change / spread > float(norm.isf(share / 2))))
    worst = max(bands, key=[Band.STEADY, Band.AMBER, Band.RED].index)
    return InputShift(then.kind, then.name, then.label, index, then.missing, missing, len(values), worst)


def _band(size: float, is_more_than_chance: bool) -> Band:
    if size < AMBER or not is_more_than_chance:
        return Band.STEADY
    return Band.RED if size >= RED else Band.AMBER


def _specs(config: FusionConfig) -> list[tuple[str, FieldSpec]]:
    held = (
        ("field", Modality.TABULAR, config.fields),
        ("genomics", Modality.GENOMICS, config.genomics),
        ("channel", Modality.SERIES, config.channels),
    )
    return [(kind, spec) for kind, modality, specs in held if modality in config.modalities for spec in specs]


def _values(inputs: Sequence[PatientInputs], kind: str, spec: FieldSpec, config: FusionConfig) -> Array:
    """The plausible values of one input, one a patient who has it (of a channel, the latest)."""
    found: list[float] = []
    for one in inputs:
        value: float | None
        if kind == "channel":
            points = [
                p
                for p in one.series
                if p.channel == spec.name
                and 0 <= p.hours_before <= config.series_hours
                and is_plausible(p.value, spec)
            ]
            value = min(points, key=lambda p: p.hours_before).value if points else None
        else:
            value = (one.fields if kind == "field" else one.genomics).get(spec.name)
        if value is not None and is_plausible(value, spec):
            found.append(float(value))
    return np.array(found)


def _edges(values: Array, spec: FieldSpec) -> tuple[float, ...]:
    """Between tenths of the values; one edge for yes and no."""
    if spec.kind == FieldKind.BINARY:
        return (0.5,)
    if len(values) < LEAST:
        return ()
    tenths = np.quantile(values, np.arange(1, TENTHS) / TENTHS, method="lower")
    inner = np.unique(tenths)
    return tuple(float(edge) for edge in inner if edge < values.max())


def _counts(values: Array, edges: Sequence[float]) -> NDArray[np.int64]:
    """How many values lie in each bin; a value on an edge belongs to the bin below."""
    bins = np.searchsorted(np.asarray(edges), values, side="left")
    return np.bincount(bins, minlength=len(edges) + 1).astype(np.int64)


def _newest_pictures(inputs: Sequence[PatientInputs], embedder: Embedder) -> FloatArray:
    """The first embedding of each patient who has a picture, float32 [N, D]."""
    rows = [embedder.image(one.images[0])[:1] for one in inputs if one.images]
    return np.concatenate([np.zeros((0, embedder.image_width), np.float32), *rows])


def _summarise_pictures(
    inputs: Sequence[PatientInputs], config: FusionConfig, embedder: Embedder
) -> PictureSummary | None:
    if Modality.IMAGE not in config.modalities:
        return None
    rows = _newest_pictures(inputs, embedder).astype(np.float64)
    if len(rows) < LEAST:
        return None
    mean = rows.mean(axis=0)
    _, spread, right = np.linalg.svd(rows - mean, full_matrices=False)
    kept = min(COMPONENTS, len(rows) // 4)
    scale = spread[:kept] / np.sqrt(len(rows) - 1)
    directions = right[:kept].T / np.maximum(scale, 1e-6)
    return PictureSummary(
        torch.from_numpy(mean).float(), torch.from_numpy(np.ascontiguousarray(directions)).float(), len(rows)
    )
