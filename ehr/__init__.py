"""The hospital's languages, in typed Python: FHIR and DICOM in, records and Clips out. The door of the room.

Knows nothing of Django, torch or settings; clients take arguments.
"""

from __future__ import annotations

from ehr.codes import Code, Icd10, Loinc, OtherCode, RxNorm, Snomed, parse_coding
from ehr.errors import BadInstance, BadResource, EhrError, Permanent, Refused, Retriable, TooLarge
from ehr.records import (
    AllergyRecord,
    Clip,
    ConditionRecord,
    EncounterKind,
    EncounterRecord,
    Fact,
    FamilyHistoryRecord,
    GenomicRecord,
    Identifier,
    ImagingStudyRecord,
    InstanceHeader,
    MedicationRecord,
    NoteRecord,
    ObservationRecord,
    PatientIdentity,
    PatientRecord,
    ProcedureRecord,
    SetAside,
    Sex,
)

__all__ = [
    "AllergyRecord",
    "BadInstance",
    "BadResource",
    "Clip",
    "Code",
    "ConditionRecord",
    "EhrError",
    "EncounterKind",
    "EncounterRecord",
    "Fact",
    "FamilyHistoryRecord",
    "GenomicRecord",
    "Icd10",
    "Identifier",
    "ImagingStudyRecord",
    "InstanceHeader",
    "Loinc",
    "MedicationRecord",
    "NoteRecord",
    "ObservationRecord",
    "OtherCode",
    "PatientIdentity",
    "PatientRecord",
    "Permanent",
    "ProcedureRecord",
    "Refused",
    "Retriable",
    "RxNorm",
    "SetAside",
    "Sex",
    "Snomed",
    "TooLarge",
    "parse_coding",
]
