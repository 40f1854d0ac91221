"""Stored values → intensities in [0, 1], one frame at a time. Runs in the decoding process only.

The grey-scale pipeline of PS3.4 N.2: modality LUT (or rescale), VOI LUT or window, then MONOCHROME1 inverted.
Colour and palettes become luminance (ITU-R BT.601). What no window describes is stretched over its own range.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_voi

from ehr.dicom import cells, guard
from ehr.dicom.advice import AGAIN, OTHER_SYNTAX, REPAIR
from ehr.dicom.dataset import Opened, get, items, number, text, whole
from ehr.errors import BadInstance

Array = NDArray[Any]
FASTEST = {  # by transfer syntax; the same values as the others, two to eight times as fast
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.5": "pylibjpeg",
}
EXTENDED = "1.2.840.10008.1.2.4.51"
PROGRESSIVE = frozenset({"1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"})  # retired, still in archives
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
PIXELS_A_LEVEL = 4  # from which a table of grey levels is worth its making
BLOCK = 64 * 1024  # values hashed or looked up at once: they stay in the cache
LEAST_OF_SIDE = 0.9  # of the longest side asked for, that a lower resolution level may have
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(slots=True)
class Rendered:
    """One frame; `values` float32 [h, w], in [0, 1] when `windowed`, else in the unit of the modality LUT."""

    values: NDArray[np.float32]
    windowed: bool
    low: float = 0.0  # of the whole frame, padding left out
    high: float = 1.0
    padding: NDArray[np.bool_] | None = None


@dataclass(slots=True)
class Renderer:
    """Renders the frames of one instance and collects remarks."""

    dataset: Dataset
    max_side: int
    notes: list[str] = field(default_factory=list)

    def frames(self, indices: list[int]) -> Iterator[Rendered]:
        """Decode and render the frames at `indices`. Raises BadInstance with the reason in words."""
        if (smaller := reduced(self.dataset, indices, self.max_side)) is not None:
            self._note("JPEG 2000 decoded at a lower resolution level")
            for index, stored in zip(indices, smaller, strict=True):
                kind = text(self.dataset, "PhotometricInterpretation")
                yield self._grey(stored, index, inverted=kind == "MONOCHROME1")
            return
        for index, (values, properties) in zip(indices, decode(self.dataset, indices), strict=True):
            kind = str(properties["photometric_interpretation"])
            if kind == "PALETTE COLOR":
                yield Rendered(self._fit(self._palette(values)), windowed=True)
            elif values.ndim == 3:
                yield Rendered(self._fit(self._luminance(values, kind, properties)), windowed=True)
            else:
                yield self._grey(values, index, inverted=kind == "MONOCHROME1")

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)

    def _palette(self, values: Array) -> NDArray[np.float32]:
        try:
            colour = apply_color_lut(values, self.dataset)
        except (ValueError, AttributeError, KeyError, IndexError):
            raise BadInstance(f"the palette is missing or damaged: {REPAIR}") from None
        top = 255.0 if colour.dtype == np.uint8 else 65535.0
        return (colour[..., :3].astype(np.float32) @ LUMINANCE) / np.float32(top)

    def _luminance(self, values: Array, kind: str, properties: dict[str, Any]) -> NDArray[np.float32]:
        top = np.float32(
            2 ** int(properties.get("bits_stored") or whole(self.dataset, "BitsStored") or 8) - 1
        )
        if kind.startswith("YBR"):
            return _floats(np.clip(values[..., 0].astype(np.float32) / top, 0, 1))
        return _floats(np.clip((values[..., :3].astype(np.float32) @ LUMINANCE) / top, 0, 1))

    def _grey(self, stored: Array, index: int, *, inverted: bool) -> Rendered:
        padding = self._padding(stored)
        values, windowed = self._shown(stored, index, inverted=inverted)
        if windowed:
            if padding is not None:
                values = np.where(padding, np.float32(0), values)
            return Rendered(self._fit(values), windowed=True)
        low, high = self._range(values, stored, padding)
        if inverted:
            values, low, high = -values, -high, -low
        if padding is not None:
            values = np.where(padding, np.float32(low), values)
        return Rendered(self._fit(values), windowed=False, low=low, high=high)

    def _shown(self, stored: Array, index: int, *, inverted: bool) -> tuple[NDArray[np.float32], bool]:
        """Values after the grey-scale pipeline, and whether a window or table brought them to [0, 1].

        Where a picture has many more pixels than grey levels, each level goes through it once.
        """
        if stored.dtype.kind not in "iu" or not stored.size:
            return self._pipeline(stored, index, inverted=inverted)
        low, high = int(stored.min()), int(stored.max())
        if (high - low + 1) * PIXELS_A_LEVEL > stored.size:
            return self._pipeline(stored, index, inverted=inverted)
        levels = np.arange(low, high + 1).astype(stored.dtype)
        table, windowed = self._pipeline(levels, index, inverted=inverted)
        values, flat = np.empty(stored.size, dtype=np.float32), stored.reshape(-1)
        for start in range(0, stored.size, BLOCK):
            places = flat[start : start + BLOCK].astype(np.intp) - low
            np.take(table, places, out=values[start : start + BLOCK], mode="clip")
        return values.reshape(stored.shape), windowed

    def _pipeline(self, stored: Array, index: int, *, inverted: bool) -> tuple[NDArray[np.float32], bool]:
        values = self._modality(stored, index)
        voi = self._voi_lut(values)
        window = None if voi is not None else self._window(index)
        if voi is not None:
            values = voi
        elif window is not None:
            values = apply_window(values, *window)
        else:
            return values, False
        return (1 - values if inverted else values), True

    def _range(
        self, values: NDArray[np.float32], stored: Array, padding: Array | None
    ) -> tuple[float, float]:
        bits = whole(self.dataset, "BitsStored") or 0
        if stored.dtype.kind == "u" and 0 < bits <= 8 and np.array_equal(values, stored):
            return 0.0, float(2**bits - 1)
        self._note("no window in the file: stretched over its own values (0.1 to 99.9 %)")
        kept = values if padding is None else values[~padding]
        kept = kept[np.isfinite(kept)]
        if not kept.size:
            return 0.0, 0.0
        low, high = np.percentile(
            kept, (0.1, 99.9)
        )  # a few dead or burned-in pixels must not flatten the rest
        return float(low), float(high)

    def _padding(self, stored: Array) -> NDArray[np.bool_] | None:
        first = number(self.dataset, "PixelPaddingValue")
        if first is None:
            return None
        last = number(self.dataset, "PixelPaddingRangeLimit")
        low, high = sorted((first, first if last is None else last))
        found = (stored >= low) & (stored <= high)
        return found if found.any() and not found.all() else None

    def _modality(self, stored: Array, index: int) -> NDArray[np.float32]:
        if items(self.dataset, "ModalityLUTSequence"):
            try:
                return look_up(stored, self.dataset, items(self.dataset, "ModalityLUTSequence")[0])
            except (ValueError, AttributeError, KeyError, IndexError, TypeError):
                self._note("damaged modality LUT ignored")
        place = self._functional(index, "PixelValueTransformationSequence") or self.dataset
        slope, intercept = number(place, "RescaleSlope"), number(place, "RescaleIntercept")
        values = stored.astype(np.float32)
        if slope not in (None, 0, 1) or intercept not in (None, 0):
            values = values * np.float32(slope or 1) + np.float32(intercept or 0)
        return values

    def _voi_lut(self, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        table = next(iter(items(self.dataset, "VOILUTSequence")), None)
        if table is None:
            return None
        try:
            bits = int(table.LUTDescriptor[2])
            looked_up = apply_voi(np.rint(values).astype(np.int32), self.dataset)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError, NotImplementedError):
            self._note("damaged VOI LUT ignored")
            return None
        return _floats(np.clip(looked_up.astype(np.float32) / np.float32(2**bits - 1), 0, 1))

    def _window(self, index: int) -> tuple[float, float, str] | None:
        place = self._functional(index, "FrameVOILUTSequence") or self.dataset
        centre, width = number(place, "WindowCenter"), number(place, "WindowWidth")
        shape = text(place, "VOILUTFunction").upper() or "LINEAR"
        if shape == "LINEAR" and "PixelData" not in self.dataset:
            shape = "LINEAR_EXACT"  # LINEAR counts in steps of 1, which float pixels do not have
        if centre is None or width is None:
            return None
        if width <= 0 or (shape == "LINEAR" and width < 1):
            self._note("impossible window ignored")
            return None
        return centre, width, shape

    def _functional(self, index: int, keyword: str) -> Dataset | None:
        """A functional group macro of an enhanced multi-frame: of this frame, else shared."""
        per_frame = get(self.dataset, "PerFrameFunctionalGroupsSequence")
        groups = [per_frame[index]] if per_frame and index < len(per_frame) else []
        groups += items(self.dataset, "SharedFunctionalGroupsSequence")[:1]
        return next((found[0] for group in groups if (found := items(group, keyword))), None)

    def _fit(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return shrink(np.ascontiguousarray(values, dtype=np.float32), self.max_side)


def _floats(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)


def apply_window(values: NDArray[np.float32], centre: float, width: float, shape: str) -> NDArray[np.float32]:
    """Window to [0, 1]: LINEAR, LINEAR_EXACT or SIGMOID, PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if shape == "SIGMOID":
        exponent = np.clip(-4 * (values - np.float32(centre)) / np.float32(width), -80, 80)
        return _floats((1 / (1 + np.exp(exponent))).astype(np.float32))
    if shape == "LINEAR_EXACT":
        scaled = (values - np.float32(centre)) / np.float32(width) + np.float32(0.5)
    elif width == 1:
        scaled = (values > np.float32(centre - 0.5)).astype(np.float32)
    else:
        scaled = (values - np.float32(centre - 0.5)) / np.float32(width - 1) + np.float32(0.5)
    return _floats(np.clip(scaled, 0, 1))


