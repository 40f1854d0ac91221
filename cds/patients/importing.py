"""The one way in for what FHIR told us: command, hook prefetch, poll and demo all come here.

Importing the same record again changes nothing. A resource that changed replaces what we held of it, one that
was retracted (entered-in-error) is removed, and either raises the patient's `revision` once, so that whoever
scores knows there is something new. What cannot be kept is set aside with its reason, never silently lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django.db.models import F

import ehr
from cds.audit import recording
from cds.errors import Conflict, Invalid
from cds.jobs import Job, outbox
from cds.patients import code_map, importing_facts, merging, remembering, rows
from cds.patients.importing_facts import (
    CHANGED,
    NEW,
    REMOVED,
    SET_ASIDE,
    UNCHANGED,
    ResourceStates,
    import_facts,
    remove_retracted,
    resources_of,
)
from cds.patients.models import (
    Encounter,
    Note,
    Patient,
    PatientIdentifier,
    SetAside,
    Source,
    Unit,
)

AT_ONCE = 500  # ids asked for in one query
SLUG = re.compile(r"[A-Za-z0-9_-]{1,80}")
IN_HOSPITAL = (ehr.EncounterKind.INPATIENT.value, ehr.EncounterKind.INTENSIVE_CARE.value)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did; `patient` is the surviving one where the record's was merged into another.

    counts   resources new, changed, unchanged, removed, set_aside
    by_type  the same per resource type
    note_digests  `Note.text_digest` of the notes whose text is new here: to be embedded
    merged   patients that were merged or parted by this: their studies are to follow
    refused  facts that cannot be kept as they are, beside those the reader had set aside
    """

    patient: Patient
    created: bool
    changed: bool
    counts: dict[str, int] = field(default_factory=dict)
    by_type: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    note_digests: tuple[str, ...] = ()
    refused: tuple[ehr.SetAside, ...] = ()
    merged: tuple[Patient, ...] = ()


class ChangedMeanwhile(Conflict):
    """Somebody has changed the patient since it was decided what of a record need not be read."""


def check_slug(slug: str) -> str:
    """The name of a source in commands and addresses. Raises Invalid."""
    if not SLUG.fullmatch(slug):
        raise Invalid(f"a source is named by a slug: 1 to 80 letters, digits, - and _, not {slug[:100]!r}")
    return slug


def get_source(
    slug: str, *, title: str = "", base_url: str = "", simulated: bool = False, now: datetime
) -> Source:
    """The source of that slug, made on first use. Simulated once, simulated for ever."""
    source, _ = Source.objects.get_or_create(
        slug=slug,
        defaults={
            "title": title or slug,
            "base_url": base_url,
            "simulated": simulated,
            "created_at": now,
        },
    )
    return source


def import_record(
    record: ehr.PatientRecord,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    may_recur: bool = True,
    only_at: int | None = None,
) -> Imported:
    """Take one patient's record, whole or in part; facts it does not mention stay as they are.

    Local codes are mapped by the site's table. An unchanged record costs one look-up; otherwise one query per
    kind of fact, and one bulk write each.
    may_recur  whether this very record may come again, so that it is worth knowing it then
    only_at  import it only where the patient, once locked, is still at this revision: for a record from which
             was left out what the patient was known to say then
    raises  Invalid when the record names no patient; Unavailable when CODE_MAP cannot be used
            ChangedMeanwhile when the patient has left `only_at`; nothing is imported then
    """
    record = code_map.site_map().apply(record)
    identity = record.patient
    if not identity.resource_id or len(identity.resource_id) > 128:
        raise Invalid(
            "a record without a patient id (or with one longer than 128 characters) cannot be imported"
        )
    built = [rows.build_rows(record, kind) for kind in rows.KINDS]
    facts = [kept for kept, _ in built]
    refused = tuple(one for _, items in built for one in items)
    identity_digest = "" if identity.is_stub else rows.identity_digest(identity)
    digest = rows.record_digest(record, facts, identity_digest)

    known = remembering.find_unchanged(source, identity.resource_id, digest) if may_recur else None
    if known is None:
        digest = digest if may_recur else ""
        return _write_record(
            record, facts, refused, identity_digest, digest, source=source, by=by, now=now, only_at=only_at
        )
    tally = ResourceStates()
    for resource_type, resource_id in resources_of(facts, identity):
        tally.add(resource_type, resource_id, UNCHANGED)
    return Imported(merging.survivor(known), False, False, *tally.counts(), refused=refused)


