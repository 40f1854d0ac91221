"""Every published test picture we have: a Clip, or a refusal in words; never a crash or wrong pixels."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ehr import BadInstance, Clip, read_clip, read_header, value_digest
from tests.shared import shared

pytestmark = pytest.mark.real_data

# What pydicom does not decode, and libjpeg-turbo does.
RETIRED = {
    f"CTImage.dcm_JPEGProcess{name}.dcm"
    for name in ("10_12TransferSyntax_1.2.840.10008.1.2.4.55", "6_8TransferSyntax_1.2.840.10008.1.2.4.53")
}
# 1-bit RLE and Deflated Image Frame of segmentations: no free decoder has them.
UNDECODABLE = {
    "GH178.dcm": "no pixel data",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "no data set",
    "no-pixel-data.dcm": r"no pixel data \(Modality SR\)",
    "liver_deflate.dcm": "not one we can decode",
    "liver_nonbyte_aligned_deflate.dcm": "not one we can decode",
    "liver_rle.dcm": "not as long as",
}
WITHOUT_UIDS = {
    "bad_sequence.dcm": "StudyInstanceUID is not a UID",
    "dwv-test-anonymise.dcm": "SOPClassUID is missing",
    "JLSL_08_07_0_1F.dcm": "StudyInstanceUID is missing",
    "JLSL_RGB_ILV2.dcm": "StudyInstanceUID is missing",
    "HTJ2KLossless_08_RGB.dcm": "StudyInstanceUID is missing",
}


def _files() -> list[Path]:
    found = [path for path in shared("data/dicom").rglob("*") if path.is_file() and path.suffix != ".csv"]
    return sorted(found)


def _try(path: Path) -> Clip | BadInstance:
    try:
        return read_clip([path])
    except BadInstance as error:
        return error


def test_every_file_is_decoded_or_refused_in_words() -> None:
    files = _files()
    assert len(files) == 95
    refused = {}
    for path in files:
        result = _try(path)
        if isinstance(result, BadInstance):
            refused[path.name] = str(result)
            continue
        frames = result.frames
        assert frames.dtype == np.float32
        assert frames.ndim == 3
        assert max(frames.shape[1:]) <= 1024
        assert 0 <= frames.min() <= frames.max() <= 1
        assert result.times_ms.shape == (frames.shape[0],)
    assert set(refused) == set(UNDECODABLE)
    for name, words in UNDECODABLE.items():
        with pytest.raises(BadInstance, match=words):
            raise BadInstance(refused[name])


def test_headers_are_read_or_refused_in_words() -> None:
    refused = {}
    for path in _files():
        try:
            assert read_header(path).study_uid
        except BadInstance as error:
            refused[path.name] = str(error).partition(": ")[0]  # what follows is advice
    expected = dict(WITHOUT_UIDS)
    assert {name: refused.get(name) for name in expected} == expected
    assert set(refused) - set(expected) <= set(UNDECODABLE)


def test_we_decode_what_the_reference_decodes() -> None:
    """files.csv tells which files pydicom decoded, and the hash of what came out."""
    folder = shared("data/dicom")
    with (folder / "files.csv").open() as listing:
        rows = list(csv.DictReader(listing))
    checked = 0
    for row in rows:
        path = folder / row["file"]
        result = _try(path)
        expected = row["decodes"] == "1" or path.name in RETIRED
        assert isinstance(result, Clip) == expected, path.name
        if expected and _is_native(row["transfer_syntax_uid"]):
            values = pydicom.dcmread(path).pixel_array
            assert hashlib.sha256(values.tobytes()).hexdigest().startswith(row["pixel_sha256"])
            if values.dtype.kind in "iu" and row["SamplesPerPixel"] == "1":
                assert value_digest(path) == _digest(values, frames=row["NumberOfFrames"])
                checked += 1
    assert checked > 30


def _digest(values: np.ndarray, *, frames: str) -> str:
    """As `ehr.value_digest` promises, from values decoded by the reference."""
    digest = hashlib.sha256()
    for frame in values if frames else [values]:
        digest.update(str(frame.shape).encode() + np.ascontiguousarray(frame, dtype="<i4").tobytes())
    return digest.hexdigest()


def _is_native(uid: str) -> bool:
    return uid in {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}


def test_one_slice_in_nine_lossless_syntaxes_is_one_picture() -> None:
    lossless = ("BigEndian", "Deflated", "JPEG2000LosslessOnly", "JPEGLSLossless", "JPEGProcess14SV1",
                "JPEGProcess14Transfer",
                "LittleEndianExplicit", "LittleEndianImplicit", "RLELossless")  # fmt: skip
    paths = [
        path
        for path in _files()
        if path.name.startswith("CTImage") and any(one in path.name for one in lossless)
    ]
    assert len(paths) == 9
    assert len({value_digest(path) for path in paths}) == 1
    first = read_clip([paths[0]]).frames
    assert all(np.array_equal(read_clip([path]).frames, first) for path in paths)


@pytest.mark.parametrize(
    ("name", "shape", "step_ms", "spacing"),
    [
        ("cine/DIRW0007", (65, 456, 576), 38.1, 0.5248),
        ("cine/examples_ybr_color.dcm", (30, 240, 320), 33.33, 0.5105),
        ("cine/multiframe-test1.dcm", (16, 256, 256), 69.47, None),
    ],
)
def test_cines_keep_time_and_scale(
    name: str, shape: tuple[int, int, int], step_ms: float, spacing: float | None
) -> None:
    clip = read_clip([shared("data/dicom") / name])
    assert clip.frames.shape == shape
    assert clip.times_ms[-1] / (shape[0] - 1) == pytest.approx(step_ms, rel=0.01)
    assert (clip.spacing_mm[0] if clip.spacing_mm else None) == (
        None if spacing is None else pytest.approx(spacing, rel=0.01)
    )
    moved = np.abs(np.diff(clip.frames, axis=0)).mean()
    assert moved > 0.0005


def test_cardiac_series_is_a_sorted_stack() -> None:
    folder = shared("data/dicom/cardiac_mr_series/SCD0000201")
    paths = sorted(folder.glob("*.dcm"))
    forward, backward = read_clip(paths), read_clip(paths[::-1])
    assert forward.frames.shape == (8, 256, 256)
    np.testing.assert_array_equal(forward.frames, backward.frames)
    assert not forward.times_ms.any()  # places, not moments
