"""The first import of many patients at once: one transaction and a query per kind of row, not per patient.

For a large folder, most of whose patients nobody has met before. What is written is what `importing` would
have written, audit per patient included; whoever is known already must go through there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db import transaction

import ehr
from cds.audit import recording
from cds.jobs import Job, outbox
from cds.patients import bulk_writing, code_map, importing, rows
from cds.patients.importing import Imported
from cds.patients.importing_facts import NEW, SET_ASIDE, ResourceStates, resources_of
from cds.patients.models import (
    Encounter,
    Fact,
    ImportedRecord,
    Note,
    Patient,
    PatientIdentifier,
    Source,
    Unit,
)


@dataclass(slots=True)
class _Draft:
    """One patient, before anything is written."""

    record: ehr.PatientRecord
    facts: Sequence[dict[rows.Key, rows.Row]]
    refused: tuple[ehr.SetAside, ...]
    digest: str
    patient: Patient
    unit: str = ""
    states: ResourceStates = field(default_factory=ResourceStates)

    def rows_of(self, model: type[Fact]) -> Iterable[rows.Row]:
        return self.facts[_PLACE[model]].values()


_PLACE = {kind.model: place for place, kind in enumerate(rows.KINDS)}


def list_met(source: Source, records: Iterable[ehr.PatientRecord]) -> set[str]:
    """The resource ids of these records' patients whom the source has told of before, by links included."""
    people = [record.patient for record in records]
    wanted = [one.resource_id for one in people]
    met = Patient.objects.filter(source=source, resource_id__in=wanted)
    awaited = Patient.objects.filter(source=source, replaced_by__in=wanted)
    return {
        *met.values_list("resource_id", flat=True),
        *awaited.values_list("replaced_by", flat=True),
        *(one.resource_id for one in people if one.replaced_by or one.replaces),
    }


def import_new(
    records: Sequence[ehr.PatientRecord], *, source: Source, by: recording.Actor, now: datetime
) -> list[Imported]:
    """Import the records of different patients whom nobody has met, all of them or none.

    raises  IntegrityError when one has been met after all, DataError when one cannot be stored
    """
    drafts = [_draft(record, source, now) for record in records]
    for draft in drafts:
        for resource_type, resource_id in resources_of(draft.facts, draft.record.patient):
            draft.states.add(resource_type, resource_id, NEW)
        for one in (*draft.record.set_aside, *draft.refused):
            draft.states.add(one.kind, one.identity or one.where, SET_ASIDE)
    with transaction.atomic():
        return _write(drafts, source, by, now)


def _draft(record: ehr.PatientRecord, source: Source, now: datetime) -> _Draft:
    record = code_map.site_map().apply(record)
    identity = record.patient
    built = [rows.build_rows(record, kind) for kind in rows.KINDS]
    facts = [kept for kept, _ in built]
    refused = tuple(one for _, items in built for one in items)
    identity_digest = "" if identity.is_stub else rows.identity_digest(identity)
    digest = rows.record_digest(record, facts, identity_digest)
    patient = Patient(source=source, resource_id=identity.resource_id, revision=1, changed_at=now)
    if not identity.is_stub:
        for name, value in rows.identity_columns(identity).items():
            setattr(patient, name, value)
        patient.digest = identity_digest
    draft = _Draft(record, facts, refused, digest, patient)
    draft.unit = importing.unit_name(source, list(draft.rows_of(Encounter)))
    return draft


def _write(drafts: Sequence[_Draft], source: Source, by: recording.Actor, now: datetime) -> list[Imported]:
    units = _units({draft.unit for draft in drafts})
    for draft in drafts:
        draft.patient.unit = units[draft.unit]
    Patient.objects.bulk_create([draft.patient for draft in drafts])
    PatientIdentifier.objects.bulk_create(
        PatientIdentifier(patient=draft.patient, system=system, value=value)
        for draft in drafts
        if not draft.record.patient.is_stub
        for system, value in sorted(rows.identifiers_of(draft.record.patient))
    )
    for kind in rows.KINDS:
        facts = [(draft.patient, row) for draft in drafts for row in draft.rows_of(kind.model)]
        rows.date_endings((row for _, row in facts), now)
        if facts:
            bulk_writing.insert_facts(kind.model, facts)
    aside = [one for draft in drafts for one in (*draft.record.set_aside, *draft.refused)]
    importing.keep_set_aside(source, aside, now=now)
    ImportedRecord.objects.bulk_create(
        ImportedRecord(patient=draft.patient, digest=draft.digest, revision=1) for draft in drafts
    )
    done = [_done(draft) for draft in drafts]
    notes = [{"patient_id": str(one.patient.pk)} for one in done if one.note_digests]
    outbox.enqueue_many(Job.ENCODE_NOTES, notes, now=now)
    recording.record_many(
        by=by,
        action="patient.import",
        object_type="Patient",
        now=now,
        acts=[
            recording.Act(
                one.patient.pk, one.patient.pk, {"source": source.slug, "revision": 1, "counts": one.counts}
            )
            for one in done
        ],
    )
    return done


def _done(draft: _Draft) -> Imported:
    counts, by_type = draft.states.counts()
    digests = tuple(str(row.columns["text_digest"]) for row in draft.rows_of(Note))
    return Imported(draft.patient, True, True, counts, by_type, digests, draft.refused)


def _units(names: set[str]) -> Mapping[str, Unit]:
    Unit.objects.bulk_create([Unit(name=name) for name in sorted(names)], ignore_conflicts=True)
    return {unit.name: unit for unit in Unit.objects.filter(name__in=names)}
