"""The meeting room: rows of patients and studies, as of a moment → `fusion.PatientInputs`.

The one file where `ehr` and `fusion` meet, and the one way into a model: training and scoring both call
`build_inputs`. Nothing whose `available_at` is later than `as_of`, or unknown, gets in (INTEROP 34).
What is missing stays missing. Pixels and notes are read through their stored embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import orjson
from django.conf import settings
from django.db.models import F, Q, TextField
from django.db.models.functions import Cast

import ehr
from cds import catalogue
from cds.jobs.models import WorkState
from cds.patients.models import Observation, Patient
from cds.studies import queries as studies_queries
from cds.studies import receiving
from cds.studies.models import Encoding, Measurement, Series
from fusion import (
    FieldKind,
    FieldSpec,
    Frames,
    ImageBackbone,
    Modality,
    NoteInput,
    PatientInputs,
    PixelInput,
    SeriesPoint,
    TextBackbone,
    VolumeBackbone,
    load_backbone,
    load_text_backbone,
    serve,
)

USABLE_STATUS = frozenset({"final", "amended", "corrected", "preliminary"})
NOT_BEGUN = frozenset({"draft", "intended"})  # of medications
DOUBTFUL = frozenset({"refuted", "entered-in-error", "differential"})
RADIOGRAPHS = frozenset({"CR", "DX", "DR", "RG"})  # DICOM Modality (0008,0060) of still images
MOVING = frozenset({"US", "XA", "RF", "MR", "IVUS"})  # of cines, when they hold several frames in time
VOLUMES = frozenset({"CT", "MR"})
LEAST_SLICES = 8  # below which a stack is a localiser or a few pictures, not a volume
CHEST = ("CHEST", "THORAX", "LUNG", "HEART", "RIB")  # BodyPartExamined of a radiograph we may use, or ""
PIXELS = (Modality.IMAGE, Modality.CINE, Modality.VOLUME)
SERIES_HOURS = 168.0
MAX_POINTS = 400  # per channel, newest first
MAX_PIXELS, MAX_NOTES = 4, 20


def _spec(measured: catalogue.Measurement) -> FieldSpec:
    return FieldSpec(
        measured.name,
        measured.label,
        measured.unit,
        FieldKind.NUMERIC,
        measured.low,
        measured.high,
        f"{catalogue.LOINC}|{measured.loinc[0]}",
    )


FIELDS: tuple[FieldSpec, ...] = (
    *(
        FieldSpec(
            c.name,
            c.label,
            c.unit,
            FieldKind.BINARY if c.is_binary else FieldKind.NUMERIC,
            c.low,
            c.high,
            c.code,
        )
        for c in catalogue.COMPUTED
    ),
    *(_spec(measured) for measured in catalogue.LATEST),
    *(
        FieldSpec(size.name, size.label, size.unit, FieldKind.NUMERIC, size.low, size.high)
        for size in catalogue.MEASURED
    ),
    *(
        FieldSpec(
            flag.name, flag.label, "1", FieldKind.BINARY, 0, 1, f"{catalogue.SNOMED}|{min(flag.snomed)}"
        )
        for flag in catalogue.CONDITIONS
    ),
)
GENOMICS: tuple[FieldSpec, ...] = tuple(
    FieldSpec(g.name, g.label, g.unit, FieldKind.BINARY if g.genes else FieldKind.NUMERIC, g.low, g.high)
    for g in catalogue.GENOMICS
)
CHANNELS: tuple[FieldSpec, ...] = tuple(_spec(measured) for measured in catalogue.SERIES)


@dataclass(frozen=True, eq=False, slots=True)
class Built:
    """Inputs, and where they came from.

    basis       every resource used: [{"type": FHIR resource type, "id": id within its source}, …]
    data_until  when the newest fact used became known; None when nothing is known
    """

    inputs: PatientInputs
    basis: list[dict[str, str]]
    data_until: datetime | None


@dataclass(eq=False, slots=True)
class _Used:
    """Collects what was used while the inputs are built."""

    basis: dict[tuple[str, str], None] = field(default_factory=dict)
    until: datetime | None = None

    def add(self, kind: str, identity: str, known_at: datetime | None) -> None:
        self.basis[kind, identity] = None
        if known_at is not None and (self.until is None or known_at > self.until):
            self.until = known_at


def build_inputs(
    patient: Patient, *, as_of: datetime, encoders: Mapping[str, str], series_hours: float = SERIES_HOURS
) -> Built:
    """What a model may know about `patient` at `as_of`.

    encoders      modality → embedding key (`pixel_key` for pixels, the backbone version for text);
                  a modality that is not named is left out, as the model does not use it
    series_hours  how far back labs and vitals are read as series

    A Series or note that is here but has no embedding of that key yet makes its modality `pending`.
    """
    used = _Used()
    conditions = _known_conditions(patient, as_of)
    observations = _observations(patient, as_of=as_of, series_hours=series_hours)
    pixels = {
        modality: _pixels(patient, as_of, encoders.get(modality), modality=modality, used=used)
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
            **_computed(patient, conditions, as_of=as_of, used=used),
            **_latest(observations, as_of=as_of, used=used),
            **_measured(patient, as_of=as_of, used=used),
            **_flags(conditions, used=used),
        },
        genomics=_genomics(patient, as_of=as_of, used=used),
        series=_series(observations, as_of=as_of, hours=series_hours, used=used),
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


# -- numbers -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Point:
    at: datetime
    known_at: datetime
    value: float
    resource: tuple[str, str]


def _observations(patient: Patient, *, as_of: datetime, series_hours: float) -> dict[str, list[_Point]]:
    """Usable values by measurement name, newest first: known by as_of, right unit, plausible."""
    by_code = {code: measured for measured in catalogue.LATEST for code in measured.loinc}
    longest = max(series_hours / 24, *(measured.window_days for measured in catalogue.LATEST))
    rows = (
        Observation.objects.filter(patient=patient, available_at__lte=as_of, value__isnull=False)
        .filter(Q(code__in=list(by_code)) | ~Q(also=[]))
        .filter(status__in=USABLE_STATUS, available_at__gte=as_of - timedelta(days=longest + 365))
        .values_list(
            "code_system",
            "code",
            Cast("also", TextField()),  # mostly "[]": not worth a JSON reader a row
            "effective_at",
            "available_at",
            "value",
            "unit",
            "resource_type",
            "resource_id",
        )
    )
    found: dict[str, list[_Point]] = {}
    for system, code, also, effective_at, available_at, value, unit, kind, identity in rows:
        if value is None or available_at is None:
            continue  # the query asked for neither
        others = () if also == "[]" else orjson.loads(also)
        measured = next((by_code[c] for c in _loinc_codes(system, code, others) if c in by_code), None)
        at = effective_at or available_at
        if (
            measured is None
            or unit != measured.unit
            or not measured.low <= value <= measured.high
            or at > as_of
        ):
            continue
        found.setdefault(measured.name, []).append(_Point(at, available_at, float(value), (kind, identity)))
    for points in found.values():
        points.sort(key=lambda p: (p.at, p.known_at), reverse=True)
    return found


def _loinc_codes(system: str, code: str, also: Iterable[str]) -> list[str]:
    every = [f"{system}|{code}", *also]
    return [token.rpartition("|")[2] for token in every if token.startswith(f"{catalogue.LOINC}|")]


def _latest(found: Mapping[str, list[_Point]], *, as_of: datetime, used: _Used) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for measured in catalogue.LATEST:
        newest = next(iter(found.get(measured.name, [])), None)
        if newest is None or newest.at < as_of - timedelta(days=measured.window_days):
            values[measured.name] = None
            continue
        values[measured.name] = newest.value
        used.add(*newest.resource, newest.known_at)
    return values


def _measured(patient: Patient, *, as_of: datetime, used: _Used) -> dict[str, float | None]:
    """Sizes in the newest picture they are known of; of several methods, the latest one's."""
    values: dict[str, float | None] = {}
    rows = (
        Measurement.objects.filter(series__study__patient=patient, series__study__started_at__lte=as_of)
        .filter(value__isnull=False, pixels_digest=F("series__pixels_digest"))
        .order_by("-series__study__started_at", "-made_at", "pk")
        .values_list("name", "value", "series__study__study_uid", "series__study__started_at")
    )
    newest: dict[str, tuple[float | None, str, datetime | None]] = {}
    for name, value, uid, at in rows:
        newest.setdefault(name, (value, uid, at))
    for size in catalogue.MEASURED:
        value, uid, at = newest.get(size.name, (None, "", None))
        is_recent = at is not None and at >= as_of - timedelta(days=size.window_days)
        values[size.name] = value if is_recent else None
        if is_recent:
            used.add("ImagingStudy", uid, at)
    return values


