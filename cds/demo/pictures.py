"""Simulated pictures as DICOM files: the radiograph as CR, the echo as US multi-frame.

Series Description, Manufacturer and the pixels themselves say "simulated". Scanners differ as
they do in life: photometric interpretation, windows, spacing, compression.
"""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from cds.demo.drawing import Picture
from cds.demo.echo import EchoFindings, draw_echo
from cds.demo.radiograph import SIDE, ChestFindings, draw_chest
from cds.demo.record import RECORD_NUMBERS
from cds.demo.simulating import SimulatedPatient

_SCANNERS = ("Simulated CR One", "Simulated CR Two", "Simulated Mobile")
_PROBES = ("Simulated Echo S5", "Simulated Echo P4")
_INVERTED_SHARE = 0.15  # MONOCHROME1
_COMPRESSED_SHARE = 0.5


def chest_findings(patient: SimulatedPatient) -> ChestFindings:
    """What the patient's radiograph shows: opacity by `lung`, heart size by `heart`."""
    rng = patient.rng("chest findings")
    causes = patient.causes
    opacity = float(np.clip(1 / (1 + np.exp(-1.35 * (causes.lung - 0.25))), 0, 1))
    wet = float(np.clip(0.45 * (causes.lung - 0.5), 0, 0.9))
    fluid = (wet * float(rng.uniform(0.3, 1)), wet * float(rng.uniform(0, 0.9)))
    return ChestFindings(
        cardiothoracic_ratio=float(np.clip(0.505 + 0.062 * causes.heart, 0.38, 0.68)),
        opacity=opacity,
        effusion=fluid if rng.random() < 0.7 else (0.0, 0.0),
        female=patient.is_female,
        portable=bool(rng.random() < 0.35),
    )


def echo_findings(patient: SimulatedPatient) -> EchoFindings:
    """What the patient's echo shows; rate, depth and noise vary without meaning."""
    rng = patient.rng("echo findings")
    fraction = patient.causes.ejection_fraction
    return EchoFindings(
        ejection_fraction=fraction,
        diastolic_ml=float(np.clip(95 + 190 * (0.55 - fraction) + 14 * rng.standard_normal(), 60, 220)),
        heart_rate=float(rng.uniform(58, 105)),
        frame_rate=float(rng.choice([25.0, 30.0, 40.0])),
        depth_mm=float(rng.uniform(150, 180)),
        gain=float(rng.uniform(0.8, 1.25)),
        noise=float(rng.uniform(0.1, 0.35)),
    )


def write_radiograph(patient: SimulatedPatient, path: Path) -> None:
    """Draw the frontal radiograph and write it as DICOM CR, 12 bits in 16."""
    findings = chest_findings(patient)
    rng = patient.rng("radiograph")
    header = _header(patient, "radiograph", ComputedRadiographyImageStorage, patient.imaged_at)
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.Modality = "CR"
    header.BodyPartExamined = "CHEST"
    header.ViewPosition = "AP" if findings.portable else "PA"
    header.StudyDescription = "Chest radiograph, frontal (simulated)"
    header.SeriesDescription = f"SIMULATED chest {header.ViewPosition}"
    header.Manufacturer = "Tessera simulator"
    header.ManufacturerModelName = _SCANNERS[2 if findings.portable else int(rng.integers(2))]
    header.PatientOrientation = ["L", "F"]
    spacing = float(rng.uniform(0.66, 0.72)) * 512 / SIDE
    header.ImagerPixelSpacing = [f"{spacing:.3f}"] * 2
    _store_grey(header, draw_chest(findings, rng), is_inverted=bool(rng.random() < _INVERTED_SHARE), rng=rng)
    header.save_as(path, enforce_file_format=True)


