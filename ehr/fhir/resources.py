"""FHIR R4 resources → PatientRecords: which reader reads which type, and whose record it goes into.

One bad resource becomes a SetAside with its reason; the rest goes on. Types that Tessera does not use (Claim,
Practitioner …) are counted as ignored (`ReadingTally`), not set aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from ehr.errors import BadResource
from ehr.fhir.dates import get_last_updated
from ehr.fhir.elements import Json, get_list, get_object, get_text
from ehr.fhir.encounters import read_encounter
from ehr.fhir.history import (
    read_allergy,
    read_condition,
    read_family_history,
    read_medication,
    read_procedure,
)
from ehr.fhir.imaging import read_imaging_study
from ehr.fhir.notes import read_document, read_report
from ehr.fhir.observations import read_observation
from ehr.fhir.people import read_patient
from ehr.fhir.scope import Scope, identify, patient_of
from ehr.fhir.subject import About, Retraction, Unused, Waiting
from ehr.records import (
    AllergyRecord,
    ConditionRecord,
    EncounterRecord,
    Fact,
    FamilyHistoryRecord,
    GenomicRecord,
    ImagingStudyRecord,
    MedicationRecord,
    NoteRecord,
    ObservationRecord,
    PatientIdentity,
    PatientRecord,
    ProcedureRecord,
    SetAside,
)

READERS: dict[str, Callable[[About], list[Fact]]] = {
    "AllergyIntolerance": read_allergy,
    "Condition": read_condition,
    "DiagnosticReport": read_report,
    "DocumentReference": read_document,
    "Encounter": read_encounter,
    "FamilyMemberHistory": read_family_history,
    "ImagingStudy": read_imaging_study,
    "MedicationAdministration": read_medication,
    "MedicationRequest": read_medication,
    "MedicationStatement": read_medication,
    "Observation": read_observation,
    "Procedure": read_procedure,
}
# Read only because other resources point to them.
SUPPORTING = frozenset({"Medication", "Location", "Binary", "Endpoint"})
MAX_BUNDLE_DEPTH = 4
_NEVER = datetime.min.replace(tzinfo=UTC)
_R = TypeVar("_R", bound=Fact)


@dataclass(slots=True)
class ReadingTally:
    """What became of each resource that was read, by resource type.

    read       became part of a record
    retracted  entered-in-error, refuted, cancelled, not done
    set_aside  not taken, with a reason in the record
    ignored    sound, but nothing Tessera reads: by type, or "type (why)"
    repeated   the same id once more; the one last updated counts
    """

    read: Counter[str] = field(default_factory=Counter)
    retracted: Counter[str] = field(default_factory=Counter)
    set_aside: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Resources and files seen."""
        return sum(
            sum(counter.values()) for counter in (self.read, self.retracted, self.set_aside, self.ignored)
        )


@dataclass(slots=True)
class _Draft:
    """The record of one patient while it is being gathered."""

    identity: PatientIdentity
    changed_at: datetime = _NEVER
    facts: dict[tuple[str, str], tuple[datetime, list[Fact] | None]] = field(default_factory=dict)
    set_aside: list[SetAside] = field(default_factory=list)


