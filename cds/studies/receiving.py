"""A study arrives: announced → files received → decoded once and stored → asked to be encoded.

    announce      we learn that a Study exists (FHIR ImagingStudy, QIDO-RS)
    receive_file  one DICOM file: durable first, then a row; the same again changes nothing
    inspect, known_as, record_arrivals
                  the same in three steps, for files that lie durably in an inbox (`cds.listening`)
    complete      every Series with new files becomes one Clip; the Encoding is asked for
    link_patient  studies that came before their patient find it

Safe to kill anywhere and to run twice: files are named by their content, rows are unique by UID, and a Study
stays `announced` until all its files are decoded, so whoever completes next finishes the work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DataError, IntegrityError, transaction

import ehr
from cds.audit import recording
from cds.errors import Conflict
from cds.jobs import outbox
from cds.patients import importing, merging
from cds.patients.merging import STUDY
from cds.patients.models import MovedResource, Patient, Source
from cds.studies import clips, matching
from cds.studies.clips import frame, load_clip, png, times_ms
from cds.studies.decoding import Completed, complete, request_encoding
from cds.studies.models import Instance, Series, Study, StudyState

FRONTAL = frozenset({"PA", "AP", "AP PORTABLE"})
TRANSITIONS: dict[StudyState, frozenset[StudyState]] = {
    StudyState.ANNOUNCED: frozenset({StudyState.STORED, StudyState.FAILED}),
    StudyState.STORED: frozenset({StudyState.ENCODED, StudyState.FAILED, StudyState.ANNOUNCED}),
    StudyState.ENCODED: frozenset({StudyState.FAILED, StudyState.ANNOUNCED}),
    StudyState.FAILED: frozenset({StudyState.STORED, StudyState.ANNOUNCED}),
}


class Outcome(StrEnum):
    """What became of a file."""

    NEW = "new"
    DUPLICATE = "duplicate"
    SET_ASIDE = "set-aside"


@dataclass(frozen=True, slots=True)
class Received:
    """What `receive_file` did. `reason` says in words why a file was set aside, or how it was known."""

    study: Study | None
    instance: Instance | None
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that lies durably in an inbox, inspected. `where` is what to call it when it is set aside."""

    path: Path
    found: ehr.Inspected
    where: str


class _Refused(Exception):
    """This file contradicts what we hold; it is set aside."""


@transaction.atomic
def announce(
    found: ehr.ImagingStudyRecord,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    patient: Patient | None = None,
    patient_id: str = "",
    issuer: str = "",
) -> Study:
    """Note that a Study exists, before any pixel of it is here. Idempotent.

    patient     whose it is, when FHIR said so; else found by `patient_id` (DICOM PatientID), or left open
    raises      Conflict when the Study is already held for another patient
    """
    whose = patient or matching.find_patient(source, patient_id, issuer)
    study, created = Study.objects.select_for_update().get_or_create(
        study_uid=found.study_uid,
        defaults={
            "source": source,
            "patient": whose,
            "dicom_patient_id": patient_id[:128],
            "issuer_of_patient_id": issuer[:128],
            "description": found.description[:200],
            "started_at": found.started_at,
            "received_at": now,
            "expected": dict(found.expected),
        },
    )
    if not created and whose is not None and study.patient_id not in (None, whose.pk):
        raise Conflict(f"Study {study.pk} is held for another patient")
    linked = not created and whose is not None and study.patient_id is None
    expected = dict(found.expected) or study.expected  # the latest word; a Study may grow
    if linked or expected != study.expected:
        study.patient, study.expected = whose or study.patient, expected
        study.save(update_fields=["patient", "expected"])
    if created or linked:
        _record("study.announce" if created else "study.link", study, by=by, now=now)
    return study


def receive_file(
    path: Path, *, source: Source, by: recording.Actor, now: datetime, where: str | None = None
) -> Received:
    """Take one DICOM file: success is answered only once it lies durably in the store and has its row.

    where   what to call the file when it is set aside; by default its path
    The same SOP Instance UID with the same pixels (as sent, or as decoded from another lossless transfer
    syntax) is a duplicate; with other pixels it is set aside, and what was there first stays.
    raises  ehr.Retriable when the decoding process cannot be started, OSError when the store is full
    """
    identity, called = "", where if where is not None else str(path)
    try:
        found = inspect(path)
        header, identity = found.header, found.header.sop_uid
        known = _find_instance(header.sop_uid)
        if known is None:
            study, series = _rows_for(header, source=source, by=by, now=now)
            relative, _, _ = clips.keep_file(path, f"{study.pk}/{series.pk}")
            instance = _store(relative, found, study, series, by=by, now=now)
            if instance is not None:
                return Received(instance.series.study, instance, Outcome.NEW)
            if not Instance.objects.filter(path=relative).exists():
                clips.remove(relative)
            known = _find_instance(header.sop_uid)
            assert known is not None  # somebody stored it between our look and our insert
        return _seen_again(known, path, found)
    except (ehr.Permanent, _Refused) as error:
        return set_aside(called, identity, str(error), source=source, now=now)


