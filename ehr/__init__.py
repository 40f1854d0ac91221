"""The hospital's languages, in typed Python: FHIR and DICOM in, records and Clips out. The door of the room.

Knows nothing of Django, torch or settings; clients take arguments.
"""

from __future__ import annotations

from ehr.addresses import check_base_url
from ehr.code_map import BadCodeMap, CodeMap, read_code_map
from ehr.codes import Code, Icd10, Loinc, OtherCode, RxNorm, Snomed, parse_coding
from ehr.dicom.capture import burn
from ehr.dicom.contents import ListedInstance, may_hold_others, read_contents
from ehr.dicom.dimse import DimseClient, Moved, Sent
from ehr.dicom.listener import StorageListener, Taken
from ehr.dicom.methods import describe_deidentification
from ehr.dicom.node import Node, parse_node
from ehr.dicom.outlines import Outlined, build_segmentation
from ehr.dicom.outputs import Concept, Made, SizeOut, build_capture, build_measurement_report, derived_uid
from ehr.dicom.reader import inspect, pixel_digest, read_clip, read_header, value_digest
from ehr.dicom.research import ResearchInstance, deidentify_instance
from ehr.dicom.securing import TlsFiles
from ehr.dicom.sources import Sources, read_sources
from ehr.dicom.stow import StoreAnswer, StowClient
from ehr.dicom.web import DicomWebClient, read_expected, read_study, value_of, values_of
from ehr.errors import (
    BadInstance,
    BadResource,
    BadUnit,
    EhrError,
    Permanent,
    Refused,
    Retriable,
    SignInRefused,
    TooLarge,
)
from ehr.fhir.accompanying import build_device, build_diagnostic_report, build_provenance
from ehr.fhir.audit_event import AuditedAct, build_audit_event
from ehr.fhir.bulk import BulkClient, Export
from ehr.fhir.client import FhirClient, listened_types
from ehr.fhir.completing import Completed, complete_prefetch
from ehr.fhir.encounters import names_intensive_care
from ehr.fhir.prefetch import is_failure, read_prefetch
from ehr.fhir.prefetch_parts import Parts, prefetch_parts
from ehr.fhir.reading import Piece, read_fhir_folder, read_pieces, read_resources
from ehr.fhir.research_copy import Keeping, ResearchRecord, deidentify_record
from ehr.fhir.resources import ReadingTally
from ehr.fhir.risk_assessment import build_risk_assessment
from ehr.fhir.sign_in import BackendServices, SignIn, discover_token_url, new_key, public_keys
from ehr.fhir.smart import LaunchContext, SmartApp, SmartConfiguration, fhir_user_of
from ehr.fhir.sorting import (
    Bucket,
    SortedFolder,
    estimate_size,
    list_fhir_files,
    reader_fingerprint,
    sort_folder,
)
from ehr.fhir.structure import check_structure
from ehr.fhir.subscriptions import (
    ChangeEvent,
    Notification,
    NotificationKind,
    SubscriptionShape,
    build_subscription,
    read_notification,
)
from ehr.fhir.writing import Done, FhirWriter, Written, identified
from ehr.guarded import guarded_connections
from ehr.json_documents import read_key_set
from ehr.openid import Pending, ProviderConfiguration, RelyingParty, SignedIn, name_in
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
    "AuditedAct",
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
    "Completed",
    "Concept",
    "ConditionRecord",
    "DicomWebClient",
    "DimseClient",
    "Done",
    "EhrError",
    "EncounterKind",
    "EncounterRecord",
    "Export",
    "Fact",
    "FamilyHistoryRecord",
    "FhirClient",
    "FhirWriter",
    "GenomicRecord",
    "Icd10",
    "Identifier",
    "ImagingStudyRecord",
    "Inspected",
    "InstanceHeader",
    "Keeping",
    "Known",
    "LaunchContext",
    "ListedInstance",
    "Loinc",
    "Made",
    "MedicationRecord",
    "Moved",
    "Node",
    "NoteRecord",
    "Notification",
    "NotificationKind",
    "ObservationRecord",
    "OtherCode",
    "Outlined",
    "Parts",
    "PatientIdentity",
    "PatientRecord",
    "Pending",
    "Permanent",
    "Piece",
    "ProcedureRecord",
    "ProviderConfiguration",
    "Pseudonyms",
    "ReadingTally",
    "Refused",
    "RelyingParty",
    "ResearchInstance",
    "ResearchRecord",
    "Retriable",
    "RxNorm",
    "Sent",
    "SetAside",
    "Sex",
    "SignIn",
    "SignInRefused",
    "SignedIn",
    "SizeOut",
    "SmartApp",
    "SmartConfiguration",
    "Snomed",
    "SortedFolder",
    "Sources",
    "StorageListener",
    "StoreAnswer",
    "StowClient",
    "SubscriptionShape",
    "Taken",
    "TlsFiles",
    "TooLarge",
    "Written",
    "build_audit_event",
    "build_capture",
    "build_device",
    "build_diagnostic_report",
    "build_measurement_report",
    "build_provenance",
    "build_risk_assessment",
    "build_segmentation",
    "build_subscription",
    "burn",
    "canonical_unit",
    "check_base_url",
    "check_structure",
    "complete_prefetch",
    "deidentify_instance",
    "deidentify_record",
    "derived_uid",
    "describe_deidentification",
    "discover_token_url",
    "estimate_size",
    "fhir_user_of",
    "guarded_connections",
    "identified",
    "inspect",
    "is_failure",
    "is_over",
    "known_of",
    "list_fhir_files",
    "listened_types",
    "may_hold_others",
    "moved",
    "name_in",
    "names_intensive_care",
    "new_key",
    "parse_coding",
    "parse_node",
    "pixel_digest",
    "prefetch_parts",
    "public_keys",
    "read_clip",
    "read_code_map",
    "read_contents",
    "read_expected",
    "read_fhir_folder",
    "read_header",
    "read_key_set",
    "read_notification",
    "read_pieces",
    "read_prefetch",
    "read_resources",
    "read_sources",
    "read_study",
    "reader_fingerprint",
    "same_quantity",
    "sort_folder",
    "to_canonical",
    "value_digest",
    "value_of",
    "values_of",
]