@transaction.atomic
def _write_record(
    record: ehr.PatientRecord,
    facts: Sequence[dict[rows.Key, rows.Row]],
    refused: tuple[ehr.SetAside, ...],
    identity_digest: str,
    digest: str,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    only_at: int | None,
) -> Imported:
    """The transaction of `import_record`: `facts` as built from `record`, one mapping per kind; `digest` by
    which it is known again, if it is to be."""
    identity, tally = record.patient, ResourceStates()
    patient, created = _locked_patient(source, identity.resource_id, now)
    if only_at is not None and patient.revision != only_at:
        raise ChangedMeanwhile(f"the record is at revision {patient.revision}, no longer at {only_at}")
    columns: set[str] = set()  # of the patient, to be written at the end
    merged: list[Patient] = []
    crossed: tuple[ehr.SetAside, ...] = ()
    if not identity.is_stub:
        state = _import_identity(patient, identity, identity_digest, created, columns)
        tally.add("Patient", identity.resource_id, state)
        if state != UNCHANGED:
            merged, crossed = merging.follow(patient, is_new=created, by=by, now=now)
    home = merging.survivor(patient)  # the patient, unless merged into another
    of_home = columns if home == patient else set[str]()
    new_notes: tuple[str, ...] = ()
    for kind, kept in zip(rows.KINDS, facts, strict=True):
        written = import_facts(home, kind.model, kept, tally, is_new=created and home == patient, now=now)
        if kind.model is Note:
            new_notes = tuple(str(row.columns["text_digest"]) for row in written)
        if kind.model is Encounter and (written or merged or home.unit_id is None):
            _assign_unit(home, source, of_home, written if created and home == patient else None)
    if not created:
        remove_retracted(home, record.retracted, tally)
        merging.note_owner(patient, {key[:2] for kept in facts for key in kept}, home=home)
    aside = [*record.set_aside, *refused, *crossed]
    keep_set_aside(source, aside, now=now)
    for one in aside:
        tally.add(one.kind, one.identity or one.where, SET_ASIDE)

    counts, by_type = tally.counts()
    changed = created or any(counts.get(state) for state in (NEW, CHANGED, REMOVED))
    if changed:
        patient.revision, patient.changed_at = patient.revision + 1, now  # our row is locked
        columns |= {"revision", "changed_at"}
    if columns:
        patient.save(update_fields=columns)
    if home != patient:
        if of_home:
            home.save(update_fields=of_home)
        if changed:
            home.touch(now)
    if changed:
        _record(patient, counts, source=source, by=by, now=now)
    if new_notes:
        outbox.enqueue(Job.ENCODE_NOTES, now=now, patient_id=str(home.pk))
    if digest:
        remembering.remember(patient, digest, is_new=created)
    return Imported(home, created, changed, counts, by_type, new_notes, refused, tuple(merged))


@contextmanager
def durable_at_the_end() -> Iterator[None]:
    """Let PostgreSQL answer a commit before it is on disk, until the end of a run that may be repeated.

    Each record is still stored whole or not at all; what a power cut takes, the run's repetition brings
    again. The run itself must end with a commit outside of this, which brings everything before it to the
    disk.
    """
    if connection.vendor != "postgresql" or connection.in_atomic_block:
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO off")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit TO on")


def remove_resources(
    source: Source, gone: Iterable[tuple[str, str]], *, by: recording.Actor, now: datetime
) -> tuple[set[UUID], dict[str, dict[str, int]]]:
    """Remove facts that the source has deleted; (patients whose record changed, states by type).

    A deleted Patient is kept and set aside: what was predicted for them must stay accountable.
    """
    by_type: dict[str, set[str]] = {}
    for resource_type, resource_id in gone:
        by_type.setdefault(resource_type, set()).add(resource_id)
    held = Patient.objects.filter(source=source, resource_id__in=by_type.pop("Patient", set()))
    aside = [
        ehr.SetAside("deleted", "Patient", one, "deleted at the source; kept here, for scores refer to it")
        for one in held.values_list("resource_id", flat=True)
    ]
    keep_set_aside(source, aside, now=now)
    whose: dict[UUID, set[tuple[str, str]]] = {}
    for resource_type, ids in by_type.items():
        wanted = sorted(ids)
        for start in range(0, len(wanted), AT_ONCE):
            for kind in rows.KINDS:
                found = kind.model._default_manager.filter(
                    patient__source=source,
                    resource_type=resource_type,
                    resource_id__in=wanted[start : start + AT_ONCE],
                )
                for patient_id, resource_id in found.values_list("patient_id", "resource_id").distinct():
                    whose.setdefault(patient_id, set()).add((resource_type, resource_id))
    tally = ResourceStates()
    for patient_id, theirs in whose.items():
        with transaction.atomic():
            patient = Patient.objects.select_for_update(no_key=True).get(pk=patient_id)
            remove_retracted(patient, sorted(theirs), tally)
            touch(patient, now)
            _record(patient, {REMOVED: len(theirs)}, source=source, by=by, now=now)
    return set(whose), tally.counts()[1]