def look_up(stored: Array, dataset: Dataset, table: Dataset) -> NDArray[np.float32]:
    """Values by a look-up table, PS3.3 C.11.1.1: beyond its ends they take those; any depth up to 16 bits."""
    entries, first = int(table.LUTDescriptor[0]) or 2**16, int(table.LUTDescriptor[1])
    held = table.LUTData
    if isinstance(held, bytes):
        big = str(dataset.file_meta.TransferSyntaxUID) == guard.EXPLICIT_BIG
        held = np.frombuffer(held, "u1" if len(held) == entries else ">u2" if big else "<u2")
    values = np.asarray(held, dtype=np.float32)[:entries]
    return _floats(values[np.clip(stored.astype(np.int64) - first, 0, entries - 1)])


def fitted(rows: int, columns: int, max_side: int) -> tuple[int, int]:
    """Rows and columns after shrinking so that the longer side is at most `max_side`; never enlarged."""
    scale = min(1.0, max_side / max(rows, columns))
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def shrink(values: NDArray[np.float32], max_side: int) -> NDArray[np.float32]:
    """Shrink by area averaging."""
    rows, columns = fitted(values.shape[0], values.shape[1], max_side)
    if (rows, columns) == values.shape:
        return values
    picture = Image.fromarray(values).resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.float32)