def inspect(path: Path) -> ehr.Inspected:
    """What a file is. Raises ehr.BadInstance when it is no picture of ours, or cannot be read."""
    found = ehr.inspect(path, default_tz=settings.TIME_ZONE)
    if not found.header.has_pixels:
        kind = f" (Modality {found.header.modality})" if found.header.modality else ""
        raise ehr.BadInstance(f"there is no pixel data{kind}")
    return found


def set_aside(where: str, identity: str, reason: str, *, source: Source, now: datetime) -> Received:
    """Keep the reason why a file was not taken."""
    importing.keep_set_aside(source, [ehr.SetAside(where, "DICOM", identity, reason)], now=now)
    return Received(None, None, Outcome.SET_ASIDE, reason)


def known_as(arrived: Arrived, *, source: Source, now: datetime) -> Received | None:
    """What a file is that we hold already: a duplicate, or set aside; None when it is new to us."""
    known = _find_instance(arrived.found.header.sop_uid)
    if known is None:
        return None
    try:
        return _seen_again(known, arrived.path, arrived.found)
    except (ehr.Permanent, _Refused) as error:
        identity = arrived.found.header.sop_uid
        return set_aside(arrived.where, identity, str(error), source=source, now=now)


def record_arrivals(
    arrivals: list[Arrived], *, source: Source, by: recording.Actor, now: datetime
) -> list[Received]:
    """The rows of files in an inbox, in one transaction; then the files go to their places.

    A new file has its row first and its place after: whoever finds it still in the inbox (we were killed in
    between) calls this again, and it goes to the place that its row names. What is not new stays there.
    """
    with transaction.atomic():
        done = [_record_arrival(one, source=source, by=by, now=now) for one in arrivals]
    for one, received in zip(arrivals, done, strict=True):
        if (instance := received.instance) is None or instance.sha256 != one.found.sha256:
            continue
        if received.outcome is Outcome.NEW or not clips.path_of(instance.path).exists():
            clips.place(one.path, instance.path)
    return done


def _record_arrival(arrived: Arrived, *, source: Source, by: recording.Actor, now: datetime) -> Received:
    header = arrived.found.header
    try:
        with transaction.atomic():
            known = _find_instance(header.sop_uid)
            if known is None:
                study, series = _rows_for(header, source=source, by=by, now=now)
                relative = f"{study.pk}/{series.pk}/{arrived.found.sha256}.dcm"
                instance = _store(relative, arrived.found, study, series, by=by, now=now)
                if instance is not None:
                    return Received(instance.series.study, instance, Outcome.NEW)
                known = _find_instance(header.sop_uid)
                assert known is not None  # somebody stored it between our look and our insert
            return _seen_again(known, arrived.path, arrived.found)
    except (ehr.Permanent, _Refused, DataError) as error:
        reason = str(error) if not isinstance(error, DataError) else "a value of it does not fit its column"
        return set_aside(arrived.where, header.sop_uid, reason, source=source, now=now)


def link_patient(patient: Patient, *, now: datetime, by: recording.Actor | None = None) -> int:
    """Give a patient the studies that came before their record did; returns how many."""
    linked = 0
    with transaction.atomic():
        for candidate in matching.list_unlinked(patient):
            study = Study.objects.select_for_update().get(pk=candidate.pk)
            found = matching.find_patient(study.source, study.dicom_patient_id, study.issuer_of_patient_id)
            if study.patient_id is not None or found is None or found.pk != patient.pk:
                continue
            study.patient = patient
            study.save(update_fields=["patient"])
            _record("study.link", study, by=by or recording.system("studies"), now=now)
            linked += 1
        if linked:
            importing.touch(patient, now)
    return linked


@transaction.atomic
def follow_mergers(patients: Iterable[Patient], *, now: datetime, by: recording.Actor) -> int:
    """Studies go where the record went when patients were merged, and come back when that is undone."""
    moved = 0
    for patient in patients:
        home = merging.survivor(patient)
        theirs = Study.objects.filter(patient=patient) if home != patient else Study.objects.none()
        back = MovedResource.objects.filter(patient=patient, resource_type=STUDY)
        if home == patient:
            theirs = Study.objects.filter(study_uid__in=back.values("resource_id"), source=patient.source_id)
        for study in theirs.exclude(patient=home).select_for_update(of=("self",)):
            study.patient = home
            study.save(update_fields=["patient"])
            if home != patient:
                back.get_or_create(patient=patient, resource_type=STUDY, resource_id=study.study_uid)
            _record("study.link", study, by=by, now=now)
            moved += 1
        if home == patient:
            back.delete()
    return moved