def _record(
    patient: Patient, counts: Mapping[str, int], *, source: Source, by: recording.Actor, now: datetime
) -> None:
    recording.record(
        by=by,
        action="patient.import",
        object_type="Patient",
        object_id=patient.pk,
        patient_id=patient.pk,
        now=now,
        source=source.slug,
        revision=patient.revision,
        counts=counts,
    )


def touch(patient: Patient, now: datetime) -> None:
    """Something a model may read has changed: raise the revision. Inside the caller's transaction."""
    patient.touch(now)


@transaction.atomic
def keep_set_aside(source: Source, items: Iterable[ehr.SetAside], *, now: datetime) -> int:
    """Keep what was not taken and why; seen again, it is counted, not doubled. Returns how many came."""
    wanted = {
        (item.where[-500:], item.kind[:60], item.identity[:200], item.reason[:500]): item for item in items
    }
    if not wanted:
        return 0
    held = SetAside.objects.filter(source=source)
    if len(wanted) <= importing_facts.LOOK_UP_BY_ID:
        held = held.filter(where__in={where for where, *_ in wanted})
    again = {
        key: pk for pk, *parts in held.values_list("pk", "where", "kind", "identity", "reason")
        if (key := tuple(parts)) in wanted
    }  # fmt: skip
    SetAside.objects.filter(pk__in=again.values()).update(times=F("times") + 1, last_at=now)
    SetAside.objects.bulk_create(
        [
            SetAside(
                source=source,
                where=where,
                kind=kind,
                identity=identity,
                reason=reason,
                first_at=now,
                last_at=now,
            )
            for where, kind, identity, reason in wanted
            if (where, kind, identity, reason) not in again
        ],
        ignore_conflicts=True,
    )
    return len(wanted)


def _locked_patient(source: Source, resource_id: str, now: datetime) -> tuple[Patient, bool]:
    """The patient's row, locked: two imports about one patient go one after the other.

    Whoever only refers to the patient does not wait for it (NO KEY): a card is kept under the lock of its
    audit chain, which an import asks for last, so the two would wait for each other.
    """
    patients = Patient.objects.select_for_update(no_key=True)
    patient = patients.filter(source=source, resource_id=resource_id).first()
    if patient is not None:
        return patient, False
    try:
        with transaction.atomic():
            return Patient.objects.create(source=source, resource_id=resource_id, changed_at=now), True
    except IntegrityError:  # another import made it meanwhile
        return patients.get(source=source, resource_id=resource_id), False


def _import_identity(
    patient: Patient, identity: ehr.PatientIdentity, digest: str, created: bool, changed: set[str]
) -> str:
    """Take over the identity; the names of the patient's columns that are to be written go to `changed`."""
    if patient.digest == digest:
        return UNCHANGED
    columns = rows.identity_columns(identity)
    was_stub = patient.digest == ""
    for name, value in columns.items():
        setattr(patient, name, value)
    patient.digest = digest
    changed |= {*columns, "digest"}
    wanted = rows.identifiers_of(identity)
    held = set() if created else set(patient.identifiers.values_list("system", "value"))
    for system, value in held - wanted:
        patient.identifiers.filter(system=system, value=value).delete()
    PatientIdentifier.objects.bulk_create(
        [PatientIdentifier(patient=patient, system=system, value=value) for system, value in wanted - held]
    )
    return NEW if was_stub else CHANGED


def _assign_unit(
    patient: Patient, source: Source, changed: set[str], written: Sequence[rows.Row] | None
) -> None:
    """Where the patient lies: the place of the newest hospital stay, else one unit for the whole source.

    written  every stay there is, when the patient is new; None: look them up
    """
    if written is None:
        held = Encounter.objects.filter(patient=patient, kind__in=IN_HOSPITAL, start__isnull=False)
        newest = held.exclude(location="").order_by("-start", "-resource_id").first()
        name = (newest.location if newest else source.title or source.slug)[:120]
    else:
        name = unit_name(source, written)
    unit, _ = Unit.objects.get_or_create(name=name)
    if patient.unit_id != unit.pk:
        patient.unit = unit
        changed.add("unit")


def unit_name(source: Source, stays: Iterable[rows.Row]) -> str:
    """The unit of a patient with these stays and no others."""
    places = [
        (row.columns["start"], row.key[1], row.columns["location"])
        for row in stays
        if row.columns["kind"] in IN_HOSPITAL and row.columns["start"] and row.columns["location"]
    ]
    return str(max(places)[2] if places else source.title or source.slug)[:120]
