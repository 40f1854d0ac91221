"""Bundle + PatientInputs → Prediction, with or without its explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.attribution import Part, Shares, valued
from fusion.backbones import kept_slices, split_sentences
from fusion.batch import Batch, Tokens, collate, is_plausible, shown_notes
from fusion.bundle import Bundle
from fusion.calibrate import check_logits, sigmoid
from fusion.encoders.record import RecordEncoder
from fusion.inputs import Modality, PatientInputs, SeriesPoint
from fusion.model import Evidence
from fusion.numerics import computing
from fusion.prediction import Contribution, Driver, OutcomePrediction, Prediction
from fusion.scope import Screened, screen
from fusion.wording import left_out_words, slice_words, summarise_risk

PIXELS = frozenset({Modality.IMAGE, Modality.CINE, Modality.VOLUME})  # explained by maps and weights

NOTHING_KNOWN = "none of the inputs this model reads is available"


def predict(bundle: Bundle, inputs: Sequence[PatientInputs], *, explain: bool = True) -> list[Prediction]:
    """Risks for each patient, in order. Reads no pixels whose embeddings are there.

    explain  also contributions, drivers and summary (some tens of milliseconds a patient)
    Raises BadInput, and FusionError rather than give a risk that is no number.
    """
    if not inputs:
        return []
    with computing(bundle.config.threads), torch.no_grad():
        screened = [screen(bundle.scope, one, bundle.config, bundle.embedder) for one in inputs]
        batch = collate([one.inputs for one in screened], bundle.config, bundle.embedder)
        evidence = bundle.model.encode(batch)
        logits = calibrated(bundle, evidence.logits, evidence.present)
        return [
            _within_scope(_one(bundle, one.inputs, batch, evidence, logits[i], i, explain), one, inputs[i])
            for i, one in enumerate(screened)
        ]


def _within_scope(prediction: Prediction, screened: Screened, inputs: PatientInputs) -> Prediction:
    """The prediction with what was left out and why; it stands for all of the inputs that were given."""
    reason = screened.reason
    if not reason and prediction.out_of_scope and screened.left_out:
        why = next(iter(screened.left_out.values()))
        reason = f"the picture cannot be judged ({why}) and nothing else is known"
    told = left_out_words(list(screened.left_out.values()))
    outcomes = prediction.outcomes
    if told:
        outcomes = tuple(replace(o, summary=f"{o.summary} {told}" if o.summary else "") for o in outcomes)
    return replace(
        prediction,
        outcomes=outcomes,
        inputs_digest=inputs.digest(),
        out_of_scope=reason or prediction.out_of_scope,
        left_out=screened.left_out,
    )


def risks(bundle: Bundle, batch: Batch, *, only: Sequence[Modality] | None = None) -> NDArray[np.float64]:
    """Calibrated risks float64 [B, R]; `only` hides all other modalities."""
    with computing(bundle.config.threads), torch.no_grad():
        evidence = bundle.model.encode(batch)
        present = evidence.present
        if only is not None:
            present = present & torch.tensor([m in only for m in bundle.config.modalities])
        return sigmoid(calibrated(bundle, evidence.logits, present))


def calibrated(bundle: Bundle, evidence: Tensor, present: Tensor) -> NDArray[np.float64]:
    """Evidence [B, M, R], present [B, M] → calibrated logits float64 [B, R]. Raises FusionError."""
    fused = bundle.model.fuse(evidence, present).double().numpy()
    check_logits(fused, [spec.name for spec in bundle.config.outcomes])
    return _calibrate(bundle, fused, present.numpy())


def _calibrate(bundle: Bundle, fused: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    return bundle.calibration.logits(fused, present, [m.value for m in bundle.config.modalities])


def _one(
    bundle: Bundle,
    patient: PatientInputs,
    batch: Batch,
    evidence: Evidence,
    logits: NDArray[np.float64],
    i: int,
    explain: bool,
) -> Prediction:
    config = bundle.config
    is_present = evidence.present[i]
    present = tuple(m for m, here in zip(config.modalities, is_present.tolist(), strict=True) if here)
    missing = tuple(m for m in config.modalities if m not in present)
    pending = tuple(m for m in config.modalities if m in patient.pending)
    shares, drivers = None, [list[Driver]() for _ in config.outcomes]
    if explain and present:
        shares, drivers = _explained(bundle, patient, batch, evidence, i)
    weights, frames = _frames(bundle, patient, batch, evidence, present, i)
    volume = patient.volumes[0] if Modality.VOLUME in present else None
    also = (
        slice_words(weights[volume.key], frames[volume.key], len(volume.times_ms))
        if volume is not None and volume.key in weights
        else ""
    )
    outcomes = []
    for r, spec in enumerate(config.outcomes):
        risk, base = float(sigmoid(logits[r])), bundle.base_rates[r]
        low, high = bundle.intervals[r].around(risk, "+".join(m.value for m in present), patient.attributes)
        contributions = tuple(
            Contribution(m, float(shares.points[place, r]), float(shares.logit[place, r]))
            for place, m in enumerate(config.modalities)
            if shares is not None and m in present
        )
        own = tuple(drivers[r])
        summary = summarise_risk(
            label=spec.label,
            horizon_hours=spec.horizon_hours,
            risk=risk,
            low=low,
            high=high,
            level=config.interval_level,
            base_rate=base,
            contributions=contributions,
            drivers=own,
            missing=missing,
            pending=pending,
        )
        outcomes.append(
            OutcomePrediction(
                outcome=spec.name,
                label=spec.label,
                horizon_hours=spec.horizon_hours,
                risk=risk,
                low=low,
                high=high,
                level=config.interval_level,
                logit=float(logits[r]),
                base_rate=base,
                contributions=contributions,
                drivers=own,
                summary=f"{summary} {also}".strip() if explain else "",
            )
        )
    return Prediction(
        outcomes=tuple(outcomes),
        present=present,
        missing=missing,
        pending=pending,
        missing_fields=_missing_fields(bundle, patient),
        inputs_digest="",  # of all that was given, also of what is left out: set by `_within_scope`
        frame_weights=weights,
        frame_indices=frames,
        out_of_scope="" if present else NOTHING_KNOWN,
    )


def _missing_fields(bundle: Bundle, patient: PatientInputs) -> tuple[str, ...]:
    """Tabular fields without a plausible value; not those that no training patient had either: nothing was
    learned from them, so nobody need go and measure them."""
    if Modality.TABULAR not in bundle.config.modalities:
        return ()
    encoder = bundle.model.encoder(Modality.TABULAR)
    assert isinstance(encoder, RecordEncoder)
    learned = encoder.share > 0
    return tuple(
        spec.name
        for spec, was_there in zip(bundle.config.fields, learned.tolist(), strict=True)
        if was_there and not is_plausible(patient.fields.get(spec.name), spec)
    )


def _frames(
    bundle: Bundle,
    patient: PatientInputs,
    batch: Batch,
    evidence: Evidence,
    present: tuple[Modality, ...],
    i: int,
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Which frames of the clip, and which slices of the volume, mattered: weights, and which they are."""
    told: dict[str, list[float]] = {}
    where: dict[str, list[int]] = {}
    if Modality.CINE in present and batch.frames[i]:
        weights = evidence.encoded[Modality.CINE].weights
        assert weights is not None
        key, kept = patient.cines[0].key, batch.frames[i]
        told[key], where[key] = [float(w) for w in weights[i, : len(kept)]], list(kept)
    slices = evidence.encoded[Modality.VOLUME].weights if Modality.VOLUME in present else None
    if slices is not None and patient.volumes[0].slice_mm is not None:
        volume = patient.volumes[0]
        behind = kept_slices(len(volume.times_ms), volume.slice_mm or 0.0, bundle.embedder.volume_grid)
        told[volume.key] = [float(w) for w in slices[i, : len(behind)]]
        where[volume.key] = behind
    return told, where


