"""A simulated radiograph as a DICOM file in a chosen transfer syntax: 2000 x 2000, 12 bits, with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 2000
NOISE = 4.0  # standard deviation of the quantum noise, of 4096 grey levels: the file shrinks to a third


def radiograph(path: Path, syntax: str) -> Path:
    """Write it; `syntax` is "raw", "JPEG-LS", "JPEG 2000" or "RLE" (all lossless)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        ExplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGLSLossless,
        RLELossless,
        generate_uid,
    )

    from cds.demo.radiograph import ChestFindings, draw_chest

    syntaxes = {"JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless, "RLE": RLELossless}
    rng = np.random.default_rng(0)
    drawn = Image.fromarray(draw_chest(ChestFindings(cardiothoracic_ratio=0.5, opacity=0.4), rng))
    picture = np.asarray(drawn.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    stored = np.clip(picture * 4095 + rng.normal(0, NOISE, picture.shape), 0, 4095).astype(np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientID, dataset.Modality, dataset.BodyPartExamined = "SIMULATED", "DX", "CHEST"
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = stored.tobytes()
    if syntax in syntaxes:
        dataset.compress(syntaxes[syntax], generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path