def _series(
    found: Mapping[str, list[_Point]], *, as_of: datetime, hours: float, used: _Used
) -> tuple[SeriesPoint, ...]:
    since = as_of - timedelta(hours=hours)
    points: list[SeriesPoint] = []
    for channel in catalogue.SERIES:
        for point in found.get(channel.name, [])[:MAX_POINTS]:
            if point.at < since:
                break
            points.append(SeriesPoint(channel.name, _hours(as_of, point.at), point.value))
            used.add(*point.resource, point.known_at)
    return tuple(points)


# -- who the patient is and has been ------------------------------------------------------------------
def _computed(
    patient: Patient, conditions: list[_Condition] | None, *, as_of: datetime, used: _Used
) -> dict[str, float | None]:
    rules: dict[str, Callable[[Patient, datetime, _Used], float | None]] = {
        "age": _age,
        "female": _female,
        "smoker": _smoker,
        "medications": _medications,
        "family_cardiac": _family_cardiac,
    }
    is_countable = conditions is not None and all(one.is_sure for one in conditions)
    counted = float(len({one.tokens[0] for one in conditions or ()})) if is_countable else None
    return {
        computed.name: counted if computed.how == "conditions" else rules[computed.how](patient, as_of, used)
        for computed in catalogue.COMPUTED
    }