def _explained(
    bundle: Bundle, patient: PatientInputs, batch: Batch, evidence: Evidence, i: int
) -> tuple[Shares, list[list[Driver]]]:
    """What each modality adds, and for each outcome its drivers, largest first."""
    config, parts = bundle.config, []
    one = torch.tensor([i])
    for place, modality in enumerate(config.modalities):
        if modality in PIXELS or not bool(evidence.present[i, place]):
            continue
        tokens = bundle.model.encoder(modality).prepare(batch.tokens[modality].rows(one))
        speak = partial(_speak, bundle, place, tokens)
        fuse = partial(bundle.model.fuse_varied, evidence.logits[i], place)
        parts.append(Part(place, tokens.known[0].numpy(), speak, fuse))
    shares, points = valued(
        evidence.logits[i], evidence.present[i], bundle.model.fuse, partial(_calibrate, bundle), parts
    )
    drivers: list[Driver] = []
    said: list[list[float]] = []  # points of each driver, one an outcome
    for part, found in zip(parts, points, strict=True):
        known = np.flatnonzero(part.known)
        drivers += _described(bundle, patient, config.modalities[part.place], known.tolist())
        said += found[known].tolist()
    return shares, [
        [drivers[at].worth(said[at][r]) for at in sorted(range(len(said)), key=lambda at: -abs(said[at][r]))]
        for r in range(len(config.outcomes))
    ]