def reduced(dataset: Dataset, indices: list[int], max_side: int) -> list[Array] | None:
    """Grey JPEG 2000 frames at the resolution level just above (or at most 10 % below) `max_side`.

    The wavelet's own half-size picture costs a quarter of the whole one (ISO/IEC 15444-1, B.5). None when the
    file is of another kind, signed, in colour, or would not get smaller: then `decode` is the way.
    """
    rows, columns = whole(dataset, "Rows") or 1, whole(dataset, "Columns") or 1
    halvings = int(np.log2(max(rows, columns) / (LEAST_OF_SIDE * max_side)))
    bits, allocated = whole(dataset, "BitsStored") or 0, whole(dataset, "BitsAllocated") or 0
    plain = (
        str(dataset.file_meta.TransferSyntaxUID) in JPEG_2000
        and whole(dataset, "SamplesPerPixel") == 1
        and text(dataset, "PhotometricInterpretation") in {"MONOCHROME1", "MONOCHROME2"}
        and whole(dataset, "PixelRepresentation") == 0
        and allocated in (8, 16)
    )
    if not plain or halvings < 1:
        return None
    frames = []
    try:
        parts = generate_frames(dataset.PixelData, number_of_frames=whole(dataset, "NumberOfFrames") or 1)
        wanted = {index: coded for index, coded in enumerate(parts) if index in indices}
        for index in indices:
            picture = Image.open(io.BytesIO(wanted[index]), formats=["JPEG2000"])
            if picture.size != (columns, rows) or picture.mode not in {"L", "I;16"}:
                return None
            picture.reduce = halvings  # type: ignore[method-assign, assignment]  # how this reader is told
            picture.load()
            values = np.asarray(picture)
            frames.append(values if picture.mode == "L" else values >> (16 - bits))  # Pillow fills 16 bits
    except Exception:
        return None  # damaged, or a variant this reader lacks: the decoders that say why are asked instead
    return frames


def decode(dataset: Dataset, indices: list[int]) -> Iterator[tuple[Array, dict[str, Any]]]:
    """Decoded frames and what describes them. Raises BadInstance with the reason in words."""
    if cells.is_packed(dataset):
        yield from cells.unpack(dataset, indices)
    elif cells.is_raised(dataset):
        high = whole(dataset, "HighBit") or 0
        for values, about in _decode(cells.with_whole_cells(dataset), indices):
            yield cells.settle(values, dataset, high), about
    else:
        yield from _decode(dataset, indices)