class Gathering:
    """Gathers resources by patient until they are taken out as records.

    unread  `id()` of resources that others may point to, but that are not to be read themselves
    """

    def __init__(self, tally: ReadingTally | None = None, *, unread: Container[int] = ()) -> None:
        self.tally = tally if tally is not None else ReadingTally()
        self.size = 0
        self._unread = unread
        self._drafts: dict[str, _Draft] = {}
        self._waiting: list[tuple[str, str, Json, Scope, str]] = []

    def add(self, where: str, resource: Json, scope: Scope, full_url: str = "", *, depth: int = 0) -> None:
        """Take one resource, or all of a Bundle. Never raises on account of what it holds."""
        if id(resource) in self._unread:
            return
        self.size += 1
        kind = resource.get("resourceType")
        if not isinstance(kind, str) or not kind.isalpha() or len(kind) > 60:
            self.put_aside(where, "", "", "not a FHIR resource: resourceType is missing")
        elif kind == "Bundle":
            self._add_bundle(where, resource, scope, depth)
        elif kind in READERS or kind == "Patient":
            self._read(where, kind, resource, scope, full_url)
        else:
            self.tally.ignored[kind] += 1

    def put_aside(self, where: str, kind: str, identity: str, reason: str, patient: str = "") -> None:
        """Keep a reason; under the empty patient when it is nobody's."""
        self.tally.set_aside[kind or "(not FHIR)"] += 1
        self._draft(patient).set_aside.append(SetAside(where[:500], kind[:60], identity[:200], reason[:500]))

    def take(self) -> list[PatientRecord]:
        """The records gathered so far, in the order in which their patients were met; it is empty after."""
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            self._read(*item, last_chance=True)
        records = [_build(draft) for draft in self._drafts.values()]
        self._drafts, self.size = {}, 0
        return records

    def _draft(self, patient: str) -> _Draft:
        draft = self._drafts.get(patient)
        if draft is None:
            draft = self._drafts[patient] = _Draft(PatientIdentity(resource_id=patient, is_stub=True))
        return draft

    def _add_bundle(self, where: str, bundle: Json, outer: Scope, depth: int) -> None:
        if depth >= MAX_BUNDLE_DEPTH:
            self.put_aside(where, "Bundle", "", f"Bundles nested deeper than {MAX_BUNDLE_DEPTH}")
            return
        try:
            entries = get_list(bundle, "entry", "Bundle")
        except BadResource as error:
            self.put_aside(where, "Bundle", "", str(error))
            return
        scope, inside = Scope(outer=outer), []
        for index, entry in enumerate(entries):
            place = f"{where}#entry[{index}]"
            try:
                resource = get_object(entry, "resource", "Bundle.entry")
                full_url = get_text(entry, "fullUrl", "Bundle.entry")
                if resource is None:
                    self.tally.ignored["Bundle.entry (no resource)"] += 1
                    continue
                scope.remember(resource, full_url)
            except BadResource as error:
                self.put_aside(place, "Bundle", "", str(error))
                continue
            inside.append((place, resource, full_url))
        for place, resource, full_url in inside:
            self.add(place, resource, scope, full_url, depth=depth + 1)

    def _read(
        self, where: str, kind: str, resource: Json, scope: Scope, full_url: str, *, last_chance: bool = False
    ) -> None:
        identity = patient = ""
        try:
            identity = identify(resource, full_url)
            changed_at = _last_updated(resource, kind)
            if kind == "Patient":
                self._keep_identity(read_patient(resource, identity, scope), changed_at)
                self.tally.read[kind] += 1
                return
            patient = patient_of(resource, scope)
            about = About(kind, identity, where, resource, scope, last_chance)
            try:
                facts: list[Fact] | None = READERS[kind](about)
            except Retraction:
                facts = None
        except Waiting:
            self._waiting.append((where, kind, resource, scope, full_url))
            return
        except Unused as unused:
            self.tally.ignored[str(unused)] += 1
            return
        except BadResource as error:
            self.put_aside(where, kind, identity, str(error), patient)
            return
        except RecursionError:
            self.put_aside(where, kind, identity, "nested too deeply", patient)
            return
        for item in about.set_aside:
            self.put_aside(item.where, item.kind, item.identity, item.reason, patient)
        self._keep_facts(patient, kind, identity, changed_at, facts)

    def _keep_identity(self, identity: PatientIdentity, changed_at: datetime) -> None:
        draft = self._draft(identity.resource_id)
        if not draft.identity.is_stub:
            self.tally.repeated["Patient"] += 1
        if draft.identity.is_stub or changed_at >= draft.changed_at:
            draft.identity, draft.changed_at = identity, changed_at

    def _keep_facts(
        self, patient: str, kind: str, identity: str, changed_at: datetime, facts: list[Fact] | None
    ) -> None:
        """Keep what a resource said; of two versions the one last updated, of two alike the later read."""
        if facts is None:
            self.tally.retracted[kind] += 1
        elif facts:
            self.tally.read[kind] += 1
        else:
            return  # every part of it was set aside
        known = self._draft(patient).facts
        earlier = known.get((kind, identity))
        if earlier is not None:
            self.tally.repeated[kind] += 1
            if changed_at < earlier[0]:
                return
        known[kind, identity] = (changed_at, facts)


def _last_updated(resource: Json, kind: str) -> datetime:
    span = get_last_updated(resource, kind)
    return span.end if span else _NEVER


def _build(draft: _Draft) -> PatientRecord:
    facts = [fact for _, kept in draft.facts.values() for fact in kept or ()]

    def of(kind: type[_R]) -> tuple[_R, ...]:
        return tuple(fact for fact in facts if isinstance(fact, kind))

    return PatientRecord(
        patient=draft.identity,
        encounters=of(EncounterRecord),
        observations=of(ObservationRecord),
        conditions=of(ConditionRecord),
        medications=of(MedicationRecord),
        procedures=of(ProcedureRecord),
        allergies=of(AllergyRecord),
        notes=of(NoteRecord),
        family_history=of(FamilyHistoryRecord),
        genomics=of(GenomicRecord),
        imaging_studies=of(ImagingStudyRecord),
        retracted=tuple(key for key, (_, kept) in draft.facts.items() if kept is None),
        set_aside=tuple(draft.set_aside),
    )


def walk(resource: Json, depth: int = 0) -> Iterator[Json]:
    """The resources inside a Bundle, Bundles within it included; the resource itself when it is none."""
    if resource.get("resourceType") != "Bundle" or depth >= MAX_BUNDLE_DEPTH:
        yield resource
        return
    for entry in get_list(resource, "entry", "Bundle"):
        inner = get_object(entry, "resource", "Bundle.entry")
        if inner is not None:
            yield from walk(inner, depth + 1)
