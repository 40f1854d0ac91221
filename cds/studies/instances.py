"""The rows of an instance: its Study, its Series, itself; and what a file is whose UID is held already.

Shared by those who take files one by one (`receiving`) and many at once (`arriving`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from django.db import IntegrityError, transaction

import ehr
from cds.audit import recording
from cds.patients.models import Source
from cds.studies import clips, matching
from cds.studies.models import Instance, Series, Study, StudyState

FRONTAL = frozenset({"PA", "AP", "AP PORTABLE"})


class Outcome(StrEnum):
    """What became of a file."""

    NEW = "new"
    DUPLICATE = "duplicate"
    SET_ASIDE = "set-aside"
    NOT_READ = "not-read"  # sound, and no picture: a report, a presentation state, a list of key images


@dataclass(frozen=True, slots=True)
class Received:
    """What `receive_file` did. `reason` says in words why a file was not taken, or how it was known."""

    study: Study | None
    instance: Instance | None
    outcome: Outcome
    reason: str = ""


class Refused(Exception):
    """This file contradicts what we hold; it is set aside."""


def find_instance(sop_uid: str) -> Instance | None:
    return Instance.objects.select_related("series__study").filter(sop_uid=sop_uid).first()


@transaction.atomic
def rows_for(
    header: ehr.InstanceHeader, *, source: Source, by: recording.Actor, now: datetime
) -> tuple[Study, Series]:
    """The Study and Series of an instance, made when new. Raises Refused when they contradict the file."""
    patient_id, issuer = header.patient_id[:128], header.issuer_of_patient_id[:128]
    held, created = Study.objects.select_for_update(of=("self",)), False
    study = held.select_related("source").filter(study_uid=header.study_uid).first()
    if study is None:
        study, created = held.get_or_create(
            study_uid=header.study_uid,
            defaults={
                "source": source,
                "patient": matching.find_patient(source, patient_id, issuer),
                "dicom_patient_id": patient_id,
                "issuer_of_patient_id": issuer,
                "description": header.study_description[:200],
                "started_at": header.started_at,
                "received_at": now,
            },
        )
    if created:
        note("study.announce", study, by=by, now=now)
    else:
        _agree(study, header, patient_id, issuer, by=by, now=now)
    series, _ = Series.objects.get_or_create(
        series_uid=header.series_uid,
        defaults={
            "study": study,
            "imaging_modality": header.modality[:16],
            "body_part": header.body_part[:64],
            "view": header.view_position[:32],
            "laterality": header.laterality[:4],
            "description": header.series_description[:200],
        },
    )
    if series.study_id != study.pk:
        raise Refused(
            "its Series UID belongs to another Study: one Series Instance UID was given twice, where it was "
            "made or merged; the copy needs its own"
        )
    return study, series


def _agree(
    study: Study,
    header: ehr.InstanceHeader,
    patient_id: str,
    issuer: str,
    *,
    by: recording.Actor,
    now: datetime,
) -> None:
    """A further file must be about the same patient; it may fill in what an announcement left open."""
    if study.dicom_patient_id and patient_id and study.dicom_patient_id != patient_id:
        raise Refused(
            "its PatientID differs from the one of its Study: correct it at its source; a Study has only one"
        )
    was = (study.dicom_patient_id, study.issuer_of_patient_id, study.description, study.started_at)
    if study.patient_id is not None and was[:2] == (patient_id, issuer):
        found = None  # as the files before it: nobody else can be meant
    else:
        found = matching.find_patient(study.source, patient_id, issuer)
    if found is not None and study.patient_id not in (None, found.pk):
        raise Refused(
            "its PatientID leads to another patient than its Study: correct PatientID or Issuer of Patient "
            "ID at its source, or the identifiers of the FHIR Patient"
        )
    linked = study.patient_id is None and found is not None
    if linked:
        study.patient = found
    study.dicom_patient_id = study.dicom_patient_id or patient_id
    study.issuer_of_patient_id = study.issuer_of_patient_id or issuer
    study.description = study.description or header.study_description[:200]
    study.started_at = study.started_at or header.started_at
    if linked or was != (
        study.dicom_patient_id,
        study.issuer_of_patient_id,
        study.description,
        study.started_at,
    ):
        study.save()
    if linked:
        note("study.link", study, by=by, now=now)


def store(
    relative: str,
    found: ehr.Inspected,
    study: Study,
    series: Series,
    *,
    by: recording.Actor,
    now: datetime,
) -> Instance | None:
    """The row of a file; None when somebody else was first with this UID."""
    try:
        with transaction.atomic():
            held = reopen(study, series, found.header)
            instance = build_instance(relative, found, series)
            instance.save(force_insert=True)
            instance.series.study = held
            note("instance.receive", held, by=by, now=now, instance=instance.sop_uid, bytes=found.bytes)
            return instance
    except IntegrityError:
        return None


def reopen(study: Study, series: Series, header: ehr.InstanceHeader) -> Study:
    """The Study, locked, `announced` again since a file of it comes."""
    held = Study.objects.select_for_update().get(pk=study.pk)
    if header.view_position in FRONTAL and series.view not in FRONTAL:
        series.view = header.view_position  # the Clip of several views shows a frontal one
        series.save(update_fields=["view"])
    if held.state != StudyState.ANNOUNCED:
        held.state = StudyState.ANNOUNCED
        held.save(update_fields=["state"])
    return held


def build_instance(relative: str, found: ehr.Inspected, series: Series) -> Instance:
    """The row of a file, not yet saved."""
    header = found.header
    return Instance(
        series=series,
        sop_uid=header.sop_uid,
        sop_class_uid=header.sop_class_uid,
        transfer_syntax_uid=header.transfer_syntax_uid[:64],
        number=header.instance_number,
        bytes=found.bytes,
        sha256=found.sha256,
        pixel_digest=found.pixel_digest,
        path=relative,
    )


def seen_again(known: Instance, path: Path, found: ehr.Inspected) -> Received:
    """A SOP Instance UID we hold. Raises Refused when it comes with other pixels or from elsewhere."""
    study, header = known.series.study, found.header
    if header.series_uid != known.series.series_uid or header.study_uid != study.study_uid:
        raise Refused(
            "its SOP Instance UID is held in another Series; what came first is kept: a moved or changed "
            "copy needs a SOP Instance UID of its own"
        )
    if found.pixel_digest == known.pixel_digest:
        return Received(study, known, Outcome.DUPLICATE, "same pixels")
    if header.transfer_syntax_uid != known.transfer_syntax_uid and _same_values(path, known):
        return Received(study, known, Outcome.DUPLICATE, "same pixels in another transfer syntax")
    raise Refused(
        "its SOP Instance UID is held with other pixels; what came first is kept: whatever changed the "
        "picture must give it a SOP Instance UID of its own"
    )


def _same_values(path: Path, known: Instance) -> bool:
    try:
        return ehr.value_digest(path) == ehr.value_digest(clips.path_of(known.path))
    except ehr.Permanent:
        return False  # one of the two cannot be decoded, so sameness cannot be shown


def note(action: str, study: Study, *, by: recording.Actor, now: datetime, **detail: Any) -> None:
    recording.record(
        by=by,
        action=action,
        object_type="Study",
        object_id=study.pk,
        patient_id=study.patient_id,
        now=now,
        **detail,
    )
