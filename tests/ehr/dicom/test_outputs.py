"""Results as DICOM: of radiographs, cines and slices; conformant, at their source's size, the same twice."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, UltrasoundMultiFrameImageStorage, generate_uid

import ehr
from tests.ehr.dicom.making import make_dataset, make_file, save

HEART, LUNG = ehr.Concept("80891009", "SCT", "Heart"), ehr.Concept("39607008", "SCT", "Lung")
MADE = ehr.Made(
    key="one", series="these", at=datetime(2026, 3, 1, 12, tzinfo=UTC), algorithm="By hand",
    version="aaaaaaaa", software="Tessera", notice="Research use only",
)  # fmt: skip
PIXELS = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) % 255


def radiograph(folder: Path) -> list[Path]:
    return [make_file(folder, PIXELS.astype(np.uint8), PatientSex="F")]


def cine(folder: Path) -> list[Path]:
    moving = np.stack([PIXELS.astype(np.uint8)] * 6)
    ultrasound = {"Modality": "US", "SOPClassUID": UltrasoundMultiFrameImageStorage, "FrameTime": 33.3}
    return [make_file(folder, moving, **ultrasound)]


def slices(folder: Path) -> list[Path]:
    common: dict[str, Any] = {
        "Modality": "CT", "SOPClassUID": CTImageStorage, "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(),
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.7, 0.7], "SliceThickness": 5,
    }  # fmt: skip
    made = []
    for place in range(4):
        where = {"ImagePositionPatient": [0, 0, 5.0 * place], "InstanceNumber": 9 - place}
        made.append(make_dataset(PIXELS.astype(np.int16), **where, **common))
    return [save(data, folder / f"{n}.dcm") for n, data in enumerate(made)]


def masks_of(frames: int, rows: int = 64, columns: int = 48) -> np.ndarray:
    masks = np.zeros((frames, rows, columns), bool)
    for place in range(frames):
        masks[place, 4 + place : 20, 6:30] = True
    return masks


def errors_in(content: bytes, folder: Path) -> list[str]:
    if shutil.which("dciodvfy") is None:
        told = "dciodvfy is not installed (Debian: dicom3tools)"
        pytest.fail(told) if os.environ.get("TESSERA_REQUIRE_SERVICES") == "1" else pytest.skip(told)
    path = folder / "judged.dcm"
    path.write_bytes(content)
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("make", [radiograph, cine, slices])
def test_each_kind_of_source_has_conformant_results(make: Any, tmp_path: Path) -> None:
    paths = make(tmp_path)
    frames = ehr.read_clip(paths).sources[:3]
    sources, masks = ehr.read_sources(paths), masks_of(len(frames))
    size = ehr.SizeOut(ehr.Concept("42798000", "SCT", "Area"), 312.4, ehr.Concept("cm2", "UCUM", "cm2"), LUNG)
    outlined = [ehr.Outlined("heart", HEART, masks), ehr.Outlined("lungs", LUNG, ~masks)]
    picture = ehr.burn(PIXELS.astype(np.uint8), np.ones((7, 7)), ["not a finding"])
    files = [
        ehr.build_measurement_report(sources, frames, [size], MADE),
        ehr.build_segmentation(sources, frames, outlined, MADE),
        ehr.build_capture(sources, frames[:1], picture, "heat map", MADE),
    ]
    assert [fault for _, content in files for fault in errors_in(content, tmp_path)] == []
    drawn = pydicom.dcmread(io.BytesIO(files[1][1]))
    for place, group in enumerate(drawn.PerFrameFunctionalGroupsSequence):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        at = frames.index((str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber", 1))))
        which = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) - 1
        np.testing.assert_array_equal(drawn.pixel_array[place].astype(bool), outlined[which].masks[at])
    assert files[1] == ehr.build_segmentation(ehr.read_sources(paths), frames, outlined, MADE)


def test_an_only_structure_and_a_smaller_mask(tmp_path: Path) -> None:
    paths = radiograph(tmp_path)
    frames = ehr.read_clip(paths).sources
    half = masks_of(1, 32, 24)
    one = ehr.Outlined("heart", HEART, half)
    _, content = ehr.build_segmentation(ehr.read_sources(paths), frames, [one], MADE)
    drawn = pydicom.dcmread(io.BytesIO(content))
    np.testing.assert_array_equal(drawn.pixel_array.astype(bool), half[0].repeat(2, 0).repeat(2, 1))
    assert errors_in(content, tmp_path) == []


def test_where_each_frame_came_from(tmp_path: Path) -> None:
    paths = slices(tmp_path)
    uids = [ehr.read_header(path).sop_uid for path in paths]
    assert ehr.read_clip(paths[::-1]).sources == tuple((uid, 1) for uid in uids)
    (moving,) = cine(tmp_path)
    uid = ehr.read_header(moving).sop_uid
    assert ehr.read_clip([moving], max_frames=3).sources == ((uid, 1), (uid, 3), (uid, 6))


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    sources = ehr.read_sources(radiograph(tmp_path))
    with pytest.raises(ehr.BadInstance, match="not among the files"):
        ehr.build_measurement_report(sources, [("1.2.3", 1)], [], MADE)
    frame = [(next(iter(sources.instances)), 1)]
    empty = ehr.Outlined("heart", HEART, np.zeros((1, 64, 48), bool))
    with pytest.raises(ehr.BadInstance, match="nothing inside any mask"):
        ehr.build_segmentation(sources, frame, [empty], MADE)
