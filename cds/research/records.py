"""A patient's rows back as the `ehr.PatientRecord` they came from, as far as rows hold it."""

from __future__ import annotations

from typing import Any

import ehr
from cds.patients.models import CodedFact, Fact, Note, Patient


def read_record(patient: Patient) -> ehr.PatientRecord:
    """Everything held of one patient, undated facts included; nothing of their studies."""
    return ehr.PatientRecord(
        patient=ehr.PatientIdentity(
            resource_id=patient.resource_id,
            identifiers=tuple(ehr.Identifier(one.system, one.value) for one in patient.identifiers.all()),
            family=patient.family,
            given=patient.given,
            birth_date=patient.birth_date,
            sex=ehr.Sex(patient.sex),
            deceased=patient.deceased,
            deceased_at=patient.deceased_at,
        ),
        encounters=tuple(
            ehr.EncounterRecord(
                **_known(row),
                status=row.status,
                kind=ehr.EncounterKind(row.kind),
                start=row.start,
                end=row.end,
                part_of=row.part_of,
            )
            for row in patient.encounters.order_by("pk")
        ),
        observations=tuple(
            ehr.ObservationRecord(
                **_coded(row),
                status=row.status,
                category=row.category,
                value=row.value,
                unit=row.unit,
                value_code=_token(row.value_code),
                value_text=row.value_text,
                absent_reason=row.absent_reason,
                low=row.low,
                high=row.high,
                effective_at=row.effective_at,
            )
            for row in patient.observations.order_by("pk")
        ),
        conditions=tuple(
            ehr.ConditionRecord(
                **_coded(row),
                clinical_status=row.clinical_status,
                verification_status=row.verification_status,
                onset_at=row.onset_at,
                abated_at=row.abated_at,
            )
            for row in patient.conditions.order_by("pk")
        ),
        medications=tuple(
            ehr.MedicationRecord(**_coded(row), status=row.status, start=row.start, end=row.end)
            for row in patient.medications.order_by("pk")
        ),
        procedures=tuple(
            ehr.ProcedureRecord(**_coded(row), status=row.status, performed_at=row.performed_at)
            for row in patient.procedures.order_by("pk")
        ),
        allergies=tuple(
            ehr.AllergyRecord(
                **_known(row),
                code=_code(row),
                criticality=row.criticality,
                clinical_status=row.clinical_status,
                verification_status=row.verification_status,
            )
            for row in patient.allergys.order_by("pk")
        ),
        notes=tuple(_note(row) for row in patient.notes.order_by("pk")),
        family_history=tuple(
            ehr.FamilyHistoryRecord(
                **_known(row),
                relationship=_token(row.relationship) or ehr.OtherCode("unknown"),
                condition=_code(row),
                onset_age=row.onset_age,
            )
            for row in patient.familyhistorys.order_by("pk")
        ),
        genomics=tuple(
            ehr.GenomicRecord(
                **_known(row),
                kind=row.kind,
                gene=row.gene,
                variant=row.variant,
                significance=row.significance,
                present=row.present,
                value=row.value,
                code=_code(row) if row.code else None,
            )
            for row in patient.genomicfindings.order_by("pk")
        ),
    )


def _known(row: Fact) -> dict[str, Any]:
    return {
        "resource_type": row.resource_type,
        "resource_id": row.resource_id,
        "part": row.part,
        "available_at": row.available_at,
    }


def _coded(row: CodedFact) -> dict[str, Any]:
    also = tuple(code for token in row.also if (code := _token(token)))
    return {**_known(row), "code": _code(row), "also": also}


def _code(row: Any) -> ehr.Code:
    return ehr.parse_coding({"system": row.code_system, "code": row.code}) or ehr.OtherCode("unknown")


def _token(token: str) -> ehr.Code | None:
    """`system|code` as a code; None when there is none."""
    system, _, code = token.rpartition("|")
    return ehr.parse_coding({"system": system, "code": code})


def _note(row: Note) -> ehr.NoteRecord:
    return ehr.NoteRecord(**_known(row), kind=_token(row.kind), title=row.title, text=row.text)
