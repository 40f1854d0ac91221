"""Plain functions that make what tests need: people of each role, a source, records and patients.

user = make_user("clinician", units=("Ward 3",))
patient = make_patient(observations=[observation("8480-6", 120, "mm[Hg]", at=NOW)])
"""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.contrib.auth.models import User

import ehr
from cds.audit import recording
from cds.patients import access, importing
from cds.patients.models import Patient, Source

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TESTS = recording.system("tests")
PASSWORD = "correct horse battery staple"
_number = itertools.count(1)


def make_user(*roles: str | access.Role, name: str = "", units: tuple[str, ...] = ()) -> User:
    """A signed-up person of these roles, member of these units."""
    user = User.objects.create_user(name or f"user{next(_number)}", password=PASSWORD)
    for role in roles:
        access.give_role(user, access.Role(role))
    for unit in units:
        access.join_unit(user, unit)
    return user


def make_source(slug: str = "ward", **changes: Any) -> Source:
    """A source of patients; the same slug gives the same source."""
    return importing.get_source(slug, now=NOW, **changes)


def identity(resource_id: str = "p1", **changes: Any) -> ehr.PatientIdentity:
    """Somebody with a name, a birth date and a record number."""
    known: dict[str, Any] = {
        "resource_id": resource_id,
        "identifiers": (ehr.Identifier("urn:mrn", f"MRN-{resource_id}"),),
        "family": "Testperson",
        "given": resource_id,
        "birth_date": date(1950, 6, 1),
        "sex": ehr.Sex.FEMALE,
    }
    return ehr.PatientIdentity(**{**known, **changes})


def observation(
    loinc: str,
    value: float | None,
    unit: str = "",
    *,
    at: datetime | None = NOW,
    resource_id: str = "",
    **changes: Any,
) -> ehr.ObservationRecord:
    """A LOINC-coded result known since `at`."""
    known: dict[str, Any] = {
        "resource_type": "Observation",
        "resource_id": resource_id or f"o{next(_number)}",
        "available_at": at,
        "effective_at": at,
        "code": ehr.Loinc(loinc, loinc),
        "value": value,
        "unit": unit,
    }
    return ehr.ObservationRecord(**{**known, **changes})


def condition(
    code: str, *, at: datetime | None = NOW, resource_id: str = "", **changes: Any
) -> ehr.ConditionRecord:
    """A SNOMED CT-coded, active, confirmed condition known since `at`."""
    known: dict[str, Any] = {
        "resource_type": "Condition",
        "resource_id": resource_id or f"c{next(_number)}",
        "available_at": at,
        "code": ehr.Snomed(code, code),
        "clinical_status": "active",
        "verification_status": "confirmed",
        "onset_at": at,
    }
    return ehr.ConditionRecord(**{**known, **changes})


def note(text: str, *, at: datetime | None = NOW, resource_id: str = "", **changes: Any) -> ehr.NoteRecord:
    """A progress note known since `at`."""
    known: dict[str, Any] = {
        "resource_type": "DocumentReference",
        "resource_id": resource_id or f"n{next(_number)}",
        "available_at": at,
        "kind": ehr.Loinc("11506-3", "Progress note"),
        "title": "Progress note",
        "text": text,
    }
    return ehr.NoteRecord(**{**known, **changes})


def encounter(
    start: datetime | None,
    end: datetime | None = None,
    *,
    kind: ehr.EncounterKind = ehr.EncounterKind.INPATIENT,
    resource_id: str = "",
    **changes: Any,
) -> ehr.EncounterRecord:
    """A hospital stay from `start`, still going on without `end`."""
    known: dict[str, Any] = {
        "resource_type": "Encounter",
        "resource_id": resource_id or f"e{next(_number)}",
        "available_at": start,
        "status": "finished" if end else "in-progress",
        "kind": kind,
        "start": start,
        "end": end,
    }
    return ehr.EncounterRecord(**{**known, **changes})


def make_record(resource_id: str = "p1", **facts: Any) -> ehr.PatientRecord:
    """A record; `facts` are the fields of PatientRecord, lists welcome."""
    patient = facts.pop("patient", None) or identity(resource_id)
    return ehr.PatientRecord(patient=patient, **{name: tuple(value) for name, value in facts.items()})


def make_patient(
    resource_id: str = "", *, source: Source | None = None, unit: str = "", now: datetime = NOW, **facts: Any
) -> Patient:
    """A patient as the import makes one; with `unit`, an open stay there that began a day ago."""
    if unit:
        stay = encounter(now - timedelta(days=1), location=unit)
        facts["encounters"] = [stay, *facts.get("encounters", ())]
    record = make_record(resource_id or f"p{next(_number)}", **facts)
    return importing.import_record(record, source=source or make_source(), by=TESTS, now=now).patient
