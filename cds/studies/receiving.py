"""A study arrives: announced → files received → decoded once and stored → asked to be encoded.

    announce      we learn that a Study exists (FHIR ImagingStudy, QIDO-RS)
    receive_file  one DICOM file: durable first, then a row; the same again changes nothing
                  (`arriving` takes many at once, from an inbox)
    complete      every Series with new files becomes one Clip; the Encoding is asked for
    link_patient  studies that came before their patient find it

Safe to kill anywhere and to run twice: files are named by their content, rows are unique by UID, and a Study
stays `announced` until all its files are decoded, so whoever completes next finishes the work.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db import transaction

import ehr
from cds.audit import recording
from cds.errors import Conflict
from cds.jobs import outbox
from cds.patients import importing, merging
from cds.patients.merging import STUDY
from cds.patients.models import NOT_READ, MovedResource, Patient, Source
from cds.studies import clips, matching
from cds.studies.clips import frame, load_clip, png, times_ms
from cds.studies.decoding import Completed, complete, request_encoding
from cds.studies.instances import Outcome, Received, Refused, find_instance, note, rows_for, seen_again, store
from cds.studies.models import Instance, Study, StudyState

TRANSITIONS: dict[StudyState, frozenset[StudyState]] = {
    StudyState.ANNOUNCED: frozenset({StudyState.STORED, StudyState.FAILED}),
    StudyState.STORED: frozenset({StudyState.ENCODED, StudyState.FAILED, StudyState.ANNOUNCED}),
    StudyState.ENCODED: frozenset({StudyState.FAILED, StudyState.ANNOUNCED}),
    StudyState.FAILED: frozenset({StudyState.STORED, StudyState.ANNOUNCED}),
}


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
        raise Conflict(
            f"Study {study.pk} is held for another patient: PatientID and the ImagingStudy's subject "
            "disagree; correct the one that is wrong at its source"
        )
    linked = not created and whose is not None and study.patient_id is None
    expected = dict(found.expected) or study.expected  # the latest word; a Study may grow
    if linked or expected != study.expected:
        study.patient, study.expected = whose or study.patient, expected
        study.save(update_fields=["patient", "expected"])
    if created or linked:
        note("study.announce" if created else "study.link", study, by=by, now=now)
    return study


def receive_file(
    path: Path, *, source: Source, by: recording.Actor, now: datetime, where: str | None = None
) -> Received:
    """Take one DICOM file: success is answered only once it lies durably in the store and has its row.

    where   what to call the file when it is set aside; by default its path
    The same SOP Instance UID with the same pixels (as sent, or as decoded from another lossless transfer
    syntax) is a duplicate; with other pixels it is set aside, and what was there first stays. A result of our
    own that comes back counts as a duplicate and is not kept: no model reads its own heat map. Nor is a file
    kept that holds no picture; it is noted as not read.
    raises  ehr.Retriable when the decoding process cannot be started, OSError when the store is full
    """
    identity, called = "", where if where is not None else str(path)
    try:
        found = inspect(path)
        header, identity = found.header, found.header.sop_uid
        if header.is_ours:
            return Received(None, None, Outcome.DUPLICATE, "a result of ours that came back")
        if not header.is_picture:
            return pass_over(called, header.sop_uid, header.modality, source=source, now=now)
        known = find_instance(header.sop_uid)
        if known is None:
            study, series = rows_for(header, source=source, by=by, now=now)
            relative, _, _ = clips.keep_file(path, f"{study.pk}/{series.pk}")
            instance = store(relative, found, study, series, by=by, now=now)
            if instance is not None:
                return Received(instance.series.study, instance, Outcome.NEW)
            if not Instance.objects.filter(path=relative).exists():
                clips.remove(relative)
            known = find_instance(header.sop_uid)
            assert known is not None  # somebody stored it between our look and our insert
        return seen_again(known, path, found)
    except (ehr.Permanent, Refused) as error:
        return set_aside(called, identity, str(error), source=source, now=now)


def inspect(path: Path) -> ehr.Inspected:
    """What a file is. Raises ehr.BadInstance for a picture without its pixels."""
    found = ehr.inspect(path, default_tz=settings.TIME_ZONE)
    header = found.header
    if header.is_picture and not header.has_pixels and not header.is_ours:
        said = "Rows and Columns" if header.rows or header.columns else "Modality and SOP Class"
        raise ehr.BadInstance(
            f"{said} speak of a picture and there is no pixel data: it was cut off, or exported "
            "without; send the whole instance"
        )
    return found


def pass_over(where: str, sop_uid: str, modality: str, *, source: Source, now: datetime) -> Received:
    """Note that a sound file is not kept, because Tessera reads pictures only."""
    kind = f"Modality {modality}" if modality else "no Modality"
    reason = f"it holds no picture ({kind}), so it is not kept here; nothing is wrong with it"
    importing.keep_set_aside(source, [ehr.SetAside(where, NOT_READ, sop_uid, reason)], now=now)
    return Received(None, None, Outcome.NOT_READ, reason)


def set_aside(where: str, identity: str, reason: str, *, source: Source, now: datetime) -> Received:
    """Keep the reason why a file was not taken."""
    importing.keep_set_aside(source, [ehr.SetAside(where, "DICOM", identity, reason)], now=now)
    return Received(None, None, Outcome.SET_ASIDE, reason)


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
            note("study.link", study, by=by or recording.system("studies"), now=now)
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
            note("study.link", study, by=by, now=now)
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


__all__ = [
    "TRANSITIONS",
    "Completed",
    "Outcome",
    "Received",
    "announce",
    "complete",
    "frame",
    "inspect",
    "link_patient",
    "load_clip",
    "mark_encoded",
    "pass_over",
    "png",
    "receive_file",
    "request_encoding",
    "set_aside",
    "times_ms",
]