def _age(patient: Patient, as_of: datetime, used: _Used) -> float | None:
    """Years since birth; missing when unknown or when as_of lies before birth."""
    if patient.birth_date is None:
        return None
    days = (as_of.astimezone(UTC).date() - patient.birth_date).days
    if not 0 <= days <= 120 * 366:
        return None
    used.add("Patient", patient.resource_id, None)
    return days / 365.25


def _female(patient: Patient, as_of: datetime, used: _Used) -> float | None:
    if patient.sex not in ("female", "male"):
        return None
    used.add("Patient", patient.resource_id, None)
    return float(patient.sex == "female")


def _smoker(patient: Patient, as_of: datetime, used: _Used) -> float | None:
    """The latest answer to LOINC 72166-2 with a SNOMED CT code we know."""
    rows = patient.observations.filter(
        code=catalogue.SMOKING_STATUS, available_at__lte=as_of, status__in=USABLE_STATUS
    ).order_by("-effective_at", "-available_at")
    for row in rows[:20]:
        answer = row.value_code.rpartition("|")[2]
        if answer in catalogue.SMOKES or answer in catalogue.DOES_NOT_SMOKE:
            used.add(row.resource_type, row.resource_id, row.available_at)
            return float(answer in catalogue.SMOKES)
    return None


def _medications(patient: Patient, as_of: datetime, used: _Used) -> float | None:
    """Distinct drugs in use at as_of; unknown when one of them was stopped and nobody says when."""
    rows = [
        row
        for row in patient.medications.filter(available_at__lte=as_of)
        if row.start is None or row.start <= as_of
    ]
    in_use = [(row, _is_going_on(row.status, row.end, row.over_at, as_of)) for row in rows]
    if not rows or any(going_on is None for _, going_on in in_use):
        return None
    active = [row for row, going_on in in_use if going_on]
    for row in active:
        used.add(row.resource_type, row.resource_id, row.available_at)
    return float(len({(row.code_system, row.code) for row in active}))


def _is_going_on(status: str, end: datetime | None, over_at: datetime | None, as_of: datetime) -> bool | None:
    """Whether what had begun by as_of went on then.

    None when it is over by now and nobody says since when: its status of today must not be read into the
    past (INTEROP 34). From `over_at` on it is known to be over.
    """
    if end is not None:
        return end > as_of
    if not ehr.is_over(status):
        return status not in NOT_BEGUN
    return False if over_at is not None and over_at <= as_of else None


@dataclass(frozen=True, slots=True)
class _Condition:
    """A condition active at as_of, for all that is known (`is_sure`) or perhaps."""

    is_sure: bool
    tokens: tuple[str, ...]  # system|code, the main one first
    resource: tuple[str, str]
    known_at: datetime


def _known_conditions(patient: Patient, as_of: datetime) -> list[_Condition] | None:
    """Those active or perhaps active at as_of; None when none is known at all."""
    rows = list(patient.conditions.filter(available_at__lte=as_of).exclude(verification_status__in=DOUBTFUL))
    if not rows:
        return None
    known = []
    for row in rows:
        if row.onset_at is not None and row.onset_at > as_of:
            continue
        going_on = _is_going_on(row.clinical_status, row.abated_at, row.over_at, as_of)
        if going_on is not False and row.available_at is not None:
            tokens = (f"{row.code_system}|{row.code}", *row.also)
            resource = (row.resource_type, row.resource_id)
            known.append(_Condition(bool(going_on), tokens, resource, row.available_at))
    return known


