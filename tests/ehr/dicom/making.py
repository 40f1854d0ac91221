"""Small DICOM files, made for one feature each. Everything in them is invented."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)


def make_dataset(pixels: np.ndarray | None = None, **elements: Any) -> FileDataset:
    """A data set; `pixels` [H, W], [T, H, W] or [H, W, 3] sets the pixel elements, `elements` override."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = ComputedRadiographyImageStorage
    data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID = (generate_uid() for _ in range(3))
    data.Modality, data.PatientID = "CR", "MRN-p1"
    data.PatientName = "Test^Person"
    data.StudyDate, data.StudyTime = "20260301", "101500"
    if pixels is not None:
        _put_pixels(data, pixels)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    return data


def _put_pixels(data: Dataset, pixels: np.ndarray) -> None:
    colour = pixels.ndim >= 3 and pixels.shape[-1] == 3
    shape = pixels.shape[:-1] if colour else pixels.shape
    data.Rows, data.Columns = shape[-2:]
    if len(shape) == 3:
        data.NumberOfFrames = shape[0]
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = pixels.tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)


def save(data: FileDataset, path: Path) -> Path:
    data.save_as(path, enforce_file_format=True)
    return path


def make_file(folder: Path, pixels: np.ndarray | None = None, name: str = "one.dcm", **elements: Any) -> Path:
    return save(make_dataset(pixels, **elements), folder / name)


def bomb(folder: Path, megabytes: int = 900) -> Path:
    """A deflated data set of some hundred KB whose one private element inflates to hundreds of MB."""
    uid = b"1.2.840.10008.1.2.1.99"
    parts = ((2, b"1.2.840.10008.5.1.4.1.1.1\0"), (3, b"1.2.3.4\0"), (0x10, uid))
    syntax = b"".join(struct.pack("<HH2sH", 2, number, b"UI", len(one)) + one for number, one in parts)
    meta = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(syntax)) + syntax
    engine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = megabytes * 1024 * 1024
    packed = engine.compress(struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, size))
    block = b"\0" * (1024 * 1024)
    packed += b"".join(engine.compress(block) for _ in range(megabytes)) + engine.flush()
    path = folder / "bomb.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM" + meta + packed)
    return path
