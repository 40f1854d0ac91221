"""Taking one patient's record or one folder's pieces into the clinic, and counting what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from django.db import DataError, IntegrityError

import ehr
from cds.audit import recording
from cds.errors import ClinicError, Conflict
from cds.patients import importing, importing_facts, importing_new
from cds.patients.models import Patient, Source
from cds.studies import receiving
from cds.studies.models import Study

Progress = Callable[[str, int, int | None], None]  # what, how many are done, of how many (None: not known)
MOST_LISTED = 10_000  # of what was set aside; a run of any size remembers no more


def silent(what: str, done: int, total: int | None) -> None:
    """No progress shown."""


@dataclass(slots=True)
class Tally:
    """What a run took, passed over and refused.

    resources   resource type -> state (new, changed, unchanged, removed, set_aside) -> how many
    ignored     resources that say nothing Tessera reads: by type, or "type (why)"
    instances   "new" | "duplicate" | "not-read" | "set-aside" -> how many DICOM files
    refused     resources and files set aside, with their reasons: the first MOST_LISTED
    unlisted    how many were set aside besides
    changed     patients whose record is not what it was before
    passed_over patients that an earlier run, broken off, had taken already
    notes       what to know of how a server was read, once each
    interrupted why a server's answer ended early; "" when everything was read
    may_go_on   whether the same command goes on from there as it is; else something must change first
    """

    resources: dict[str, Counter[str]] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    instances: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    patients: int = 0
    refused: list[ehr.SetAside] = field(default_factory=list)
    unlisted: int = 0
    changed: set[UUID] = field(default_factory=set)
    passed_over: int = 0
    notes: list[str] = field(default_factory=list)
    interrupted: str = ""
    may_go_on: bool = True

    @property
    def all_refused(self) -> int:
        """How many were set aside, listed or not."""
        return len(self.refused) + self.unlisted

    def add(self, by_type: Mapping[str, Mapping[str, int]]) -> None:
        """Count what an import did; what it set aside comes by `refuse`."""
        for name, states in by_type.items():
            done = {state: count for state, count in states.items() if state != importing_facts.SET_ASIDE}
            self.resources.setdefault(name, Counter()).update(done)

    def refuse(self, items: Iterable[ehr.SetAside]) -> None:
        """Count and list what was set aside."""
        for item in items:
            self._list([item])
            if item.kind != "DICOM":
                self.resources.setdefault(item.kind or "file", Counter())[importing_facts.SET_ASIDE] += 1

    def count(self, received: receiving.Received) -> None:
        """Count what became of a DICOM file; what was set aside is listed by `refuse` besides."""
        self.instances[received.outcome.value] += 1

    def note(self, words: str) -> None:
        """Say something once, however often it happens."""
        if words not in self.notes:
            self.notes.append(words)

    def merge(self, other: Tally) -> None:
        """Take over what another run counted."""
        for name, states in other.resources.items():
            self.resources.setdefault(name, Counter()).update(states)
        self.ignored.update(other.ignored)
        self.instances.update(other.instances)
        self.studies += other.studies
        self.patients += other.patients
        self.passed_over += other.passed_over
        for words in other.notes:
            self.note(words)
        self._list(other.refused)
        self.unlisted += other.unlisted
        self.changed |= other.changed
        self.interrupted = self.interrupted or other.interrupted
        self.may_go_on = self.may_go_on and other.may_go_on

    def _list(self, items: Sequence[ehr.SetAside]) -> None:
        room = max(0, MOST_LISTED - len(self.refused))
        self.refused.extend(items[:room])
        self.unlisted += max(0, len(items) - room)


def take_record(
    record: ehr.PatientRecord, *, source: Source, by: recording.Actor, now: datetime, tally: Tally
) -> importing.Imported | None:
    """One patient's record, in one transaction; a record that cannot be stored is set aside as a whole."""
    tally.refuse(record.set_aside)
    if not record.patient.resource_id:
        importing.keep_set_aside(source, record.set_aside, now=now)
        return None
    try:
        done = importing.import_record(record, source=source, by=by, now=now)
    except (ClinicError, DataError, IntegrityError) as error:
        reason = f"the whole record was not stored: {_why_not(error)}"
        whole = ehr.SetAside(source.slug, "Patient", record.patient.resource_id, reason[:500])
        importing.keep_set_aside(source, [whole], now=now)
        tally.refuse([whole])
        return None
    _follow(record, done, source=source, by=by, now=now, tally=tally)
    if done.changed:
        receiving.link_patient(done.patient, now=now, by=by)
    return done


def _why_not(error: ClinicError | DataError | IntegrityError) -> str:
    """What to change; what a database says may quote a patient, so only its constraint is named."""
    if isinstance(error, ClinicError):
        return str(error)
    if isinstance(error, DataError):
        return (
            "the database cannot hold one of its values (longer, larger or earlier than FHIR allows): have "
            "the source send it within FHIR's limits"
        )
    named = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None) or "a constraint"
    return (
        f"the database refuses it ({named}), as when the same patient comes twice at once: run again; if it "
        "stays, it is Tessera's fault: report it with the patient's id"
    )


def take_records(
    records: Sequence[ehr.PatientRecord],
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    tally: Tally,
) -> list[importing.Imported | None]:
    """Several patients' records, as `take_record` each: those nobody has met in one transaction."""
    met = importing_new.list_met(source, records)
    fresh: dict[str, ehr.PatientRecord] = {}
    for record in records:
        identity = record.patient.resource_id
        if 0 < len(identity) <= 128 and identity not in met:
            fresh.setdefault(identity, record)
    try:
        imported = importing_new.import_new(list(fresh.values()), source=source, by=by, now=now)
    except (ClinicError, DataError, IntegrityError):
        fresh, imported = {}, []  # one by one, so that only what is at fault is set aside
    done = dict(zip(fresh, imported, strict=True))
    may_link = bool(done) and Study.objects.filter(patient=None, source=source).exists()
    taken: list[importing.Imported | None] = []
    for record in records:
        identity = record.patient.resource_id
        if fresh.get(identity) is not record:
            taken.append(take_record(record, source=source, by=by, now=now, tally=tally))
            continue
        tally.refuse(record.set_aside)
        _follow(record, done[identity], source=source, by=by, now=now, tally=tally)
        if may_link:
            receiving.link_patient(done[identity].patient, now=now, by=by)
        taken.append(done[identity])
    return taken


def _follow(
    record: ehr.PatientRecord,
    done: importing.Imported,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    tally: Tally,
) -> None:
    """Count what an import did, and note the studies the record tells of."""
    tally.patients += 1
    tally.add(done.by_type)
    tally.refuse(done.refused)
    if done.merged:
        receiving.follow_mergers(done.merged, now=now, by=by)
        tally.changed |= {one.pk for one in done.merged}
    if done.changed:
        tally.changed.add(done.patient.pk)
    for found in record.imaging_studies:
        _announce(found, done.patient, source=source, by=by, now=now, tally=tally)


def _announce(
    found: ehr.ImagingStudyRecord,
    patient: Patient,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    tally: Tally,
) -> None:
    """Note that pixels exist somewhere; a Study held for somebody else is set aside."""
    held = Study.objects.filter(study_uid=found.study_uid).exists()
    try:
        receiving.announce(found, source=source, by=by, now=now, patient=patient)
    except Conflict as error:
        refused = ehr.SetAside(source.slug, found.resource_type, found.resource_id, str(error))
        importing.keep_set_aside(source, [refused], now=now)
        tally.refuse([refused])
        return
    tally.add({found.resource_type: {importing_facts.UNCHANGED if held else importing_facts.NEW: 1}})