def _flags(conditions: list[_Condition] | None, *, used: _Used) -> dict[str, float | None]:
    if conditions is None:
        return {flag.name: None for flag in catalogue.CONDITIONS}
    flags: dict[str, float | None] = {}
    for flag in catalogue.CONDITIONS:
        hits = [one for one in conditions if _is_one_of(one.tokens, flag.snomed, flag.icd10)]
        sure = [one for one in hits if one.is_sure]
        flags[flag.name] = 1.0 if sure else None if hits else 0.0
        for one in sure:
            used.add(*one.resource, one.known_at)
    return flags


def _is_one_of(tokens: Iterable[str], snomed: Collection[str], icd10: tuple[str, ...]) -> bool:
    for token in tokens:
        system, _, code = token.rpartition("|")
        if (system == catalogue.SNOMED and code in snomed) or ("icd-10" in system and code.startswith(icd10)):
            return True
    return False


def _family_cardiac(patient: Patient, as_of: datetime, used: _Used) -> float | None:
    rows = list(patient.familyhistorys.filter(available_at__lte=as_of))
    if not rows:
        return None
    hits = [
        row
        for row in rows
        if _is_one_of(
            [f"{row.code_system}|{row.code}"], catalogue.FAMILY_CARDIAC_SNOMED, catalogue.FAMILY_CARDIAC_ICD10
        )
    ]
    for row in hits or rows:
        used.add(row.resource_type, row.resource_id, row.available_at)
    return float(bool(hits))


def _genomics(patient: Patient, *, as_of: datetime, used: _Used) -> dict[str, float | None]:
    """1 for a (likely) pathogenic variant present, 0 when these genes were read without one, else missing."""
    rows = list(patient.genomicfindings.filter(available_at__lte=as_of).order_by("-available_at"))
    values: dict[str, float | None] = {}
    for wanted in catalogue.GENOMICS:
        if wanted.genes:
            read = [
                row
                for row in rows
                if row.kind == "variant" and row.gene in wanted.genes and row.present is not None
            ]
            hits = [row for row in read if row.present and _is_pathogenic(row.significance)]
            values[wanted.name] = float(bool(hits)) if read else None
            taken = hits or read
        else:
            scores = [row for row in rows if row.kind == "score" and row.value is not None]
            taken = [row for row in scores if wanted.low <= (row.value or 0.0) <= wanted.high][:1]
            values[wanted.name] = taken[0].value if taken else None
        for row in taken:
            used.add(row.resource_type, row.resource_id, row.available_at)
    return values


def _is_pathogenic(significance: str) -> bool:
    """ClinVar wording: "Pathogenic", "Likely pathogenic"; not "Conflicting …"."""
    word = significance.lower()
    return "pathogenic" in word and "conflicting" not in word


# -- pixels and notes ----------------------------------------------------------------------------------
def pixel_key(backbone_version: str, size: int) -> str:
    """Embeddings depend on the side they were resized to as well: `name:sha8@size`."""
    return f"{backbone_version}@{size}"


def split_pixel_key(key: str) -> tuple[str, int]:
    """The backbone version and the size of a `pixel_key`."""
    version, _, size = key.rpartition("@")
    return version, int(size)


def is_usable(series: Series, modality: Modality) -> bool:
    """Whether a decoded Series is a chest radiograph (image), a cine, or even slices of a chest (volume)."""
    if not series.pixels_digest or not series.clip_path or series.failure:
        return False
    part = series.body_part.upper()
    if modality == Modality.VOLUME:
        return (
            series.imaging_modality in VOLUMES
            and any(word in part for word in CHEST)
            and series.frames >= LEAST_SLICES
            and bool(series.slice_mm and series.spacing_row_mm and series.spacing_column_mm)
        )
    if modality == Modality.CINE:
        return series.imaging_modality in MOVING and series.is_cine and bool(series.frame_ms)
    return (
        series.imaging_modality in RADIOGRAPHS
        and not series.is_cine
        and (not part or any(word in part for word in CHEST))
    )


