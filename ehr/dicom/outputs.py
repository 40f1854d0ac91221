"""Results out as DICOM: measurements (SR, TID 1500) and heat maps (Secondary Capture); masks: `outlines.py`.

Each lies in the Study of its source, in a Series of its own. UIDs are derived from what the result is, dates
from when it was made, neither from now or by chance: the same result again is the same instance, byte for
byte.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from ehr.dicom.sources import Sources
from ehr.errors import BadInstance
from ehr.records import MANUFACTURER, OUR_SERIES

MODEL = MANUFACTURER
ROOT = uuid.UUID("0b7a1f0e-6d5b-5a3c-9a41-7d1a2b1f3c55")  # of the names our UIDs are derived from
SR_SERIES, CAPTURE_SERIES = (int(OUR_SERIES[modality]) for modality in ("SR", "OT"))
LONG_STRING = 64  # VR LO


@dataclass(frozen=True, slots=True)
class Concept:
    """A code as DICOM writes it: value, scheme designator (SCT, LN, DCM, UCUM, 99…) and meaning."""

    value: str
    scheme: str
    meaning: str

    @property
    def coded(self) -> Any:
        """As highdicom takes it."""
        return highdicom().sr.CodedConcept(self.value, self.scheme, self.meaning)


PROCEDURE = Concept("18748-4", "LN", "Diagnostic imaging study")
REPORT_TITLE = Concept("126000", "DCM", "Imaging Measurement Report")
DEVICE = Concept("121007", "DCM", "Device")
FAMILY = Concept("123110", "DCM", "Artificial Intelligence")
STRUCTURE = Concept("91723000", "SCT", "Anatomical Structure")


@dataclass(frozen=True, slots=True)
class Made:
    """What made a result, and when.

    key       names the result: the same key, the same UIDs
    series    names the Series it goes to: results that belong together share it
    version   of the algorithm, as the panel shows it
    notice    the regulatory label
    """

    key: str
    series: str
    at: datetime
    algorithm: str
    version: str
    software: str
    notice: str


@dataclass(frozen=True, slots=True)
class SizeOut:
    """One measured size. unit: UCUM with its meaning; site: where it was measured, when that is known."""

    name: Concept
    value: float
    unit: Concept
    site: Concept | None = None


def highdicom() -> Any:
    """The library that writes SR, SEG and SC: imported by whoever sends, as it takes a second."""
    import highdicom as library

    return library


Frames = Sequence[tuple[str, int]]  # (SOP Instance UID, number of the frame in it, from 1)


def derived_uid(*names: str) -> str:
    """A UID that these names always give, under the root for UUIDs (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(ROOT, chr(31).join(names)).int}"


def build_measurement_report(
    sources: Sources, frames: Frames, sizes: Sequence[SizeOut], made: Made
) -> tuple[str, bytes]:
    """Sizes as a Comprehensive SR by TID 1500: (SOP Instance UID, Part 10 file).

    frames  what was measured in; each is referenced as a source of the measurement group
    raises  BadInstance when a frame is not of `sources`
    """
    hd, instances = highdicom(), used(sources, frames)
    whole = hd.sr.AlgorithmIdentification(
        name=line(made.algorithm),
        version=line(made.version),
        family=FAMILY.coded,
        manufacturer=MANUFACTURER,
    )
    observer = hd.sr.ObserverContext(
        observer_type=DEVICE.coded,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", made.algorithm, made.version),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=line(made.algorithm),
            serial_number=line(made.version),
        ),
    )
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=derived_uid("tracking", made.key), identifier=line(f"{made.algorithm} {made.version}")
        ),
        algorithm_id=whole,
        measurements=[
            hd.sr.Measurement(
                name=size.name.coded,
                value=_decimal(size.value),
                unit=size.unit.coded,
                finding_sites=[hd.sr.FindingSite(anatomic_location=size.site.coded)] if size.site else None,
            )
            for size in sizes
        ],
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(
                str(instance.SOPClassUID), uid, numbers(instance, frames) or None
            )
            for uid, instance in instances.items()
        ],
    )
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=PROCEDURE.coded,
        imaging_measurements=[group],
        title=REPORT_TITLE.coded,
    )  # fmt: skip
    document = hd.sr.ComprehensiveSR(
        evidence=list(instances.values()),
        content=report,
        series_number=SR_SERIES,
        is_complete=True,
        is_final=True,
        is_verified=False,
        record_evidence=True,
        series_description=line(f"Measurements, {made.notice}"),
        **common(made, "sr"),
    )
    return finished(document, instances, made)