def write_echo(patient: SimulatedPatient, path: Path) -> None:
    """Draw the apical cine and write it as DICOM US multi-frame, 8 bits, raw or JPEG."""
    findings = echo_findings(patient)
    rng = patient.rng("echo")
    clip = draw_echo(findings, rng)
    header = _header(patient, "echo", UltrasoundMultiFrameImageStorage, patient.echo_at)
    header.Modality = "US"
    header.BodyPartExamined = "HEART"
    header.StudyDescription = "Echocardiography (simulated)"
    header.SeriesDescription = "SIMULATED apical view"
    header.Manufacturer = "Tessera simulator"
    header.ManufacturerModelName = _PROBES[int(rng.integers(len(_PROBES)))]
    header.NumberOfFrames = len(clip)
    header.FrameTime = f"{1000 / findings.frame_rate:.3f}"
    header.FrameIncrementPointer = 0x00181063
    header.CineRate = round(findings.frame_rate)
    header.HeartRate = round(findings.heart_rate)
    header.SequenceOfUltrasoundRegions = [_region(findings)]
    header.Rows, header.Columns = clip.shape[1:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    if rng.random() < _COMPRESSED_SHARE:
        header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        header.LossyImageCompression, header.LossyImageCompressionMethod = "01", "ISO_10918_1"
        frames = [_jpeg(frame) for frame in clip]
        header.LossyImageCompressionRatio = f"{clip.nbytes / sum(map(len, frames)):.1f}"
        header.PixelData = encapsulate(frames)
        header["PixelData"].VR = "OB"
    else:
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.LossyImageCompression = "00"
        header.PixelData = clip.tobytes()
        header["PixelData"].VR = "OB"
    header.save_as(path, enforce_file_format=True)


def _store_grey(header: Dataset, picture: Picture, *, is_inverted: bool, rng: np.random.Generator) -> None:
    """Intensities 0 to 1, dense bright, as 12-bit grey with the window a scanner would propose."""
    low, high = int(rng.integers(120, 400)), int(rng.integers(3300, 3900))
    stored = np.round(low + picture * (high - low)).astype(np.uint16)
    middle, width = (low + high) / 2, high - low
    if is_inverted:
        stored = (4095 - stored).astype(np.uint16)
        middle = 4095 - middle
    header.Rows, header.Columns = picture.shape
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME1" if is_inverted else "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.WindowCenter, header.WindowWidth = f"{middle:.0f}", f"{width:.0f}"
    header.LossyImageCompression = "00"
    header.PixelData = stored.tobytes()
    header["PixelData"].VR = "OW"


def _header(patient: SimulatedPatient, kind: str, sop_class: UID, at: datetime) -> FileDataset:
    """Patient, study and series of one instance; UIDs are a function of cohort, patient and kind."""

    def uid(level: str) -> UID:
        return generate_uid(entropy_srcs=["tessera-demo", str(patient.seed), str(patient.number),
                                          patient.admitted_at.isoformat(), kind, level])  # fmt: skip

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid("instance")
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SpecificCharacterSet = "ISO_IR 192"
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    header.SOPClassUID, header.SOPInstanceUID = sop_class, uid("instance")
    header.StudyInstanceUID, header.SeriesInstanceUID = uid("study"), uid("series")
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = at.strftime("%Y%m%d")
    header.StudyTime = header.SeriesTime = header.AcquisitionTime = header.ContentTime = at.strftime("%H%M%S")
    header.TimezoneOffsetFromUTC = "+0000"
    header.PatientName = f"Simulated^{patient.record_number}"
    header.PatientID, header.IssuerOfPatientID = patient.record_number, RECORD_NUMBERS
    header.PatientSex = "F" if patient.is_female else "M"
    header.PatientBirthDate = ""
    header.AccessionNumber = header.StudyID = header.ReferringPhysicianName = ""
    header.SeriesNumber, header.InstanceNumber = 1, 1
    header.BurnedInAnnotation = "YES"  # the corner says SIMULATED
    return header


def _region(findings: EchoFindings) -> Dataset:
    """The calibrated region of the picture: centimetres per pixel (PS3.3 C.8.5.5)."""
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = 159
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = findings.mm_per_pixel / 10
    return region


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=88)
    return out.getvalue()
