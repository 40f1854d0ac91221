"""Reads for the panel: the record as it could be known at a moment, newest first, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import TypeVar

from django.db.models import QuerySet

import ehr
from cds.errors import NotFound
from cds.patients import access
from cds.patients.models import (
    Allergy,
    Condition,
    Encounter,
    Fact,
    FamilyHistory,
    GenomicFinding,
    Medication,
    Note,
    Observation,
    Patient,
    Procedure,
)

FactT = TypeVar("FactT", bound=Fact)


@dataclass(frozen=True, slots=True)
class Point:
    """One earlier value of an observation, in its canonical unit."""

    at: datetime
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationView:
    """The latest result of one kind, with its history oldest first."""

    code: str  # system|code
    display: str
    value: float | None
    unit: str
    value_text: str  # of a coded or textual result
    absent_reason: str
    low: float | None
    high: float | None
    at: datetime | None
    category: str
    history: tuple[Point, ...] = ()

    @property
    def is_abnormal(self) -> bool | None:
        """Outside its reference range; None when there is no value or no range."""
        if self.value is None or (self.low is None and self.high is None):
            return None
        return (self.low is not None and self.value < self.low) or (
            self.high is not None and self.value > self.high
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FactView:
    """A condition, medication, procedure, allergy, relative's illness or genomic finding."""

    resource_type: str
    resource_id: str
    code: str
    display: str
    status: str
    start: datetime | None
    end: datetime | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteView:
    """A note; its text is shown only to those who may see the patient."""

    resource_id: str
    title: str
    kind: str
    author: str
    text: str
    text_digest: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StayView:
    """An Encounter."""

    resource_id: str
    status: str
    kind: str
    location: str
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordView:
    """What could be known of a patient at `as_of`."""

    as_of: datetime
    age_years: float | None
    sex: str
    stays: tuple[StayView, ...]
    observations: tuple[ObservationView, ...]
    conditions: tuple[FactView, ...]
    medications: tuple[FactView, ...]
    procedures: tuple[FactView, ...]
    allergies: tuple[FactView, ...]
    family_history: tuple[FactView, ...]
    genomics: tuple[FactView, ...]
    notes: tuple[NoteView, ...]
    undated: int  # facts that are kept but can never be used: nobody said from when they were known


def get_record(viewer: access.Viewer, patient: Patient, *, as_of: datetime, history: int = 50) -> RecordView:
    """The record as of a moment. The look itself is audited by `access.get_patient`.

    history  how many earlier values of each observation to give at most
    raises   NotFound when the viewer may not see this patient
    """
    if not access.visible_patients(viewer).filter(pk=patient.pk).exists():
        raise NotFound("no such patient, or not one of your units")
    models: tuple[type[Fact], ...] = (Observation, Condition, Medication, Procedure, Note)
    return RecordView(
        as_of=as_of,
        age_years=age_years(patient.birth_date, as_of),
        sex=patient.sex,
        stays=tuple(_stay(one, as_of) for one in _known(Encounter, patient, as_of).order_by("-start")),
        observations=list_observations(patient, as_of=as_of, history=history),
        conditions=tuple(_condition(one, as_of) for one in _known(Condition, patient, as_of)),
        medications=tuple(_medication(one, as_of) for one in _known(Medication, patient, as_of)),
        procedures=tuple(_procedure(one) for one in _known(Procedure, patient, as_of)),
        allergies=tuple(_allergy(one, as_of) for one in _known(Allergy, patient, as_of)),
        family_history=tuple(_relative(one) for one in _known(FamilyHistory, patient, as_of)),
        genomics=tuple(_genomic(one) for one in _known(GenomicFinding, patient, as_of)),
        notes=tuple(_note(one) for one in _known(Note, patient, as_of)),
        undated=sum(
            model._default_manager.filter(patient=patient, available_at=None).count() for model in models
        ),
    )


def find_stay(viewer: access.Viewer, patient: Patient, encounter: str, *, as_of: datetime) -> StayView | None:
    """The Encounter of that id of this patient, as it is known; None where it is not."""
    visible = access.visible_patients(viewer).filter(pk=patient.pk)
    row = Encounter.objects.filter(patient__in=visible, resource_id=encounter).first() if encounter else None
    return _stay(row, as_of) if row is not None else None


def list_observations(patient: Patient, *, as_of: datetime, history: int = 50) -> tuple[ObservationView, ...]:
    """The latest result of each code known at `as_of`, newest first; numeric history oldest first."""
    rows: dict[tuple[str, str], list[Observation]] = {}
    known = _known(Observation, patient, as_of).order_by("-effective_at", "-available_at", "resource_id")
    for row in known:
        kept = rows.setdefault((row.code_system, row.code), [])
        if len(kept) < history:
            kept.append(row)
    return tuple(_observation(newest_first) for newest_first in rows.values())


