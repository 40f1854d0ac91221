"""The hospital's languages, in typed Python: FHIR and DICOM in, records and Clips out. The door of the room.

Knows nothing of Django, torch or settings; clients take arguments.
"""

from __future__ import annotations

from ehr.code_map import BadCodeMap, CodeMap, read_code_map
from ehr.codes import Code, Icd10, Loinc, OtherCode, RxNorm, Snomed, parse_coding
from ehr.dicom.dimse import DimseClient, Moved, Sent
from ehr.dicom.listener import StorageListener, Taken
from ehr.dicom.methods import describe_deidentification
from ehr.dicom.node import Node, parse_node
from ehr.dicom.reader import inspect, pixel_digest, read_clip, read_header, value_digest
from ehr.dicom.research import ResearchInstance, deidentify_instance
from ehr.dicom.web import DicomWebClient, read_expected, read_study, value_of, values_of
from ehr.errors import BadInstance, BadResource, BadUnit, EhrError, Permanent, Refused, Retriable, TooLarge
from ehr.fhir.bulk import BulkClient, Export
from ehr.fhir.client import FhirClient, listened_types
from ehr.fhir.encounters import names_intensive_care
from ehr.fhir.prefetch import read_prefetch
from ehr.fhir.reading import Piece, read_fhir_folder, read_pieces, read_resources
from ehr.fhir.research_copy import Keeping, ResearchRecord, deidentify_record
from ehr.fhir.resources import ReadingTally
from ehr.fhir.risk_assessment import build_risk_assessment
from ehr.fhir.sign_in import BackendServices, SignIn, discover_token_url, new_key, public_keys
from ehr.fhir.sorting import Bucket, SortedFolder, list_fhir_files, sort_folder
from ehr.fhir.subscriptions import (
    ChangeEvent,
    Notification,
    NotificationKind,
    SubscriptionShape,
    build_subscription,
    read_notification,
)
from ehr.pseudonyms import Pseudonyms, moved
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
    Inspected,
    InstanceHeader,
    MedicationRecord,
    NoteRecord,
    ObservationRecord,
    PatientIdentity,
    PatientRecord,
    ProcedureRecord,
    SetAside,
    Sex,
    is_over,
)
from ehr.scrubbing import Known, known_of
from ehr.units import canonical_unit, same_quantity, to_canonical

__all__ = [
    "AllergyRecord",
    "BackendServices",
    "BadCodeMap",
    "BadInstance",
    "BadResource",
    "BadUnit",
    "Bucket",
    "BulkClient",
    "ChangeEvent",
    "Clip",
    "Code",
    "CodeMap",
    "ConditionRecord",
    "DicomWebClient",
    "DimseClient",
    "EhrError",
    "EncounterKind",
    "EncounterRecord",
    "Export",
    "Fact",
    "FamilyHistoryRecord",
    "FhirClient",
    "GenomicRecord",
    "Icd10",
    "Identifier",
    "ImagingStudyRecord",
    "Inspected",
    "InstanceHeader",
    "Keeping",
    "Known",
    "Loinc",
    "MedicationRecord",
    "Moved",
    "Node",
    "NoteRecord",
    "Notification",
    "NotificationKind",
    "ObservationRecord",
    "OtherCode",
    "PatientIdentity",
    "PatientRecord",
    "Permanent",
    "Piece",
    "ProcedureRecord",
    "Pseudonyms",
    "ReadingTally",
    "Refused",
    "ResearchInstance",
    "ResearchRecord",
    "Retriable",
    "RxNorm",
    "Sent",
    "SetAside",
    "Sex",
    "SignIn",
    "Snomed",
    "SortedFolder",
    "StorageListener",
    "SubscriptionShape",
    "Taken",
    "TooLarge",
    "build_risk_assessment",
    "build_subscription",
    "canonical_unit",
    "deidentify_instance",
    "deidentify_record",
    "describe_deidentification",
    "discover_token_url",
    "inspect",
    "is_over",
    "known_of",
    "list_fhir_files",
    "listened_types",
    "moved",
    "names_intensive_care",
    "new_key",
    "parse_coding",
    "parse_node",
    "pixel_digest",
    "public_keys",
    "read_clip",
    "read_code_map",
    "read_expected",
    "read_fhir_folder",
    "read_header",
    "read_notification",
    "read_pieces",
    "read_prefetch",
    "read_resources",
    "read_study",
    "same_quantity",
    "sort_folder",
    "to_canonical",
    "value_digest",
    "value_of",
    "values_of",
]
