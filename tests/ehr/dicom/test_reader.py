"""One DICOM feature a test: what a Clip and a header say of a file made for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from ehr import BadInstance, pixel_digest, read_clip, read_header, value_digest
from tests.ehr.dicom.making import make_dataset, make_file, save

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = (np.arange(256, dtype=np.uint16) * 16).reshape(16, 16)  # 12 bits


def test_header(tmp_path: Path) -> None:
    path = make_file(
        tmp_path,
        RAMP,
        ViewPosition="PA",
        BodyPartExamined="CHEST",
        IssuerOfPatientID="HOSPITAL",
        InstanceNumber=3,
        BurnedInAnnotation="NO",
    )
    header = read_header(path)
    assert (header.rows, header.columns, header.frames, header.samples, header.bits_allocated) == (
        16,
        16,
        1,
        1,
        8,
    )
    assert (header.modality, header.view_position, header.body_part) == ("CR", "PA", "CHEST")
    assert (header.patient_id, header.issuer_of_patient_id) == ("MRN-p1", "HOSPITAL")
    assert header.started_at == datetime(2026, 3, 1, 10, 15, tzinfo=UTC)
    assert header.instance_number == 3
    assert header.burned_in_annotation is False
    assert header.has_pixels
    assert read_header(path.read_bytes()) == header


@pytest.mark.parametrize(
    ("elements", "zone", "expected"),
    [
        ({"TimezoneOffsetFromUTC": "+0200"}, "UTC", datetime(2026, 3, 1, 8, 15, tzinfo=UTC)),
        ({}, "Europe/Berlin", datetime(2026, 3, 1, 9, 15, tzinfo=UTC)),
        ({"StudyTime": "10"}, "UTC", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ({"StudyTime": "101500.25"}, "UTC", datetime(2026, 3, 1, 10, 15, 0, 250_000, tzinfo=UTC)),
        (
            {"StudyTime": ""},
            "UTC",
            datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC),
        ),  # never earlier than the truth
        ({"StudyDate": ""}, "UTC", None),
    ],
)
def test_study_time(tmp_path: Path, elements: dict[str, str], zone: str, expected: datetime | None) -> None:
    assert read_header(make_file(tmp_path, RAMP, **elements), default_tz=zone).started_at == expected


def test_eight_bits_keep_their_full_range(tmp_path: Path) -> None:
    clip = read_clip([make_file(tmp_path, RAMP // 2)])
    assert clip.frames.dtype == np.float32
    assert clip.frames.shape == (1, 16, 16)
    np.testing.assert_allclose(clip.frames[0], (RAMP // 2) / 255, atol=1e-4)
    assert list(clip.times_ms) == [0]
    assert clip.spacing_mm is None


def test_window_after_rescale(tmp_path: Path) -> None:
    path = make_file(
        tmp_path,
        DEEP,
        BitsStored=12,
        HighBit=11,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=0,
        WindowWidth=1001,
    )
    expected = np.clip((DEEP * 2.0 - 1000 + 0.5) / 1000 + 0.5, 0, 1)
    np.testing.assert_allclose(read_clip([path]).frames[0], expected, atol=1e-4)


def test_window_functions(tmp_path: Path) -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 1000}
    exact = read_clip([make_file(tmp_path, DEEP, VOILUTFunction="LINEAR_EXACT", **window)]).frames[0]
    np.testing.assert_allclose(exact, np.clip((DEEP - 2000.0) / 1000 + 0.5, 0, 1), atol=1e-4)
    sigmoid = read_clip([make_file(tmp_path, DEEP, VOILUTFunction="SIGMOID", **window)]).frames[0]
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-4 * (DEEP - 2000.0) / 1000)), atol=1e-4)


def test_dense_is_bright_in_monochrome1(tmp_path: Path) -> None:
    bright = read_clip([make_file(tmp_path, RAMP)]).frames
    dark = read_clip([make_file(tmp_path, RAMP, PhotometricInterpretation="MONOCHROME1")]).frames
    np.testing.assert_allclose(dark, 1 - bright, atol=1e-4)


def test_signed_values(tmp_path: Path) -> None:
    values = (DEEP.astype(np.int16)) - 2000
    path = make_file(tmp_path, values, WindowCenter=0, WindowWidth=2, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(read_clip([path]).frames[0], np.clip(values / 2 + 0.5, 0, 1), atol=1e-4)


def test_odd_bit_depth_with_foreign_high_bits(tmp_path: Path) -> None:
    stored = (RAMP.astype(np.uint16) * 4) | 0x8000  # 10 bits stored; the top bit is somebody's overlay
    path = make_file(tmp_path, stored, BitsStored=10, HighBit=9, WindowCenter=512, WindowWidth=1024,
                     VOILUTFunction="LINEAR_EXACT")  # fmt: skip
    np.testing.assert_allclose(read_clip([path]).frames[0], RAMP.astype(float) * 4 / 1024, atol=1e-4)


def test_without_window_deep_values_are_stretched_and_it_is_said(tmp_path: Path) -> None:
    clip = read_clip([make_file(tmp_path, DEEP, BitsStored=12, HighBit=11)])
    assert clip.frames.min() == 0
    assert clip.frames.max() == 1
    assert any("no window" in note for note in clip.notes)


def test_padding_is_black_and_does_not_stretch(tmp_path: Path) -> None:
    values = DEEP.copy()
    values[0, 0] = 60000
    clip = read_clip([make_file(tmp_path, values, PixelPaddingValue=60000)])
    assert clip.frames[0, 0, 0] == 0
    assert clip.frames[0, 15, 15] == 1


def test_modality_lut_and_voi_lut(tmp_path: Path) -> None:
    modality = Dataset()
    modality.LUTDescriptor, modality.ModalityLUTType = [256, 0, 16], "US"
    modality.add_new("LUTData", "US", [int(value) for value in 255 - np.arange(256)])
    voi = Dataset()
    voi.LUTDescriptor = [256, 0, 8]
    voi.add_new("LUTData", "US", [int(value) for value in np.arange(256) // 2])
    path = make_file(tmp_path, RAMP, ModalityLUTSequence=Sequence([modality]), VOILUTSequence=Sequence([voi]))
    np.testing.assert_allclose(read_clip([path]).frames[0], ((255 - RAMP) // 2) / 255, atol=1e-4)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_allclose(read_clip([make_file(tmp_path, red)]).frames, 0.299, atol=1e-3)
    luminance = np.dstack([np.full((4, 4), y, np.uint8) for y in (100, 30, 220)])
    path = make_file(tmp_path, luminance, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(read_clip([path]).frames, 100 / 255, atol=1e-3)


def test_palette(tmp_path: Path) -> None:
    tables = {}
    for name in ("Red", "Green", "Blue"):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tables[f"{name}PaletteColorLookupTableData"] = bytes(255 - np.arange(256, dtype=np.uint8))
    path = make_file(tmp_path, RAMP, PhotometricInterpretation="PALETTE COLOR", **tables)
    np.testing.assert_allclose(read_clip([path]).frames[0], (255 - RAMP) / 255, atol=1e-3)


CINE = np.stack([np.full((8, 12), 10 * place, np.uint8) for place in range(6)])


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"FrameTime": 40}, [0, 40, 80, 120, 160, 200]),
        ({"FrameTimeVector": [0, 30, 50, 30, 50, 30]}, [0, 30, 80, 110, 160, 190]),
        ({"RecommendedDisplayFrameRate": 50}, [0, 20, 40, 60, 80, 100]),
        ({"CineRate": 25}, [0, 40, 80, 120, 160, 200]),
        ({}, [0] * 6),
    ],
)
def test_cine_times(tmp_path: Path, elements: dict[str, object], expected: list[float]) -> None:
    clip = read_clip([make_file(tmp_path, CINE, Modality="US", **elements)])
    assert clip.frames.shape == (6, 8, 12)
    assert clip.times_ms.tolist() == pytest.approx(expected)
    assert ("no frame timing in the file" in clip.notes) == (not elements)


def test_long_clips_keep_frames_all_over(tmp_path: Path) -> None:
    clip = read_clip([make_file(tmp_path, CINE, Modality="US", FrameTime=40)], max_frames=3)
    assert clip.frames.shape[0] == 3
    assert clip.times_ms.tolist() == [0, 80, 200]
    assert "3 of 6 frames kept, evenly spaced" in clip.notes


def _region() -> Dataset:
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, 0.04  # cm
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = 10
    return region


@pytest.mark.parametrize(
    ("elements", "spacing", "source"),
    [
        ({"PixelSpacing": [0.2, 0.3]}, (0.2, 0.3), "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.1, 0.1]}, (0.1, 0.1), "ImagerPixelSpacing"),
        ({"SequenceOfUltrasoundRegions": Sequence([_region()])}, (0.4, 0.5), "SequenceOfUltrasoundRegions"),
        ({}, None, ""),
    ],
)
def test_spacing(tmp_path: Path, elements: dict[str, object], spacing: object, source: str) -> None:
    clip = read_clip([make_file(tmp_path, RAMP, **elements)])
    assert clip.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    assert clip.spacing_source == source


def test_large_images_shrink_and_their_spacing_grows(tmp_path: Path) -> None:
    image = np.kron(np.array([[0, 200], [100, 50]], np.uint8), np.ones((32, 64), np.uint8))
    clip = read_clip([make_file(tmp_path, image, PixelSpacing=[0.2, 0.2])], max_side=32)
    assert clip.frames.shape == (1, 16, 32)
    assert clip.spacing_mm == pytest.approx((0.8, 0.8))
    np.testing.assert_allclose(clip.frames[0, 4, 24], 200 / 255, atol=1e-3)
    assert clip.frames.mean() == pytest.approx(image.mean() / 255, abs=1e-3)


def test_overlay_and_annotation_are_noted(tmp_path: Path) -> None:
    data = make_dataset(RAMP, BurnedInAnnotation="YES")
    data.add_new(0x60003000, "OW", b"\0" * 32)
    clip = read_clip([save(data, tmp_path / "a.dcm")])
    assert {"overlay ignored", "burned-in annotation"} <= set(clip.notes)


def test_slices_are_sorted_along_their_normal(tmp_path: Path) -> None:
    paths = [
        make_file(
            tmp_path,
            np.full((4, 4), depth * 20, np.uint8),
            f"{depth}.dcm",
            Modality="MR",
            InstanceNumber=number,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, depth],
        )
        for number, depth in enumerate((5, 1, 9, 3))
    ]
    assert (read_clip(paths).frames[:, 0, 0] * 255 / 20).round().tolist() == [1, 3, 5, 9]


@pytest.mark.parametrize(
    ("depths", "step"), [((0, 2.5, 5, 7.5), 2.5), ((0, 2.5, 5, 9), None), ((10, 5, 0, -5), 5.0)]
)
def test_evenly_spaced_slices_are_a_volume(
    tmp_path: Path, depths: tuple[float, ...], step: float | None
) -> None:
    paths = [
        make_file(
            tmp_path, RAMP, f"{number}.dcm", Modality="CT",
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[0, 0, depth],
        )
        for number, depth in enumerate(depths)
    ]  # fmt: skip
    clip = read_clip(paths)
    assert clip.slice_mm == step
    assert ("slices unevenly spaced: no volume" in clip.notes) is (step is None)
    thinned = read_clip(paths, max_frames=2)
    assert thinned.slice_mm == (None if step is None else 3 * step)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1], "ImagePositionPatient": [15, 0, 0]}, "planes"),
        ({"PixelSpacing": [2.0, 2.0]}, "pixel spacing"),
        ({"ImagePositionPatient": [0, 4, 15]}, "slant"),
    ],
)
def test_even_slices_that_make_no_block_are_no_volume_and_it_is_said(
    tmp_path: Path, odd: dict[str, list[float]], words: str
) -> None:
    """The last slice of an even stack is turned, of other pixels, or moved aside."""
    usual = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1.0, 1.0]}
    paths = [
        make_file(
            tmp_path, RAMP, f"{number}.dcm", Modality="CT",
            **{**usual, "ImagePositionPatient": [0, 0, 5.0 * number], **(odd if number == 3 else {})},
        )
        for number in range(4)
    ]  # fmt: skip
    clip = read_clip(paths)
    assert clip.slice_mm is None
    assert any(words in note and "no volume" in note for note in clip.notes)


def test_phases_at_one_place_are_sorted_in_time(tmp_path: Path) -> None:
    paths = [
        make_file(
            tmp_path,
            np.full((4, 4), trigger, np.uint8),
            f"{trigger}.dcm",
            Modality="MR",
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, 7],
            TriggerTime=trigger,
        )
        for trigger in (100, 20, 60)
    ]
    assert read_clip(paths).times_ms.tolist() == [0, 40, 80]
    assert read_clip(paths).slice_mm is None


def test_of_several_radiographs_a_frontal_one_is_shown_and_it_is_said(tmp_path: Path) -> None:
    paths = [
        make_file(
            tmp_path,
            np.full((4, 4), value, np.uint8),
            f"{value}.dcm",
            ViewPosition=view,
            InstanceNumber=value,
        )
        for value, view in ((10, "LL"), (200, "PA"))
    ]
    clip = read_clip(paths)
    assert clip.frames.shape == (1, 4, 4)
    np.testing.assert_allclose(clip.frames, 200 / 255, atol=1e-3)
    assert "one view shown; 1 more in this Series" in clip.notes


def test_of_several_clips_the_longest_is_shown(tmp_path: Path) -> None:
    paths = [
        make_file(tmp_path, CINE[:2], "short.dcm", Modality="US", FrameTime=40),
        make_file(tmp_path, CINE, "long.dcm", Modality="US", FrameTime=40),
    ]
    assert read_clip(paths).frames.shape[0] == 6


def test_one_damaged_slice_does_not_cost_the_others(tmp_path: Path) -> None:
    place = {"Modality": "MR", "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    paths = [
        make_file(tmp_path, RAMP, f"{depth}.dcm", ImagePositionPatient=[0, 0, depth], **place)
        for depth in range(3)
    ]
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    clip = read_clip(paths)
    assert clip.frames.shape[0] == 2
    assert any("1 of 3 instances left out" in note for note in clip.notes)


def test_no_preamble_is_read_when_it_is_truly_a_data_set(tmp_path: Path) -> None:
    data = make_dataset(RAMP)
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    whole = save(data, tmp_path / "whole.dcm")
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(whole.read_bytes()[_data_set_at(whole) :])
    assert read_header(bare).study_uid == read_header(whole).study_uid
    assert read_header(bare).transfer_syntax_uid == ImplicitVRLittleEndian
    np.testing.assert_array_equal(read_clip([bare]).frames, read_clip([whole]).frames)


def _data_set_at(path: Path) -> int:
    return path.read_bytes().index(b"\x08\x00\x16\x00")  # SOPClassUID (0008,0016), first of the data set


def test_deflated(tmp_path: Path) -> None:
    data = make_dataset(RAMP)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(data, tmp_path / "deflated.dcm")
    assert read_header(path).transfer_syntax_uid == DeflatedExplicitVRLittleEndian
    np.testing.assert_allclose(read_clip([path]).frames[0], RAMP / 255, atol=1e-4)
    assert len(pixel_digest(path)) == 64


def test_digests_tell_same_pixels_from_same_values(tmp_path: Path) -> None:
    data = make_dataset(DEEP)
    plain = save(data, tmp_path / "plain.dcm")
    again = make_file(tmp_path, DEEP, "again.dcm", PatientID="somebody else")
    other = make_file(tmp_path, DEEP + 1, "other.dcm")
    data.compress(RLELossless, generate_instance_uid=False)
    packed = save(data, tmp_path / "packed.dcm")
    assert pixel_digest(plain) == pixel_digest(again) != pixel_digest(other)
    assert pixel_digest(plain) != pixel_digest(packed)
    assert value_digest(plain) == value_digest(packed) != value_digest(other)


BAD = [
    (b"", "empty"),
    (b"%PDF-1.7 this is not DICOM at all" * 20, "not a DICOM file"),
    (b"\0" * 128 + b"DICM", "no data set"),
    (b"\x08\x00\x16\x00UI" + b"\xff" * 300, "missing|parsed|data set"),
]


@pytest.mark.parametrize(("content", "words"), BAD)
def test_what_is_not_dicom_is_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.dcm"
    path.write_bytes(content)
    with pytest.raises(BadInstance, match=words):
        read_header(path)
    with pytest.raises(BadInstance):
        read_clip([path])


def test_truncated_pixels(tmp_path: Path) -> None:
    path = make_file(tmp_path, DEEP)
    path.write_bytes(path.read_bytes()[:-40])
    assert read_header(path).has_pixels
    with pytest.raises(BadInstance, match="truncated"):
        pixel_digest(path)
    with pytest.raises(BadInstance, match="truncated"):
        read_clip([path])


def test_truncated_before_the_pixels(tmp_path: Path) -> None:
    path = make_file(tmp_path, RAMP)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(BadInstance):
        read_clip([path])


def test_report_without_pixels(tmp_path: Path) -> None:
    path = make_file(tmp_path, Modality="SR")
    assert not read_header(path).has_pixels
    with pytest.raises(BadInstance, match=r"no pixel data \(Modality SR\)"):
        read_clip([path])


@pytest.mark.parametrize("uid", ["", "../../etc/passwd", "1.2." + "3" * 70])
def test_unusable_uids(tmp_path: Path, uid: str) -> None:
    data = make_dataset(RAMP)
    data.add_new("StudyInstanceUID", "UI", uid)
    with pytest.raises(BadInstance, match="StudyInstanceUID"):
        read_header(save(data, tmp_path / "bad.dcm"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInstance, match="cannot be opened"):
        read_header(tmp_path / "nowhere.dcm")
    with pytest.raises(BadInstance, match="not a regular file"):
        read_header(tmp_path)


def test_reasons_name_no_patient(tmp_path: Path) -> None:
    data = make_dataset(RAMP, PatientID="SECRET-4711")
    data.add_new("StudyInstanceUID", "UI", "SECRET-4711")
    with pytest.raises(BadInstance) as refused:
        read_header(save(data, tmp_path / "bad.dcm"))
    assert "SECRET" not in str(refused.value)


def test_study_begins_in_its_own_zone(tmp_path: Path) -> None:
    at = read_header(make_file(tmp_path, RAMP, TimezoneOffsetFromUTC="-0530")).started_at
    assert at is not None
    assert at.utcoffset() == -timedelta(hours=5, minutes=30)


def _smooth(rows: int, columns: int, dtype: type, top: int) -> np.ndarray:
    y, x = np.mgrid[0:rows, 0:columns]
    return ((np.sin(y / 40) * np.cos(x / 50) + 1) / 2 * top).astype(dtype)


@pytest.mark.parametrize(("dtype", "top", "bits"), [(np.uint8, 255, 8), (np.uint16, 4095, 12)])
def test_a_large_jpeg_2000_is_decoded_at_the_resolution_that_is_needed(
    tmp_path: Path, dtype: type, top: int, bits: int
) -> None:
    picture = _smooth(400, 300, dtype, top)
    data = make_dataset(picture, BitsStored=bits, HighBit=bits - 1, WindowCenter=top / 2, WindowWidth=top + 1)
    whole = read_clip([save(data, tmp_path / "raw.dcm")], max_side=100)
    data.compress(JPEG2000Lossless, generate_instance_uid=False)
    small = read_clip([save(data, tmp_path / "j2k.dcm")], max_side=100)
    assert small.frames.shape == whole.frames.shape == (1, 100, 75)
    assert np.abs(small.frames - whole.frames).max() < 0.03  # a quarter of a pixel to the side, no more
    assert "JPEG 2000 decoded at a lower resolution level" in small.notes
    full = read_clip([tmp_path / "j2k.dcm"], max_side=400)
    assert np.array_equal(full.frames, read_clip([tmp_path / "raw.dcm"], max_side=400).frames)


def test_a_damaged_jpeg_2000_is_still_a_reason_in_words(tmp_path: Path) -> None:
    data = make_dataset(_smooth(400, 300, np.uint8, 255))
    data.compress(JPEG2000Lossless, generate_instance_uid=False)
    data.PixelData = data.PixelData[:60] + bytes(len(data.PixelData) - 60)
    with pytest.raises(BadInstance, match="damaged"):
        read_clip([save(data, tmp_path / "cut.dcm")], max_side=100)
