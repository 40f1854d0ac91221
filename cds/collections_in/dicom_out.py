"""A picture of the chest X-ray collection as a DICOM Computed Radiography instance.

The JPEG of the collection is kept as it is, encapsulated (PS3.5 A.4.1, JPEG Baseline): no second loss. UIDs
are derived from the file's name, so that converting again gives the same instance.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ComputedRadiographyImageStorage, JPEGBaseline8Bit, generate_uid

from cds.collections_in.cxr_covid import Case, Picture
from cds.errors import Invalid

COLLECTION = "cxr_covid"


def write_instance(case: Case, picture: Picture, path: Path) -> None:
    """Write one picture as DICOM Part 10 file. Raises Invalid when it is not an 8-bit grey JPEG."""
    content = picture.file.read_bytes()
    try:
        with Image.open(picture.file) as image:
            columns, rows = image.size
            is_grey = image.format == "JPEG" and image.mode == "L"
    except UnidentifiedImageError as error:
        raise Invalid(f"{picture.file.name} is not a picture") from error
    if not is_grey:
        raise Invalid(f"{picture.file.name} is not an 8-bit grey JPEG")
    dataset = _describe(case, picture)
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.PixelData = encapsulate([content])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)


def _describe(case: Case, picture: Picture) -> Dataset:
    """Patient, study and acquisition: who, when, from which side; nothing that tells an outcome."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = _uid("instance", picture)
    dataset.StudyInstanceUID = _uid("study", picture)
    dataset.SeriesInstanceUID = _uid("series", picture)
    dataset.PatientID = case.patient_id
    dataset.PatientName = case.patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = {"male": "M", "female": "F"}.get(case.sex, "")
    dataset.StudyID = str(picture.number + 1)
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.StudyDate = picture.at.strftime("%Y%m%d") if picture.at else ""
    dataset.StudyTime = picture.at.strftime("%H%M%S") if picture.at else ""
    dataset.TimezoneOffsetFromUTC = "+0000"
    dataset.StudyDescription = "Chest radiograph"
    dataset.SeriesDescription = f"Chest {picture.view}"
    dataset.Modality = "CR"
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = picture.view
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    return dataset


def _uid(level: str, picture: Picture) -> str:
    return str(generate_uid(entropy_srcs=[COLLECTION, level, picture.file.name]))