def age_years(birth_date: date | None, as_of: datetime) -> float | None:
    """Age in years at a moment; None when the birth date is unknown or later."""
    if birth_date is None or birth_date > as_of.date():
        return None
    return (as_of.date() - birth_date).days / 365.25


def _known(model: type[FactT], patient: Patient, as_of: datetime) -> QuerySet[FactT]:
    """Nothing later than `as_of`, nothing undated; newest first."""
    known = model._default_manager.filter(patient=patient, available_at__lte=as_of)
    return known.order_by("-available_at", "resource_id")


def _observation(newest_first: list[Observation]) -> ObservationView:
    newest = newest_first[0]
    points = tuple(
        Point(row.effective_at or row.available_at, row.value)  # type: ignore[arg-type]
        for row in reversed(newest_first)
        if row.value is not None and row.unit == newest.unit
    )
    return ObservationView(
        code=f"{newest.code_system}|{newest.code}",
        display=newest.display or newest.code,
        value=newest.value,
        unit=newest.unit,
        value_text=newest.value_text or newest.value_code,
        absent_reason=newest.absent_reason,
        low=newest.low,
        high=newest.high,
        at=newest.effective_at or newest.available_at,
        category=newest.category,
        history=points,
    )


def _stay(row: Encounter, as_of: datetime) -> StayView:
    ended_later = row.end is not None and row.end > as_of
    return StayView(
        resource_id=row.resource_id,
        status="in-progress" if ended_later else row.status,
        kind=row.kind,
        location=row.location if row.located_at is None or row.located_at <= as_of else "",
        start=row.start,
        end=None if ended_later else row.end,
    )


def _note(row: Note) -> NoteView:
    return NoteView(
        resource_id=row.resource_id,
        title=row.title or "Note",
        kind=row.kind,
        author=row.author,
        text=row.text,
        text_digest=row.text_digest,
        at=row.available_at,
    )


def _condition(row: Condition, as_of: datetime) -> FactView:
    status, end = _as_it_was(row.clinical_status, row.abated_at, row.over_at, as_of)
    return _coded(row, status, row.onset_at or row.available_at, end)


def _medication(row: Medication, as_of: datetime) -> FactView:
    status, end = _as_it_was(row.status, row.end, row.over_at, as_of)
    return _coded(row, status, row.start or row.available_at, end)


def _as_it_was(
    status: str, end: datetime | None, over_at: datetime | None, as_of: datetime
) -> tuple[str, datetime | None]:
    """Status and end as they stood at `as_of`; "unknown" when only today's status is held."""
    if not ehr.is_over(status):
        return status, end if end is None or end <= as_of else None
    if end is not None:
        return (status, end) if end <= as_of else ("active", None)
    return (status if over_at is not None and over_at <= as_of else "unknown"), None


def _procedure(row: Procedure) -> FactView:
    return _coded(row, row.status, row.performed_at or row.available_at)


def _allergy(row: Allergy, as_of: datetime) -> FactView:
    status, _ = _as_it_was(row.clinical_status, None, row.over_at, as_of)
    criticality = f"criticality {row.criticality}" if row.criticality else ""
    detail = ", ".join(filter(None, (row.verification_status, criticality)))
    return _coded(row, status, row.available_at, detail=detail)


def _relative(row: FamilyHistory) -> FactView:
    onset = f"onset at {row.onset_age:g} years" if row.onset_age is not None else ""
    return _coded(row, row.relationship, row.available_at, detail=onset)


def _genomic(row: GenomicFinding) -> FactView:
    presence = {True: "present", False: "absent", None: ""}[row.present]
    value = f"{row.value:g}" if row.value is not None else ""
    return FactView(
        resource_type=row.resource_type,
        resource_id=row.resource_id,
        code=f"{row.code_system}|{row.code}",
        display=" ".join(filter(None, (row.gene, row.variant))) or row.code,
        status=row.significance or presence,
        start=row.available_at,
        detail=value,
    )


def _coded(
    row: Condition | Medication | Procedure | Allergy | FamilyHistory,
    status: str,
    start: datetime | None,
    end: datetime | None = None,
    *,
    detail: str = "",
) -> FactView:
    return FactView(
        resource_type=row.resource_type,
        resource_id=row.resource_id,
        code=f"{row.code_system}|{row.code}",
        display=row.display or row.code,
        status=status,
        start=start,
        end=end,
        detail=detail,
    )