def build_capture(
    sources: Sources, frames: Frames, picture: NDArray[np.uint8], title: str, made: Made
) -> tuple[str, bytes]:
    """A picture with its words burned in as a Secondary Capture: (SOP Instance UID, Part 10 file).

    picture  uint8 [H, W, 3]; see `ehr.dicom.capture`
    """
    instances = used(sources, frames)
    first = next(iter(instances.values()))
    document = highdicom().sc.SCImage.from_ref_dataset(
        ref_dataset=first,
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        series_number=CAPTURE_SERIES,
        series_description=line(f"Heat maps, {made.notice}"),
        **{name: value for name, value in common(made, "capture").items() if name not in OF_SOFTWARE},
    )
    document.PatientOrientation = first.get("PatientOrientation") or None
    if first.get("BodyPartExamined"):
        document.BodyPartExamined = first.BodyPartExamined
    if first.get("Laterality") or "BodyPartExamined" not in document:
        document.Laterality = first.get("Laterality") or None  # empty: not known (PS3.3 C.7.3.1)
    for name, value in _software(made).items():
        setattr(document, _KEYWORDS[name], value)
    document.ImageType = ["DERIVED", "SECONDARY"]
    document.DerivationDescription = title[:1024]
    document.ImageComments = made.notice
    # What was burned in names nobody; what the source had burned in is still there.
    document.BurnedInAnnotation = "YES" if first.get("BurnedInAnnotation") == "YES" else "NO"
    document.SourceImageSequence = [reference(instance, frames) for instance in instances.values()]
    return finished(document, instances, made)


OF_SOFTWARE = frozenset({"manufacturer_model_name", "software_versions", "device_serial_number"})
_KEYWORDS = {
    "manufacturer_model_name": "ManufacturerModelName",
    "software_versions": "SoftwareVersions",
    "device_serial_number": "DeviceSerialNumber",
}


def _software(made: Made) -> dict[str, str]:
    return {
        "manufacturer_model_name": MODEL,
        "software_versions": line(made.software),
        "device_serial_number": line(made.version),
    }


def common(made: Made, kind: str) -> dict[str, Any]:
    return {
        "series_instance_uid": derived_uid("series", made.series, kind),
        "sop_instance_uid": derived_uid("instance", made.key, kind),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        **_software(made),
    }


def used(sources: Sources, frames: Frames) -> dict[str, Dataset]:
    if not frames:
        raise BadInstance("a result must name the frames it was made from")
    return {uid: sources.get(uid) for uid in dict.fromkeys(uid for uid, _ in frames)}


def numbers(instance: Dataset, frames: Frames) -> list[int]:
    """The frames of a multi-frame instance that were used; [] for a single one."""
    if int(instance.get("NumberOfFrames") or 1) <= 1:
        return []
    return [number for uid, number in frames if uid == instance.SOPInstanceUID]


def reference(instance: Dataset, frames: Frames) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    if used_frames := numbers(instance, frames):
        item.ReferencedFrameNumber = used_frames
    return item


def finished(document: Dataset, instances: Mapping[str, Dataset], made: Made) -> tuple[str, bytes]:
    """Dates from when it was made instead of from now; what identifies the patient, whole."""
    first = next(iter(instances.values()))
    for keyword in ("IssuerOfPatientID", "StudyDescription", "SpecificCharacterSet"):
        if first.get(keyword):
            setattr(document, keyword, first.get(keyword))
    day, clock = DA(made.at.date()), TM(made.at.time().replace(microsecond=0))
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(document, f"{name}Date", day)
        setattr(document, f"{name}Time", clock)
    if "DateOfSecondaryCapture" in document:
        document.DateOfSecondaryCapture, document.TimeOfSecondaryCapture = day, clock
    for equipment in document.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = DT(made.at.replace(microsecond=0, tzinfo=None))
    document.TimezoneOffsetFromUTC = made.at.strftime("%z") or "+0000"
    held = io.BytesIO()
    document.save_as(held, enforce_file_format=True)
    return str(document.SOPInstanceUID), held.getvalue()


def line(text: str) -> str:
    """A value of VR LO: one line, no backslash, 64 characters."""
    return " ".join(text.replace("\\", "/").split())[:LONG_STRING]


def _decimal(value: float) -> float:
    """As many digits as a Decimal String (VR DS) holds."""
    return float(f"{value:.6g}")