@transaction.atomic
def mark_encoded(study: Study, *, failures: list[str], now: datetime) -> Study:
    """The encoders are done with a Study. One that got new files meanwhile stays as it is."""
    held = Study.objects.select_for_update().get(pk=study.pk)
    state = StudyState.FAILED if failures else StudyState.ENCODED
    if state in TRANSITIONS[StudyState(held.state)]:
        held.state, held.failure = state, "; ".join(failures)[:500]
        held.save(update_fields=["state", "failure"])
        outbox.tell("study", held.pk, now=now, patient_id=held.patient_id)
    return held


def _find_instance(sop_uid: str) -> Instance | None:
    return Instance.objects.select_related("series__study").filter(sop_uid=sop_uid).first()


@transaction.atomic
def _rows_for(
    header: ehr.InstanceHeader, *, source: Source, by: recording.Actor, now: datetime
) -> tuple[Study, Series]:
    """The Study and Series of an instance, made when new. Raises _Refused when they contradict the file."""
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
        _record("study.announce", study, by=by, now=now)
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
        raise _Refused("its Series UID belongs to another Study")
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
        raise _Refused("its PatientID differs from the one of its Study")
    was = (study.dicom_patient_id, study.issuer_of_patient_id, study.description, study.started_at)
    if study.patient_id is not None and was[:2] == (patient_id, issuer):
        found = None  # as the files before it: nobody else can be meant
    else:
        found = matching.find_patient(study.source, patient_id, issuer)
    if found is not None and study.patient_id not in (None, found.pk):
        raise _Refused("its PatientID leads to another patient than its Study")
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
        _record("study.link", study, by=by, now=now)


def _store(
    relative: str,
    found: ehr.Inspected,
    study: Study,
    series: Series,
    *,
    by: recording.Actor,
    now: datetime,
) -> Instance | None:
    """The row of a file; None when somebody else was first with this UID."""
    header = found.header
    try:
        with transaction.atomic():
            held = Study.objects.select_for_update().get(pk=study.pk)
            instance = Instance.objects.create(
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
            if header.view_position in FRONTAL and series.view not in FRONTAL:
                series.view = header.view_position  # the Clip of several views shows a frontal one
                series.save(update_fields=["view"])
            if held.state != StudyState.ANNOUNCED:
                held.state = StudyState.ANNOUNCED
                held.save(update_fields=["state"])
            instance.series.study = held
            _record("instance.receive", held, by=by, now=now, instance=header.sop_uid, bytes=found.bytes)
            return instance
    except IntegrityError:
        return None


def _seen_again(known: Instance, path: Path, found: ehr.Inspected) -> Received:
    """A SOP Instance UID we hold. Raises _Refused when it comes with other pixels or from elsewhere."""
    study, header = known.series.study, found.header
    if header.series_uid != known.series.series_uid or header.study_uid != study.study_uid:
        raise _Refused("its SOP Instance UID is held in another Series")
    if found.pixel_digest == known.pixel_digest:
        return Received(study, known, Outcome.DUPLICATE, "same pixels")
    if header.transfer_syntax_uid != known.transfer_syntax_uid and _same_values(path, known):
        return Received(study, known, Outcome.DUPLICATE, "same pixels in another transfer syntax")
    raise _Refused("its SOP Instance UID is held with other pixels")


def _same_values(path: Path, known: Instance) -> bool:
    try:
        return ehr.value_digest(path) == ehr.value_digest(clips.path_of(known.path))
    except ehr.Permanent:
        return False  # one of the two cannot be decoded, so sameness cannot be shown


def _record(action: str, study: Study, *, by: recording.Actor, now: datetime, **detail: Any) -> None:
    recording.record(
        by=by,
        action=action,
        object_type="Study",
        object_id=study.pk,
        patient_id=study.patient_id,
        now=now,
        **detail,
    )


__all__ = [
    "TRANSITIONS",
    "Arrived",
    "Completed",
    "Outcome",
    "Received",
    "announce",
    "complete",
    "frame",
    "inspect",
    "known_as",
    "link_patient",
    "load_clip",
    "mark_encoded",
    "png",
    "receive_file",
    "record_arrivals",
    "request_encoding",
    "set_aside",
    "times_ms",
]
