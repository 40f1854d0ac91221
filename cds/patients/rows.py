"""From what `ehr` read to the columns we keep: one table per kind of fact, nothing lost, nothing invented.

A digest over the columns tells whether a fact has changed since it was last imported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import orjson
from django.db import models

import ehr
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
    Procedure,
)

Key = tuple[str, str, str]  # resource type, resource id, part
Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One fact as it will be kept."""

    key: Key
    columns: Columns
    digest: str


@dataclass(frozen=True, slots=True)
class FactKind:
    """Where a kind of fact stands in a PatientRecord, and where its rows go."""

    attribute: str
    model: type[Fact]
    columns: Callable[[Any], Columns]


def text_digest(text: str) -> str:
    """SHA-256 hex of a note's text: the key of its embeddings."""
    return hashlib.sha256(text.encode()).hexdigest()


def _coding(code: ehr.Code | None) -> Columns:
    return {"code_system": code.uri, "code": code.code, "display": code.display} if code else {"code": ""}


def _coded(fact: Any) -> Columns:
    return {**_coding(fact.code), "also": sorted(code.key for code in getattr(fact, "also", ()))}


def _token(code: ehr.Code | None) -> str:
    return code.key if code else ""


def _encounter(fact: ehr.EncounterRecord) -> Columns:
    return {
        "status": fact.status,
        "kind": fact.kind.value,
        "start": fact.start,
        "end": fact.end,
        "part_of": fact.part_of,
        "location": fact.location,
        "located_at": fact.located_at,
    }


def _observation(fact: ehr.ObservationRecord) -> Columns:
    return {
        **_coded(fact),
        "category": fact.category,
        "status": fact.status,
        "value": fact.value,
        "unit": fact.unit,
        "value_code": _token(fact.value_code),
        "value_text": fact.value_text,
        "absent_reason": fact.absent_reason,
        "low": fact.low,
        "high": fact.high,
        "effective_at": fact.effective_at,
    }


def _condition(fact: ehr.ConditionRecord) -> Columns:
    return {
        **_coded(fact),
        "clinical_status": fact.clinical_status,
        "verification_status": fact.verification_status,
        "onset_at": fact.onset_at,
        "abated_at": fact.abated_at,
        "over_at": fact.over_at,
    }


def _medication(fact: ehr.MedicationRecord) -> Columns:
    return {
        **_coded(fact),
        "status": fact.status,
        "start": fact.start,
        "end": fact.end,
        "over_at": fact.over_at,
    }


def _procedure(fact: ehr.ProcedureRecord) -> Columns:
    return {**_coded(fact), "status": fact.status, "performed_at": fact.performed_at}


def _allergy(fact: ehr.AllergyRecord) -> Columns:
    return {
        **_coded(fact),
        "criticality": fact.criticality,
        "clinical_status": fact.clinical_status,
        "verification_status": fact.verification_status,
        "over_at": fact.over_at,
    }


def _note(fact: ehr.NoteRecord) -> Columns:
    text = fact.text.replace("\x00", "")
    return {
        "kind": _token(fact.kind),
        "title": fact.title,
        "text": text,
        "text_digest": text_digest(text),
        "author": fact.author,
    }


def _family_history(fact: ehr.FamilyHistoryRecord) -> Columns:
    return {
        "relationship": _token(fact.relationship),
        **_coding(fact.condition),
        "onset_age": fact.onset_age,
    }


def _genomic(fact: ehr.GenomicRecord) -> Columns:
    code = _coding(fact.code)
    code.pop("display", None)
    return {
        "kind": fact.kind,
        "gene": fact.gene,
        "variant": fact.variant,
        "significance": fact.significance,
        "present": fact.present,
        "value": fact.value,
        **code,
    }


KINDS: tuple[FactKind, ...] = (
    FactKind("encounters", Encounter, _encounter),
    FactKind("observations", Observation, _observation),
    FactKind("conditions", Condition, _condition),
    FactKind("medications", Medication, _medication),
    FactKind("procedures", Procedure, _procedure),
    FactKind("allergies", Allergy, _allergy),
    FactKind("notes", Note, _note),
    FactKind("family_history", FamilyHistory, _family_history),
    FactKind("genomics", GenomicFinding, _genomic),
)

# Cut to fit, these stay readable; cut elsewhere, a code or an id would become another one.
_MAY_BE_CUT = frozenset({"display", "title", "author", "value_text", "location"})


