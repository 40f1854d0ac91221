"""Issue 4 item 6 and INTEROP 41, line by line: every transfer syntax, kind of pixel and look-up table.

Files are made here, a few hundred pixels each; what is expected is the array they were made from, or what
pydicom's own functions make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ehr import BadInstance, Clip, read_clip
from tests.ehr.dicom.making import make_dataset, save

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
LARGE = np.kron(RAMP, np.ones((4, 4), np.uint8))
DEEP = np.kron((np.arange(256, dtype=np.uint16) * 16).reshape(16, 16), np.ones((4, 4), np.uint16))
COLOUR = np.stack([LARGE, LARGE[::-1], LARGE.T], -1)
LUMINANCE = COLOUR @ np.array([0.299, 0.587, 0.114]) / 255
TWELVE = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
EXACT = {"VOILUTFunction": "LINEAR_EXACT"}
Encoded = bytes | bytearray
STEP = 1e-4  # of the Clip's grey levels, 1/65535, and of rounding


def clip_of(data: FileDataset, folder: Path, **kwargs: Any) -> Clip:
    return read_clip([save(data, folder / "one.dcm")], **kwargs)


def frame_of(data: FileDataset, folder: Path) -> np.ndarray:
    frame: np.ndarray = clip_of(data, folder).frames[0]
    return frame


def encoded(syntax: str, coded: Encoded, pixels: np.ndarray, **elements: Any) -> FileDataset:
    data = make_dataset(pixels, **elements)
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.PixelData = encapsulate([bytes(coded)])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    return data


CODED: list[tuple[UID, Callable[[], Encoded], float]] = [
    (RLELossless, lambda: b"", STEP),
    (JPEGExtended12Bit, lambda: imagecodecs.jpeg8_encode(DEEP, level=100, bitspersample=12), 2e-3),
    (JPEGLossless, lambda: imagecodecs.ljpeg_encode(DEEP, bitspersample=12), STEP),
    (JPEGLosslessSV1, lambda: imagecodecs.ljpeg_encode(DEEP, bitspersample=12), STEP),
    (JPEGLSLossless, lambda: imagecodecs.jpegls_encode(DEEP), STEP),
    (JPEGLSNearLossless, lambda: imagecodecs.jpegls_encode(DEEP, level=2), 1e-3),
    (JPEG2000Lossless, lambda: imagecodecs.jpeg2k_encode(DEEP, codecformat="J2K", level=0), STEP),
    (JPEG2000, lambda: imagecodecs.jpeg2k_encode(DEEP, codecformat="J2K", level=100), 1e-3),
    (HTJ2KLossless, lambda: imagecodecs.htj2k_encode(DEEP), STEP),
    (HTJ2KLosslessRPCL, lambda: imagecodecs.htj2k_encode(DEEP), STEP),
    (HTJ2K, lambda: imagecodecs.htj2k_encode(DEEP), STEP),
]


@pytest.mark.parametrize(("syntax", "encode", "near"), CODED, ids=[one[0].name for one in CODED])
def test_compressed(tmp_path: Path, syntax: str, encode: Callable[[], Encoded], near: float) -> None:
    if syntax == RLELossless:
        data = make_dataset(DEEP, **TWELVE)
        data.compress(RLELossless, generate_instance_uid=False)
    else:
        data = encoded(syntax, encode(), DEEP, **TWELVE)
    np.testing.assert_allclose(frame_of(data, tmp_path), DEEP / 4095, atol=near)


def test_jpeg_baseline(tmp_path: Path) -> None:
    data = encoded(JPEGBaseline8Bit, imagecodecs.jpeg8_encode(LARGE, level=100), LARGE)
    np.testing.assert_allclose(frame_of(data, tmp_path), LARGE / 255, atol=5e-3)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda one: one.name,
)
def test_uncompressed(tmp_path: Path, syntax: str) -> None:
    data = make_dataset(DEEP, **TWELVE)
    data.file_meta.TransferSyntaxUID = UID(syntax)
    path = tmp_path / "one.dcm"
    if syntax == ExplicitVRBigEndian:
        data.PixelData = DEEP.astype(">u2").tobytes()
        plain = Dataset(data)
        plain.file_meta = data.file_meta
        dcmwrite(path, plain, implicit_vr=False, little_endian=False, enforce_file_format=True)
    else:
        save(data, path)
    np.testing.assert_allclose(read_clip([path]).frames[0], DEEP / 4095, atol=STEP)


def _subsampled(luminance: np.ndarray) -> bytes:
    body = np.zeros((luminance.shape[0], luminance.shape[1] // 2, 4), np.uint8)
    body[..., 0], body[..., 1] = luminance[:, ::2], luminance[:, 1::2]
    body[..., 2], body[..., 3] = 90, 200
    return body.tobytes()


def _colours() -> dict[str, tuple[FileDataset, np.ndarray, float]]:
    """name → (a data set, its luminance, how near)."""
    planar = make_dataset(COLOUR, PlanarConfiguration=1)
    planar.PixelData = np.moveaxis(COLOUR, -1, 0).tobytes()
    half = make_dataset(COLOUR, PhotometricInterpretation="YBR_FULL_422")
    half.PixelData = _subsampled(LARGE)
    packed = make_dataset(COLOUR)
    packed.compress(RLELossless, generate_instance_uid=False)
    jpeg = imagecodecs.jpeg8_encode(COLOUR, level=100, subsampling="422")
    lossless = imagecodecs.jpeg2k_encode(COLOUR, codecformat="J2K", level=0, reversible=True, mct=True)
    lossy = imagecodecs.jpeg2k_encode(COLOUR, codecformat="J2K", level=70, reversible=False, mct=True)
    return {
        "RGB, by pixel": (make_dataset(COLOUR), LUMINANCE, STEP),
        "RGB, by plane": (planar, LUMINANCE, STEP),
        "RGB in RLE": (packed, LUMINANCE, STEP),
        "YBR_FULL": (make_dataset(COLOUR, PhotometricInterpretation="YBR_FULL"), LARGE / 255, STEP),
        "YBR_FULL_422": (half, LARGE / 255, STEP),
        "YBR_FULL_422 in JPEG": (
            encoded(JPEGBaseline8Bit, jpeg, COLOUR, PhotometricInterpretation="YBR_FULL_422"),
            LUMINANCE, 1e-2,
        ),
        "YBR_RCT": (
            encoded(JPEG2000Lossless, lossless, COLOUR, PhotometricInterpretation="YBR_RCT"), LUMINANCE, STEP,
        ),
        "YBR_ICT": (
            encoded(JPEG2000, lossy, COLOUR, PhotometricInterpretation="YBR_ICT"), LUMINANCE, 1e-2,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_colours()))
def test_colour(tmp_path: Path, name: str) -> None:
    data, luminance, near = _colours()[name]
    np.testing.assert_allclose(frame_of(data, tmp_path), luminance, atol=near)


def _palette(bits: int, first: int = 0, entries: int = 256, *, segmented: bool = False) -> dict[str, Any]:
    """Elements of a palette; its colours fall from white, each at another pace."""
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, pace in (("Red", 1), ("Green", 2), ("Blue", 3)):
        values = (255 - np.arange(entries) // pace) * (257 if bits == 16 else 1)
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [entries, first, bits]
        if segmented:  # PS3.3 C.7.9.2: a discrete segment, then a linear one
            steps = np.array([0, 1, values[0], 1, entries - 1, values[-1]], "<u2")
            elements[f"Segmented{colour}PaletteColorLookupTableData"] = steps.tobytes()
        else:
            kind = "<u2" if bits == 16 else "u1"
            elements[f"{colour}PaletteColorLookupTableData"] = values.astype(kind).tobytes()
    return elements


@pytest.mark.parametrize(
    ("elements", "compressed"),
    [
        (_palette(8), False),
        (_palette(16), False),
        (_palette(16), True),
        (_palette(16, first=10, entries=200), False),
        (_palette(16, segmented=True), False),
    ],
    ids=["8 bits", "16 bits", "16 bits in RLE", "from 10 to 209", "segmented"],
)
def test_palette_colour(tmp_path: Path, elements: dict[str, Any], compressed: bool) -> None:
    data = make_dataset(RAMP, **elements)
    reference = apply_color_lut(RAMP, data)
    top = 255 if reference.dtype == np.uint8 else 65535
    if compressed:
        data.compress(RLELossless, generate_instance_uid=False)
    expected = reference[..., :3] @ np.array([0.299, 0.587, 0.114]) / top
    np.testing.assert_allclose(frame_of(data, tmp_path), expected, atol=STEP)


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_floating_point(tmp_path: Path, kind: str) -> None:
    values = np.linspace(-3, 5, 256).reshape(16, 16).astype(kind)
    data = make_dataset(RAMP, WindowCenter=1, WindowWidth=4)
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    data.BitsAllocated = values.dtype.itemsize * 8
    setattr(data, "FloatPixelData" if kind == "<f4" else "DoubleFloatPixelData", values.tobytes())
    np.testing.assert_allclose(frame_of(data, tmp_path), np.clip((values - 1) / 4 + 0.5, 0, 1), atol=STEP)


def test_one_bit(tmp_path: Path) -> None:
    mask = (np.indices((2, 5, 7)).sum(0) % 2).astype(np.uint8)  # frames that end within a byte
    data = make_dataset(mask, BitsAllocated=1, BitsStored=1, HighBit=0)
    bits = np.packbits(mask.ravel(), bitorder="little").tobytes()
    data.PixelData = bits + b"\0" * (len(bits) % 2)
    np.testing.assert_array_equal(clip_of(data, tmp_path).frames, mask)


def _packed(values: np.ndarray) -> bytes:
    """Cells of 12 bits end to end."""
    bits = (values.ravel()[:, None] >> np.arange(12)) & 1
    packed = np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()
    return packed + b"\0" * (len(packed) % 2)


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (3, 5)])
@pytest.mark.parametrize("signed", [False, True])
def test_twelve_bits_packed(tmp_path: Path, rows: int, columns: int, signed: bool) -> None:
    stored = (np.arange(3 * rows * columns).reshape(3, rows, columns) * 37 % 4096).astype(np.uint16)
    data = make_dataset(stored, **TWELVE, **EXACT)
    data.BitsAllocated, data.PixelRepresentation = 12, int(signed)
    data.PixelData = _packed(stored)
    values = stored.astype(float)
    if signed:
        values[values >= 2048] -= 4096
        data.WindowCenter = 0
    expected = np.clip((values - float(data.WindowCenter)) / 4096 + 0.5, 0, 1)
    np.testing.assert_allclose(clip_of(data, tmp_path).frames, expected, atol=STEP)
    data.PixelData = data.PixelData[:-4]
    with pytest.raises(BadInstance, match="truncated"):
        clip_of(data, tmp_path)


@pytest.mark.parametrize("bits", [1, 3, 7, 9, 10, 11, 13, 14, 15, 16, 20])
@pytest.mark.parametrize("signed", [False, True])
def test_odd_bit_depths_and_signs_with_foreign_bits_above(tmp_path: Path, bits: int, signed: bool) -> None:
    kind = np.uint16 if bits <= 16 else np.uint32
    size = np.dtype(kind).itemsize * 8
    values = np.linspace(0, 2**bits - 1, 256).astype(np.int64).reshape(16, 16)
    values = values - 2 ** (bits - 1) if signed else values
    foreign = 0 if bits == size else 1 << bits  # the next bit is somebody else's
    stored = ((values & (2**bits - 1)) | foreign).astype(kind)
    centre = 0 if signed else 2 ** (bits - 1)
    data = make_dataset(stored, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=int(signed),
                        WindowCenter=centre, WindowWidth=2**bits, **EXACT)  # fmt: skip
    expected = np.clip((values - centre) / 2**bits + 0.5, 0, 1)
    np.testing.assert_allclose(frame_of(data, tmp_path), expected, atol=STEP)


@pytest.mark.parametrize("high", [13, 15])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_stored_bits_at_the_top_of_the_cell(
    tmp_path: Path, high: int, signed: bool, compressed: bool
) -> None:
    values = np.arange(256, dtype=np.int64).reshape(16, 16) * 16 - (2048 if signed else 0)
    stored = ((values & 0x0FFF) << (high - 11) | 1).astype(np.uint16)
    data = make_dataset(stored, BitsStored=12, HighBit=high, PixelRepresentation=int(signed),
                        WindowCenter=0 if signed else 2048, WindowWidth=4096, **EXACT)  # fmt: skip
    if compressed:
        data.compress(RLELossless, generate_instance_uid=False)
    expected = np.clip((values - (0 if signed else 2048)) / 4096 + 0.5, 0, 1)
    np.testing.assert_allclose(frame_of(data, tmp_path), expected, atol=STEP)


@pytest.mark.parametrize("where", ["its own element", "a bit of the pixels"])
def test_overlays_are_ignored_and_noted(tmp_path: Path, where: str) -> None:
    stored = RAMP.astype(np.uint16) * 4
    elements = {"BitsStored": 10, "HighBit": 9, "WindowCenter": 512, "WindowWidth": 1024, **EXACT}
    plain = clip_of(make_dataset(stored, **elements), tmp_path)
    assert "overlay ignored" not in plain.notes
    data = make_dataset(stored | 0x8000 if where == "a bit of the pixels" else stored, **elements)
    data.add_new(0x60000010, "US", 16)
    data.add_new(0x60000011, "US", 16)
    data.add_new(0x60000100, "US", 16 if where == "a bit of the pixels" else 1)
    data.add_new(0x60000102, "US", 15 if where == "a bit of the pixels" else 0)
    if where == "its own element":
        data.add_new(0x60003000, "OW", b"\xff" * 32)
    with_overlay = clip_of(data, tmp_path)
    assert "overlay ignored" in with_overlay.notes
    np.testing.assert_array_equal(with_overlay.frames, plain.frames)


@pytest.mark.parametrize("shape", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_are_those_of_pydicom(tmp_path: Path, shape: str, signed: bool) -> None:
    stored = DEEP.astype(np.int16) - 2000 if signed else DEEP
    data = make_dataset(stored, BitsStored=12, HighBit=11, RescaleSlope=1.5, RescaleIntercept=-1024,
                        WindowCenter=[40, 500], WindowWidth=[400, 90], VOILUTFunction=shape)  # fmt: skip
    if signed:
        data.BitsStored, data.HighBit = 16, 15
    bits = data.BitsStored
    rescaled = apply_modality_lut(stored, data)
    reference = apply_voi_lut(rescaled, data, index=0)
    low = 1.5 * (-(2 ** (bits - 1)) if signed else 0) - 1024  # the range that pydicom maps to
    high = 1.5 * (2 ** (bits - 1) - 1 if signed else 2**bits - 1) - 1024
    np.testing.assert_allclose(frame_of(data, tmp_path), (reference - low) / (high - low), atol=STEP)


def _table(first: int, values: np.ndarray, bits: int, **elements: Any) -> Dataset:
    table = Dataset()
    table.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(values), first, bits])
    table.add_new("LUTData", "US", [int(value) for value in values])
    for keyword, value in elements.items():
        setattr(table, keyword, value)
    return table


@pytest.mark.parametrize("bits", [8, 10, 16])
def test_tables_are_those_of_pydicom(tmp_path: Path, bits: int) -> None:
    """A modality LUT that begins above 0, then a VOI LUT of 12 bits; values beyond them take their ends."""
    values = np.arange(200) ** 2 // (160 if bits == 8 else 40)
    voi = _table(100, np.minimum(4095, np.arange(700) * 6), 12)
    data = make_dataset(RAMP, VOILUTSequence=Sequence([voi]))
    data.ModalityLUTSequence = Sequence([_table(20, values, 16, ModalityLUTType="US")])
    reference = apply_voi_lut(apply_modality_lut(RAMP, data), data, index=0)
    data.ModalityLUTSequence = Sequence([_table(20, values, bits, ModalityLUTType="US")])
    assert len(np.unique(reference)) > 50
    np.testing.assert_allclose(frame_of(data, tmp_path), reference / 4095, atol=STEP)


def test_a_table_is_asked_before_a_window(tmp_path: Path) -> None:
    """Both may stand in a file; which one is shown is ours to choose (PS3.3 C.11.2): the table."""
    voi = _table(0, 255 - np.arange(256), 8)
    data = make_dataset(RAMP, VOILUTSequence=Sequence([voi]), WindowCenter=10, WindowWidth=4)
    np.testing.assert_allclose(frame_of(data, tmp_path), 1 - RAMP / 255, atol=STEP)


def test_dense_is_bright_in_monochrome1_after_its_window(tmp_path: Path) -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 900, "BitsStored": 12, "HighBit": 11}
    usual = frame_of(make_dataset(DEEP, **window), tmp_path)
    inverted = make_dataset(DEEP, PhotometricInterpretation="MONOCHROME1", **window)
    inverted.compress(JPEGLSLossless, generate_instance_uid=False)
    np.testing.assert_allclose(frame_of(inverted, tmp_path), 1 - usual, atol=STEP)


def _region(kind: int, corners: tuple[int, int, int, int], delta: float) -> Dataset:
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = kind
    region.PhysicalDeltaX, region.PhysicalDeltaY = delta, -delta
    for end, value in zip(("MinX0", "MinY0", "MaxX1", "MaxY1"), corners, strict=True):
        setattr(region, f"RegionLocation{end}", value)
    return region


def test_of_several_ultrasound_regions_the_largest_in_centimetres_is_the_scale(tmp_path: Path) -> None:
    picture, doppler, inset = (
        _region(3, (0, 0, 12, 12), 0.05), _region(4, (0, 0, 16, 16), 0.7), _region(3, (0, 0, 4, 4), 0.01),
    )  # fmt: skip
    clip = clip_of(
        make_dataset(RAMP, Modality="US", SequenceOfUltrasoundRegions=Sequence([inset, doppler, picture])),
        tmp_path,
    )
    assert clip.spacing_mm == pytest.approx((0.5, 0.5))
    assert clip.spacing_source == "SequenceOfUltrasoundRegions"
    seconds = make_dataset(RAMP, Modality="US", SequenceOfUltrasoundRegions=Sequence([doppler]))
    assert clip_of(seconds, tmp_path).spacing_mm is None


@pytest.mark.parametrize("normal", ["oblique", "downwards"])
def test_slices_of_any_direction_are_sorted_along_their_normal(tmp_path: Path, normal: str) -> None:
    axes = [0.8, 0.6, 0, 0, 0, -1] if normal == "oblique" else [1, 0, 0, 0, -1, 0]
    along = np.cross(axes[:3], axes[3:])
    paths = []
    for number, depth in enumerate((3, 0, 2, 1)):
        position = [float(value) for value in np.array([10.0, -20, 30]) + along * depth * 2.5]
        data = make_dataset(np.full((4, 4), 50 * depth, np.uint8), Modality="CT", InstanceNumber=number,
                            ImageOrientationPatient=axes, ImagePositionPatient=position)  # fmt: skip
        paths.append(save(data, tmp_path / f"{number}.dcm"))
    clip = read_clip(paths)
    assert (clip.frames[:, 0, 0] * 255 / 50).round().tolist() == [0, 1, 2, 3]
    assert clip.slice_mm == pytest.approx(2.5)


def _enhanced(depths: list[float]) -> FileDataset:
    """An enhanced CT whose frames lie at these depths, in this order."""
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SpacingBetweenSlices = [0.7, 0.7], 1.0
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.PixelMeasuresSequence = Sequence([measures])
    groups = []
    for depth in depths:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, depth]
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    pixels = np.stack([np.full((4, 4), int(10 * depth), np.uint8) for depth in depths])
    return make_dataset(pixels, Modality="CT", SharedFunctionalGroupsSequence=Sequence([shared]),
                        PerFrameFunctionalGroupsSequence=Sequence(groups))  # fmt: skip


def test_frames_of_an_enhanced_ct_are_sorted_by_their_positions(tmp_path: Path) -> None:
    data = _enhanced([9, 3, 6, 0, 12])
    clip = clip_of(data, tmp_path)
    assert (clip.frames[:, 0, 0] * 25.5).round().tolist() == [0, 3, 6, 9, 12]
    assert clip.slice_mm == 3.0
    assert clip.spacing_mm == (0.7, 0.7)
    assert [number for _, number in clip.sources] == [4, 2, 3, 1, 5]
    data.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(clip_of(data, tmp_path).frames, clip.frames)


@pytest.mark.parametrize(("depths", "words"), [([0, 3, 0, 3], "one place"), ([0, 3, 6, 20], "unevenly")])
def test_frames_that_make_no_block_are_no_volume_and_it_is_said(
    tmp_path: Path, depths: list[float], words: str
) -> None:
    clip = clip_of(_enhanced(depths), tmp_path)
    assert clip.slice_mm is None
    assert any(words in note and "no volume" in note for note in clip.notes)
