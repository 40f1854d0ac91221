"""A patient's record as of a moment → `fusion.PatientInputs`, with the resources it was built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import numpy as np

from cds.features import history, observations
from cds.features.basis import Used, hours_before
from cds.features.encoding import PIXELS, read_frames, split_pixel_key, taken_series, usable_series
from cds.jobs.models import WorkState
from cds.patients.models import Note, Patient
from cds.statements import Records
from cds.studies import queries as studies_queries
from cds.studies.models import Encoding, Series
from fusion import Modality, NoteInput, PatientInputs, PixelInput

SERIES_HOURS = 168.0
MAX_NOTES = 20


@dataclass(frozen=True, eq=False, slots=True)
class Built:
    """Inputs, and where they came from.

    basis       every resource used: [{"type": FHIR resource type, "id": id within its source}, …]
    data_until  when the newest fact used became known; None when nothing is known
    """

    inputs: PatientInputs
    basis: list[dict[str, str]]
    data_until: datetime | None


def build_inputs(
    patient: Patient, *, as_of: datetime, encoders: Mapping[str, str], series_hours: float = SERIES_HOURS
) -> Built:
    """What a model may know about `patient` at `as_of`.

    encoders      modality → embedding key (`pixel_key` for pixels, the backbone version for text);
                  a modality that is not named is left out, as the model does not use it
    series_hours  how far back labs and vitals are read as series

    A Series or note that is here but has no embedding of that key yet makes its modality `pending`.
    """
    used = Used()
    conditions = history.known_conditions(patient, as_of)
    found = observations.read_observations(patient, as_of=as_of, series_hours=series_hours)
    taken = taken_series(patient, as_of=as_of) if any(encoders.get(one) for one in PIXELS) else []
    pixels = {
        modality: _pixels(taken, as_of, encoders.get(modality), modality=modality, used=used)
        for modality in PIXELS
    }
    notes, notes_pending = _notes(patient, as_of, encoders.get(Modality.TEXT), used=used)
    waiting = {
        Modality.TEXT: notes_pending,
        **{modality: is_pending for modality, (_, is_pending) in pixels.items()},
    }
    inputs = PatientInputs(
        key=str(patient.pk),
        fields={
            **history.computed_values(patient, conditions, as_of=as_of, used=used),
            **observations.latest_values(found, as_of=as_of, used=used),
            **observations.measured_sizes(patient, as_of=as_of, used=used),
            **history.condition_flags(conditions, used=used),
        },
        genomics=history.genomic_values(patient, as_of=as_of, used=used),
        series=observations.series_points(found, as_of=as_of, hours=series_hours, used=used),
        notes=notes,
        images=pixels[Modality.IMAGE][0],
        cines=pixels[Modality.CINE][0],
        volumes=pixels[Modality.VOLUME][0],
        pending=frozenset(modality for modality, is_waiting in waiting.items() if is_waiting),
        attributes=_attributes(patient, as_of),
    )
    return Built(inputs, [{"type": kind, "id": identity} for kind, identity in used.basis], used.until)


def _attributes(patient: Patient, as_of: datetime) -> dict[str, str]:
    """What reports are broken down by, and intervals may differ by: sex, age band, source."""
    attributes = {"sex": patient.sex, "source": patient.source.slug}
    if patient.birth_date is not None:
        age = (as_of.date() - patient.birth_date).days / 365.25
        attributes["age"] = "under 50" if age < 50 else "50 to 69" if age < 70 else "70 and over"
    return attributes


# -- pixels and notes ----------------------------------------------------------------------------------
def _pixels(
    taken: list[Series], as_of: datetime, key: str | None, *, modality: Modality, used: Used
) -> tuple[tuple[PixelInput, ...], bool]:
    if key is None:
        return (), False
    version = split_pixel_key(key)[0]
    candidates = usable_series(taken, modality)
    held = studies_queries.embeddings([series.pixels_digest for series in candidates], key)
    inputs = []
    for series in candidates:
        if series.pixels_digest not in held:
            continue
        started_at = series.study.started_at
        assert started_at is not None  # taken_series asked for it
        inputs.append(
            PixelInput(
                key=series.pixels_digest,
                read=partial(read_frames, series),
                times_ms=np.arange(series.frames, dtype=np.float32) * np.float32(series.frame_ms or 0.0),
                embeddings={version: held[series.pixels_digest]},
                view=series.view,
                hours_before=hours_before(as_of, started_at),
                slice_mm=series.slice_mm if modality == Modality.VOLUME else None,
            )
        )
        used.add("ImagingStudy", series.study.study_uid, started_at)
    absent = [series for series in candidates if series.pixels_digest not in held]
    return tuple(inputs), any(not _has_failed(series) for series in absent)


def _has_failed(series: Series) -> bool:
    """Whether the newest attempt to encode its study failed: then the image is missing, not pending."""
    newest = Encoding.objects.filter(study=series.study_id).order_by("-queued_at").first()
    return newest is not None and newest.work_state == WorkState.FAILED


_texts = Records(
    lambda patient, as_of: Note.objects.filter(patient=patient, available_at__lte=as_of).order_by(
        "-available_at", "pk"
    )[:MAX_NOTES],
    "text",
    "text_digest",
    "resource_type",
    "resource_id",
    "available_at",
)


def _notes(
    patient: Patient, as_of: datetime, encoder: str | None, *, used: Used
) -> tuple[tuple[NoteInput, ...], bool]:
    if encoder is None:
        return (), False
    rows = _texts.records(patient=patient.pk, as_of=as_of)
    held = studies_queries.embeddings([row.text_digest for row in rows], encoder)
    inputs = []
    for row in rows:
        if row.text_digest not in held or row.available_at is None:
            continue
        inputs.append(
            NoteInput(
                key=row.text_digest,
                text=row.text,
                embeddings={encoder: held[row.text_digest]},
                hours_before=hours_before(as_of, row.available_at),
            )
        )
        used.add(row.resource_type, row.resource_id, row.available_at)
    return tuple(inputs), len(inputs) < len(rows)