def usable_series(patient: Patient, *, as_of: datetime, modality: Modality) -> list[Series]:
    """A patient's images, cines or volumes taken by as_of, newest first. An undated study is never used."""
    rows = (
        Series.objects.filter(study__patient=patient, study__started_at__lte=as_of)
        .select_related("study")
        .order_by("-study__started_at", "series_uid")
    )
    return [series for series in rows if is_usable(series, modality)][:MAX_PIXELS]


def _pixels(
    patient: Patient, as_of: datetime, key: str | None, *, modality: Modality, used: _Used
) -> tuple[tuple[PixelInput, ...], bool]:
    if key is None:
        return (), False
    version = split_pixel_key(key)[0]
    candidates = usable_series(patient, as_of=as_of, modality=modality)
    held = studies_queries.embeddings([series.pixels_digest for series in candidates], key)
    inputs = []
    for series in candidates:
        if series.pixels_digest not in held:
            continue
        started_at = series.study.started_at
        assert started_at is not None  # usable_series asked for it
        inputs.append(
            PixelInput(
                key=series.pixels_digest,
                read=partial(_read_frames, series),
                times_ms=np.arange(series.frames, dtype=np.float32) * np.float32(series.frame_ms or 0.0),
                embeddings={version: held[series.pixels_digest]},
                view=series.view,
                hours_before=_hours(as_of, started_at),
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


def _read_frames(series: Series) -> Frames:
    clip = receiving.load_clip(series)
    return Frames(clip.frames, clip.times_ms, clip.spacing_mm, clip.slice_mm)


def _notes(
    patient: Patient, as_of: datetime, encoder: str | None, *, used: _Used
) -> tuple[tuple[NoteInput, ...], bool]:
    if encoder is None:
        return (), False
    rows = list(patient.notes.filter(available_at__lte=as_of).order_by("-available_at", "pk")[:MAX_NOTES])
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
                hours_before=_hours(as_of, row.available_at),
            )
        )
        used.add(row.resource_type, row.resource_id, row.available_at)
    return tuple(inputs), len(inputs) < len(rows)


def _hours(as_of: datetime, at: datetime) -> float:
    return max(0.0, (as_of - at).total_seconds() / 3600)


# -- encoding --------------------------------------------------------------------------------------------
@lru_cache(maxsize=4)
def get_backbone(name: str) -> ImageBackbone:
    """The image backbone of that name, with the site's weights where it is the site's; once per process.

    It runs in ONNX Runtime unless ENCODER_RUNTIME says otherwise: the same embeddings, to 1e-4, in a third
    of the time.
    """
    backbone = load_backbone(name, weights=image_weights(name))
    if settings.ENCODER_RUNTIME == "torch":
        return backbone
    return serve(backbone, settings.ENCODER_STORE, threads=settings.ENCODER_THREADS)


def image_weights(name: str) -> Path | None:
    """The file of IMAGE_WEIGHTS, for the architecture that IMAGE_BACKBONE names; None for others."""
    is_own = name.partition("+")[0] == settings.IMAGE_BACKBONE.partition("+")[0]
    return settings.IMAGE_WEIGHTS if is_own else None


@lru_cache(maxsize=2)
def get_volume_backbone(name: str) -> VolumeBackbone:
    """The volume backbone of that name, with the site's weights where its 2D backbone is the site's."""
    return VolumeBackbone(name, weights=image_weights(name.partition("/")[0]))


@lru_cache(maxsize=2)
def get_text_backbone(name: str) -> TextBackbone:
    """The text backbone of that name, loaded once per process."""
    return load_text_backbone(name)


def encode_series(
    series: Series, backbone: ImageBackbone | VolumeBackbone, *, size: int, now: datetime
) -> bool:
    """Store what `backbone` makes of every frame (of the volume) at `size` pixels a side; False when it is
    already there."""
    key = pixel_key(backbone.version, size)
    if studies_queries.embeddings([series.pixels_digest], key):
        return False
    frames = _read_frames(series)
    if isinstance(backbone, VolumeBackbone):
        made = backbone.embed(frames, size)
    else:
        made = backbone.embed(frames.values, size)
    studies_queries.put_embedding(series.pixels_digest, key, made, now=now)
    return True


def encode_note(text: str, digest: str, backbone: TextBackbone, *, now: datetime) -> bool:
    """Store one row a sentence; False when it is already there."""
    if studies_queries.embeddings([digest], backbone.version):
        return False
    studies_queries.put_embedding(digest, backbone.version, backbone.embed(text), now=now)
    return True