def _speak(bundle: Bundle, place: int, tokens: Tokens, shown: NDArray[np.bool_]) -> Tensor:
    """What one modality says of the prepared tokens of one patient, some of them shown, bool [U, L]: evidence
    [U, R]."""
    said = bundle.model.encoder(bundle.config.modalities[place]).shown(tokens, torch.from_numpy(shown))
    return torch.where(bundle.model.trained[place], said, torch.zeros(()))


def _described(bundle: Bundle, patient: PatientInputs, modality: Modality, tokens: list[int]) -> list[Driver]:
    """What these tokens of the patient are, in words and units, without their points."""
    config = bundle.config
    if modality == Modality.TEXT:
        return _sentences(bundle, patient, tokens)
    if modality == Modality.SERIES:
        return _latest(bundle, patient, tokens)
    is_tabular = modality == Modality.TABULAR
    specs = config.fields if is_tabular else config.genomics
    values = patient.fields if is_tabular else patient.genomics
    return [
        Driver(modality, specs[i].name, specs[i].label, 0.0, values[specs[i].name], specs[i].unit)
        for i in tokens
    ]


def _sentences(bundle: Bundle, patient: PatientInputs, tokens: list[int]) -> list[Driver]:
    places = shown_notes(patient, bundle.config, bundle.embedder)
    split = {at: split_sentences(patient.notes[at].text) for at in {places[index][0] for index in tokens}}
    drivers = []
    for at, line in (places[index] for index in tokens):
        note, text = patient.notes[at], split[at][line] if line < len(split[at]) else ""
        name = f"note {at + 1}, sentence {line + 1}"
        drivers.append(
            Driver(Modality.TEXT, name, name, 0.0, hours_before=note.hours_before, text=text, key=note.key)
        )
    return drivers


def _latest(bundle: Bundle, patient: PatientInputs, channels: list[int]) -> list[Driver]:
    """Of each channel the latest value that the model read."""
    specs = {spec.name: spec for spec in bundle.config.channels}
    latest: dict[str, SeriesPoint] = {}
    for point in patient.series:
        spec, before = specs.get(point.channel), latest.get(point.channel)
        if (
            spec is not None
            and 0 <= point.hours_before <= bundle.config.series_hours
            and (before is None or point.hours_before < before.hours_before)
            and is_plausible(point.value, spec)
        ):
            latest[point.channel] = point
    told = [(bundle.config.channels[index], latest[bundle.config.channels[index].name]) for index in channels]
    return [
        Driver(Modality.SERIES, spec.name, spec.label, 0.0, point.value, spec.unit, point.hours_before)
        for spec, point in told
    ]