def build_rows(record: ehr.PatientRecord, kind: FactKind) -> tuple[dict[Key, Row], list[ehr.SetAside]]:
    """The facts of one kind by key (the last one wins), and those that cannot be kept, with the reason."""
    rows: dict[Key, Row] = {}
    refused: list[ehr.SetAside] = []
    for fact in getattr(record, kind.attribute):
        columns = {**kind.columns(fact), "available_at": fact.available_at}
        reason = _fit(columns, fact, kind.model)
        if reason:
            refused.append(ehr.SetAside("record", fact.resource_type, fact.resource_id[:128], reason))
            continue
        key = (fact.resource_type, fact.resource_id, fact.part)
        rows[key] = Row(key, columns, _digest(columns))
    return rows, refused


def date_endings(rows: Iterable[Row], now: datetime) -> None:
    """What is over without a date, at a source that dates nothing: known to be so since now."""
    for row in rows:
        columns = row.columns
        if "over_at" not in columns or columns["over_at"] is not None:
            continue
        status, end = ("status", "end") if "status" in columns else ("clinical_status", "abated_at")
        if ehr.is_over(columns[status]) and columns.get(end) is None:
            columns["over_at"] = now


def record_digest(record: ehr.PatientRecord, facts: Iterable[dict[Key, Row]], identity_digest: str) -> str:
    """SHA-256 hex of everything in a record that is kept; the order of its facts does not matter."""
    parts = [identity_digest, *(f"{kind}|{number}" for kind, number in sorted(record.retracted))]
    parts.extend(sorted(f"{one.kind}|{one.identity}|{one.reason}" for one in record.set_aside))
    for rows in facts:
        parts.append("/")
        parts.extend(sorted("|".join(key) + row.digest for key, row in rows.items()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def identity_columns(identity: ehr.PatientIdentity) -> Columns:
    """The columns of a Patient that come from its resource."""
    return {
        "family": _clean(identity.family)[:200],
        "given": _clean(identity.given)[:200],
        "birth_date": identity.birth_date,
        "sex": identity.sex.value,
        "deceased": identity.deceased or identity.deceased_at is not None,
        "deceased_at": identity.deceased_at,
        "replaced_by": _clean(identity.replaced_by)[:128],
        "replaces": sorted(_clean(one)[:128] for one in identity.replaces),
    }


def identifiers_of(identity: ehr.PatientIdentity) -> set[tuple[str, str]]:
    """(system, value) of every identifier that can be kept whole."""
    return {
        (_clean(one.system), _clean(one.value))
        for one in identity.identifiers
        if one.value and len(one.value) <= 128 and len(one.system) <= 300
    }


def identity_digest(identity: ehr.PatientIdentity) -> str:
    """SHA-256 hex of the Patient resource as we keep it."""
    return _digest({**identity_columns(identity), "identifiers": sorted(identifiers_of(identity))})


def _fit(columns: Columns, fact: ehr.Fact, model: type[models.Model]) -> str:
    """Make the columns fit the table in place; the reason when that would change their meaning, else ""."""
    if len(fact.resource_id) > 128 or len(fact.part) > 80 or len(fact.resource_type) > 40:
        return "its id is longer than the 128 characters we can keep"
    for name, limit in _limits(model):
        value = columns.get(name)
        if not value or not isinstance(value, str):
            continue
        if "\0" in value:
            value = _clean(value)
        if len(value) > limit:
            if name not in _MAY_BE_CUT:
                return f"{name} is longer than {limit} characters"
            value = value[:limit]
        columns[name] = value
    for name in ("value", "low", "high", "onset_age"):
        number = columns.get(name)
        if number is not None and not math.isfinite(number):
            return f"{name} is not a finite number"
    return ""


_OF_THE_KEY = frozenset({"resource_type", "resource_id", "part", "digest"})


@cache
def _limits(model: type[models.Model]) -> tuple[tuple[str, int], ...]:
    """(name, longest text) of the columns that `_fit` looks at: the key has its own limits."""
    return tuple(
        (field.name, field.max_length)
        for field in model._meta.concrete_fields
        if isinstance(field, models.CharField) and field.max_length and field.name not in _OF_THE_KEY
    )


def _clean(text: str) -> str:
    return text.replace("\x00", "")


def _digest(columns: Columns) -> str:
    return hashlib.sha256(orjson.dumps(columns, option=orjson.OPT_SORT_KEYS)).hexdigest()