def _decode(dataset: Dataset, indices: list[int]) -> Iterator[tuple[Array, dict[str, Any]]]:
    uid = dataset.file_meta.TransferSyntaxUID
    if str(uid) in PROGRESSIVE:
        yield from _grey_jpeg(dataset, indices)
        return
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        raise BadInstance(f"transfer syntax {_name(uid)} is not one we can decode: {OTHER_SYNTAX}") from None
    if not decoder.is_available:
        raise BadInstance(f"no decoder for transfer syntax {_name(uid)} is installed: {OTHER_SYNTAX}")
    # The Y of YBR_FULL is the luminance we want: no detour over RGB, which clips.
    raw = text(dataset, "PhotometricInterpretation") in {"YBR_FULL", "YBR_FULL_422"}
    plugin = FASTEST.get(str(uid), "")
    done = 0
    while True:
        try:
            for found in decoder.iter_array(dataset, raw=raw, indices=indices[done:], decoding_plugin=plugin):
                yield found
                done += 1
            return
        except (MemoryError, BadInstance):
            raise
        except Exception as error:
            # Decoders raise whatever they like over damaged data, and may quote values: the kind is enough.
            if not plugin and str(uid) == EXTENDED and not done:
                yield from _grey_jpeg(dataset, indices)  # 12 bits, which the plug-ins lack
                return
            if not plugin:
                raise BadInstance(_reason(error, uid, done)) from None
            plugin = ""  # the fastest cannot read this variant: let every other one try from here on


def _grey_jpeg(dataset: Dataset, indices: list[int]) -> Iterator[tuple[Array, dict[str, Any]]]:
    """Grey JPEG of 8 or 12 bits, progressive too, by libjpeg-turbo. Raises BadInstance."""
    import imagecodecs  # here: few files need it, and it is slow to load

    uid, bits = dataset.file_meta.TransferSyntaxUID, whole(dataset, "BitsStored") or 0
    if whole(dataset, "SamplesPerPixel") != 1:
        raise BadInstance(f"{_name(uid)} in colour is not one we can decode: {OTHER_SYNTAX}")
    shape = (whole(dataset, "Rows"), whole(dataset, "Columns"))
    about = {"photometric_interpretation": text(dataset, "PhotometricInterpretation"), "bits_stored": bits}
    wanted = set(indices)
    found: dict[int, Array] = {}
    try:
        frames = generate_frames(dataset.PixelData, number_of_frames=whole(dataset, "NumberOfFrames") or 1)
        for index, coded in enumerate(frames):
            if index in wanted:
                found[index] = imagecodecs.jpeg8_decode(coded)
                if found[index].shape != shape:
                    raise BadInstance(f"its frames are not of the size that its header says: {AGAIN}")
        for index in indices:
            values = found[index]
            if whole(dataset, "PixelRepresentation") == 1 and 0 < bits < 16:
                values = (values.astype(np.int16) << (16 - bits)) >> (16 - bits)
            yield values, about
    except (MemoryError, BadInstance):
        raise
    except Exception as error:
        raise BadInstance(_reason(error, uid, 0)) from None


def digest_values(opened: Opened) -> str:
    """SHA-256 hex of the decoded values as int32: equal for lossless re-encodings of one image."""
    frames = whole(opened.dataset, "NumberOfFrames") or 1
    digest = hashlib.sha256()
    for values, _ in decode(opened.dataset, list(range(frames))):
        digest.update(str(values.shape).encode())
        hash_values(digest, values)
    return digest.hexdigest()


def hash_values(digest: Any, values: Array) -> None:
    """Add values as int32 (or float64), a piece at a time: no copy of the whole is made."""
    flat, kind = values.reshape(-1), "<i4" if values.dtype.kind in "iu" else "<f8"
    for start in range(0, len(flat), BLOCK):
        digest.update(np.ascontiguousarray(flat[start : start + BLOCK], dtype=kind))


def _reason(error: Exception, uid: Any, decoded: int) -> str:
    words = str(error)
    if "pixel data" in words and ("expected length" in words or "less than expected" in words):
        return (
            "the pixel data is not as long as rows x columns x frames, it is truncated or in a variant that "
            f"is not decoded: {AGAIN}"
        )
    if isinstance(error, AttributeError) and "required" in words:
        return f"an element that describes the pixels is missing: {REPAIR}"
    where = f" at frame {decoded + 1}" if decoded else ""
    return f"the pixel data is damaged or in a variant of {_name(uid)} that cannot be decoded{where}: {AGAIN}"


def _name(uid: Any) -> str:
    name = str(getattr(uid, "name", uid))
    return f"{uid} ({name})" if name != str(uid) else str(uid)
