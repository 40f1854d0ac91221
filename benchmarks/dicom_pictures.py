"""Simulated pictures as DICOM files: a radiograph in a chosen transfer syntax, the slices of a CT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 2000
NOISE = 4.0  # standard deviation of the quantum noise, of 4096 grey levels: the file shrinks to a third


SYNTAXES = {  # by what they are called here; INTEROP's list as far as pydicom can write it
    "raw": "1.2.840.10008.1.2.1",
    "raw, implicit": "1.2.840.10008.1.2",
    "raw, big endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG-LS, near-lossless": "1.2.840.10008.1.2.4.81",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "JPEG 2000, lossy": "1.2.840.10008.1.2.4.91",
}
HOW: dict[str, dict[str, Any]] = {
    "JPEG-LS, near-lossless": {"jls_error": 2},
    "JPEG 2000, lossy": {"j2k_psnr": [60.0]},
}


def radiograph(path: Path, syntax: str) -> Path:
    """One of 2000 x 2000, 12 bits, with noise; `syntax` one of SYNTAXES."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRBigEndian, generate_uid

    from cds.demo.radiograph import ChestFindings, draw_chest

    uid = UID(SYNTAXES[syntax])
    rng = np.random.default_rng(0)
    drawn = Image.fromarray(draw_chest(ChestFindings(cardiothoracic_ratio=0.5, opacity=0.4), rng))
    picture = np.asarray(drawn.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    stored = np.clip(picture * 4095 + rng.normal(0, NOISE, picture.shape), 0, 4095).astype(np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(SYNTAXES["raw"]) if uid.is_encapsulated else uid
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientID, dataset.Modality, dataset.BodyPartExamined = "SIMULATED", "DX", "CHEST"
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = (stored.byteswap() if uid == ExplicitVRBigEndian else stored).tobytes()
    if uid.is_encapsulated:
        dataset.compress(uid, generate_instance_uid=False, **HOW.get(syntax, {}))
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_slices(folder: Path, count: int, *, seed: int) -> list[Path]:
    """Slices of one CT with other UIDs and other pixels each; new UIDs every time."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    study, series = generate_uid(), generate_uid()
    paths = []
    for number in range(count):
        slice_ = Dataset()
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, series
        slice_.PatientID, slice_.Modality, slice_.BodyPartExamined = "SIM-1", "CT", "CHEST"
        slice_.StudyDate, slice_.StudyTime, slice_.InstanceNumber = "20260301", "110000", number
        slice_.ImagePositionPatient, slice_.PixelSpacing = [0, 0, number], [0.7, 0.7]
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.WindowCenter, slice_.WindowWidth = 2048, 4096
        slice_.Rows = slice_.Columns = 512
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 0
        slice_.PixelData = rng.integers(0, 4096, (512, 512), dtype=np.uint16).tobytes()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:04}.dcm"
        slice_.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
