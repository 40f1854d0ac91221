"""The patient's record as Tessera understands it: frozen dataclasses, aware datetimes, canonical units.

Every clinical fact carries `available_at`: the moment from which a clinician could have known it (the
later of what was observed and when it was issued or recorded). A prediction made `as_of` a moment uses
only facts with `available_at <= as_of` (INTEROP 34).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehr.codes import Code


class Sex(StrEnum):
    """Administrative gender, http://hl7.org/fhir/R4/valueset-administrative-gender.html."""

    FEMALE = "female"
    MALE = "male"
    OTHER = "other"
    UNKNOWN = "unknown"


class EncounterKind(StrEnum):
    """What Tessera needs to know of Encounter.class and .type."""

    INPATIENT = "inpatient"
    EMERGENCY = "emergency"
    INTENSIVE_CARE = "intensive-care"
    AMBULATORY = "ambulatory"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Identifier:
    """A business identifier, such as a medical record number. `system` may be "" (DICOM without issuer)."""

    system: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What every clinical fact has. `resource_id` is the id within its source."""

    resource_type: str
    resource_id: str
    part: str = ""  # component code of a multi-component Observation, else ""
    available_at: datetime | None  # None: undated; never used in a prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientIdentity:
    """FHIR Patient."""

    resource_id: str
    identifiers: tuple[Identifier, ...] = ()
    family: str = ""
    given: str = ""
    birth_date: date | None = None
    sex: Sex = Sex.UNKNOWN
    deceased_at: datetime | None = None
    deceased: bool = False
    replaced_by: str = ""  # Patient.link type replaced-by: id of the surviving Patient
    replaces: tuple[str, ...] = ()  # and of type replaces: those this one survives
    is_stub: bool = False  # only the id is known: the Patient resource itself was not among what was read


@dataclass(frozen=True, slots=True, kw_only=True)
class EncounterRecord(Fact):
    """FHIR Encounter. `end` is None while the patient is still there or when it is not known.

    located_at  from when `location` is where the patient is; None: nobody says since when
    """

    status: str
    kind: EncounterKind
    start: datetime | None
    end: datetime | None
    part_of: str = ""
    location: str = ""
    located_at: datetime | None = None
    reason: Code | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationRecord(Fact):
    """FHIR Observation (or one component of it).

    value in `unit`, the canonical UCUM unit of the quantity (`ehr.units`); `value` is None for a coded
    or textual result (`value_code`, `value_text`) and for data-absent results, which keep `absent_reason`.
    """

    code: Code
    also: tuple[Code, ...] = ()  # further codings of the same concept
    status: str = "final"
    category: str = ""
    value: float | None = None
    unit: str = ""
    value_code: Code | None = None
    value_text: str = ""
    absent_reason: str = ""
    low: float | None = None  # reference range, canonical unit
    high: float | None = None
    effective_at: datetime | None = None
    encounter_id: str = ""


# Condition.clinicalStatus; status of a MedicationRequest and its kin
_OVER = frozenset({"inactive", "remission", "resolved", "cancelled", "completed", "stopped"})


def is_over(status: str) -> bool:
    """Whether a condition or a medication of that status has come to its end."""
    return status in _OVER


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionRecord(Fact):
    """FHIR Condition. Entered-in-error and refuted ones never become records.

    over_at  of one that is over, nobody saying since when: when its source last wrote it, if it says so
    """

    code: Code
    also: tuple[Code, ...] = ()
    clinical_status: str = ""
    verification_status: str = ""
    onset_at: datetime | None = None
    abated_at: datetime | None = None
    over_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MedicationRecord(Fact):
    """FHIR MedicationRequest, MedicationStatement or MedicationAdministration; `over_at` as in Condition."""

    code: Code
    also: tuple[Code, ...] = ()
    status: str = ""
    start: datetime | None = None
    end: datetime | None = None
    over_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcedureRecord(Fact):
    """FHIR Procedure."""

    code: Code
    also: tuple[Code, ...] = ()
    status: str = ""
    performed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllergyRecord(Fact):
    """FHIR AllergyIntolerance; statuses and `over_at` as in Condition."""

    code: Code
    criticality: str = ""
    clinical_status: str = ""
    verification_status: str = ""
    over_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRecord(Fact):
    """The text of a DocumentReference attachment or of a DiagnosticReport (presentedForm, conclusion)."""

    kind: Code | None
    title: str
    text: str
    author: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyHistoryRecord(Fact):
    """One condition of one relative, FHIR FamilyMemberHistory."""

    relationship: Code
    condition: Code
    onset_age: float | None = None  # years


@dataclass(frozen=True, slots=True, kw_only=True)
class GenomicRecord(Fact):
    """An Observation of the Genomics Reporting profile: a variant, or a score such as a polygenic risk."""

    kind: str  # "variant" | "score"
    gene: str = ""  # HGNC symbol
    variant: str = ""  # HGVS
    significance: str = ""  # ClinVar wording, such as "pathogenic"
    present: bool | None = None
    value: float | None = None
    code: Code | None = None


MANUFACTURER = "Tessera"  # of our own results
OUR_SERIES = {
    "SR": "9001",
    "SEG": "9002",
    "OT": "9003",
}  # Modality → SeriesNumber, far behind those of scanners
WITHOUT_PIXELS = frozenset(
    {
        "SR",
        "PR",
        "KO",
        "REG",
        "RTSTRUCT",
        "RTPLAN",
        "RTRECORD",
        "RWV",
        "AU",
        "ECG",
        "HD",
        "DOC",
        "PLAN",
        "FID",
    }
)  # Modality of Series that hold no picture
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_KINDS_WITHOUT_PIXELS = tuple(
    _STORAGE + kind
    for kind in (
        "9.",  # waveforms
        "11.",  # presentation states
        "66.1",  # registration, fiducials, deformable registration; not 66.4, segmentation
        "66.2",
        "66.3",
        "66.5",  # surfaces, tracts
        "66.6",
        "67",  # real world value mapping
        "68.",  # surface scans
        "78.",  # measurements of eyes
        "79.",
        "80.",
        "88.",  # structured reports, key images
        "90.",
        "91.",
        "104.",  # encapsulated documents
        "131",  # structured display
        "200.",  # protocols
        "481.3",  # radiotherapy but for images and doses: structures, plans, records
        "481.4",
        "481.5",
        "481.6",
        "481.7",
        "481.8",
        "481.9",
    )
)  # SOP Classes (PS3.4 B.5) that begin so hold no picture
_CLASSES_WITHOUT_PIXELS = frozenset(
    {_STORAGE + "66"}  # raw data
    | {f"{_STORAGE}481.{number}" for number in (*range(10, 23), 25)}
    | {"1.3.12.2.1107.5.9.1"}  # Siemens CSA Non-Image
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagingStudyRecord(Fact):
    """FHIR ImagingStudy: tells that pixels exist, and where."""

    study_uid: str
    modalities: tuple[str, ...] = ()
    started_at: datetime | None = None
    description: str = ""
    endpoint: str = ""
    expected: tuple[tuple[str, int], ...] = ()  # (Series UID with pixels, or "" for the Study; instances)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A resource or file that was not taken, and why (no patient data in the reason)."""

    where: str  # file and entry, or URL
    kind: str  # resource type, or "DICOM"
    identity: str  # resource id or SOP Instance UID, where readable
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientRecord:
    """Everything read about one patient from one source."""

    patient: PatientIdentity
    encounters: tuple[EncounterRecord, ...] = ()
    observations: tuple[ObservationRecord, ...] = ()
    conditions: tuple[ConditionRecord, ...] = ()
    medications: tuple[MedicationRecord, ...] = ()
    procedures: tuple[ProcedureRecord, ...] = ()
    allergies: tuple[AllergyRecord, ...] = ()
    notes: tuple[NoteRecord, ...] = ()
    family_history: tuple[FamilyHistoryRecord, ...] = ()
    genomics: tuple[GenomicRecord, ...] = ()
    imaging_studies: tuple[ImagingStudyRecord, ...] = ()
    retracted: tuple[tuple[str, str], ...] = ()  # (resource type, id) now entered-in-error: remove if held
    set_aside: tuple[SetAside, ...] = ()


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Clip:
    """The frames of one Series, ready to look at or to encode.

    frames      float32 [T, H, W], intensities in [0, 1] after modality and VOI LUT; MONOCHROME1 inverted so
                that dense tissue is bright; colour converted to luminance (ITU-R BT.601)
    times_ms    float32 [T], from the first frame; all 0 for a still image
    spacing_mm  (row, column) in mm, or None when the file does not say
    slice_mm    of a volume of evenly spaced slices, in order along their normal: the step between them
    sources     where each frame came from: (SOP Instance UID, number of the frame in it, from 1)
    """

    frames: NDArray[np.float32]
    times_ms: NDArray[np.float32]
    spacing_mm: tuple[float, float] | None = None
    spacing_source: str = ""  # "PixelSpacing" | "ImagerPixelSpacing" | "SequenceOfUltrasoundRegions"
    slice_mm: float | None = None
    notes: tuple[str, ...] = ()  # what was ignored or assumed: "overlay ignored", "burned-in annotation" …
    sources: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHeader:
    """What Tessera reads of one DICOM instance before any pixel is decoded. UIDs as printed."""

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    patient_id: str
    issuer_of_patient_id: str
    started_at: datetime | None  # StudyDate + StudyTime (+ TimezoneOffsetFromUTC; else `default_tz`)
    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    photometric_interpretation: str
    study_description: str = ""
    series_description: str = ""
    body_part: str = ""
    view_position: str = ""
    laterality: str = ""
    manufacturer: str = ""
    instance_number: int | None = None
    burned_in_annotation: bool | None = None
    has_pixels: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_picture(self) -> bool:
        """Whether it holds a picture, or should: cut off, it may have lost pixels and Rows."""
        return self.has_pixels or self.rows > 0 or self.columns > 0 or not self._is_without_pixels

    @property
    def _is_without_pixels(self) -> bool:
        """Whether it is of a kind that has none, by its Modality or its SOP Class."""
        return (
            self.modality in WITHOUT_PIXELS
            or self.sop_class_uid in _CLASSES_WITHOUT_PIXELS
            or self.sop_class_uid.startswith(_KINDS_WITHOUT_PIXELS)
        )

    @property
    def is_ours(self) -> bool:
        """Whether it is a result that Tessera made, and that comes back."""
        return self.manufacturer == MANUFACTURER and self.modality in OUR_SERIES


@dataclass(frozen=True, slots=True)
class Inspected:
    """One DICOM file as it came: its header, and what tells it from others."""

    header: InstanceHeader
    pixel_digest: str  # SHA-256 hex of the pixel data as sent; "" without pixels
    sha256: str  # of the file
    bytes: int
