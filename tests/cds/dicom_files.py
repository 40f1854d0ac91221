"""Small DICOM files as an archive would send them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    generate_uid,
)


def write_radiograph(
    path: Path, *, patient_id: str = "MRN-p1", name: str = "one", seed: int = 0, **changes: Any
) -> Path:
    """A 16 x 24 grey chest radiograph. One `name`, the same UIDs; one `seed`, the same pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 24), dtype=np.uint8)
    dataset = Dataset()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", name])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", name])
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["instance", name])
    dataset.PatientID, dataset.PatientName = patient_id, "Test^Person"
    dataset.StudyDate, dataset.StudyTime, dataset.TimezoneOffsetFromUTC = "20260301", "110000", "+0000"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    _write(dataset, path)
    return path


def write_report(path: Path, of: Path, *, modality: str = "SR", number: int = 1) -> Path:
    """A file without pixels in the Study of another: a report, a presentation state, key images."""
    picture, dataset = dcmread(of, stop_before_pixels=True), Dataset()
    dataset.SOPClassUID = {"SR": BasicTextSRStorage, "KO": KeyObjectSelectionDocumentStorage}.get(
        modality, GrayscaleSoftcopyPresentationStateStorage
    )
    dataset.StudyInstanceUID, dataset.PatientID = picture.StudyInstanceUID, picture.PatientID
    dataset.SeriesInstanceUID = f"{picture.StudyInstanceUID[:40]}.{number}"
    dataset.SOPInstanceUID = f"{dataset.SeriesInstanceUID}.1"
    dataset.Modality = modality
    _write(dataset, path)
    return path


def _write(dataset: Dataset, path: Path) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
