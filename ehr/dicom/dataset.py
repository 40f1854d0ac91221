"""Opening a data set safely, its header, the digest of its pixels. Runs in the decoding process only."""

from __future__ import annotations

import hashlib
import io
import re
import struct
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from ehr.dicom import guard
from ehr.dicom.advice import AGAIN, EXPORT, REPAIR
from ehr.errors import BadInstance, Permanent
from ehr.records import InstanceHeader

UID_SHAPE = re.compile(r"[0-9]+(\.[0-9]+)*")
CHUNK = 1024 * 1024
ITEM, DELIMITER = 0xFFFEE000, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF


@dataclass(slots=True)
class Opened:
    """A parsed data set; `stream` stands before the pixel data when that was left unread."""

    dataset: Dataset
    stream: BinaryIO
    transfer_syntax: str  # as sent
    implicit: bool
    little: bool

    def close(self) -> None:
        self.stream.close()


def open_dataset(source: Path | bytes, limits: guard.Limits, *, pixels: bool) -> Opened:
    """Parse a Part 10 file, or a bare data set without preamble. Raises BadInstance, TooLarge.

    pixels  False stops before the pixel data
    """
    stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    try:
        return _open(stream, limits, pixels=pixels)
    except Permanent:
        stream.close()
        raise
    except RecursionError:
        stream.close()
        raise BadInstance(f"sequences are nested too deeply: {AGAIN}") from None
    except MemoryError:
        stream.close()
        raise
    except Exception as error:
        # Whatever a parser trips over in a hostile file is a bad file. Its message may quote values.
        stream.close()
        raise BadInstance(f"the file cannot be parsed as DICOM ({type(error).__name__}): {AGAIN}") from None


def _open(stream: BinaryIO, limits: guard.Limits, *, pixels: bool) -> Opened:
    meta = guard.read_meta(stream)
    syntax = meta[0] if meta else ""
    if meta and syntax == guard.DEFLATED:
        stream.seek(meta[1])
        inflated = guard.inflate(stream.read(), limits)
        stream.close()
        stream = io.BytesIO(guard.as_explicit(inflated))
    stream.seek(0)
    if meta is None:
        _check_looks_like_data_set(stream)
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=not pixels, force=meta is None)
    except InvalidDicomError:
        raise BadInstance(f"not a DICOM file: {EXPORT}") from None
    if not len(dataset):
        raise BadInstance(f"the file holds no data set, it is truncated or not DICOM: {AGAIN}")
    implicit, little = dataset.original_encoding
    if not getattr(dataset, "file_meta", None):
        dataset.file_meta = FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        guessed = (
            guard.IMPLICIT_LITTLE if implicit else guard.EXPLICIT_LITTLE if little else guard.EXPLICIT_BIG
        )
        dataset.file_meta.TransferSyntaxUID = UID(guessed)
        syntax = guessed
    return Opened(
        dataset, stream, syntax or str(dataset.file_meta.TransferSyntaxUID), bool(implicit), bool(little)
    )


def _check_looks_like_data_set(stream: BinaryIO) -> None:
    """Without a preamble: the first tag must be one of the groups a data set begins with."""
    head = stream.read(8)
    stream.seek(0)
    if len(head) < 8:
        raise BadInstance(f"not a DICOM file: {EXPORT}")
    groups = {struct.unpack("<H", head[:2])[0], struct.unpack(">H", head[:2])[0]}
    if not groups & {0x0002, 0x0008}:
        raise BadInstance(f"not a DICOM file: {EXPORT}")


def read_header(opened: Opened, default_tz: tzinfo = UTC) -> InstanceHeader:
    """What Tessera reads before pixels. Raises BadInstance when the UIDs that identify it are unusable."""
    data = opened.dataset
    uids = {}
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        value = text(data, keyword)
        if not value:
            raise BadInstance(f"{keyword} is missing: {REPAIR}")
        if len(value) > 64 or not UID_SHAPE.fullmatch(value):
            raise BadInstance(f"{keyword} is not a UID: {REPAIR}")
        uids[keyword] = value
    started_at, assumed = _started_at(data, default_tz)
    extra: dict[str, Any] = {"time_assumed": True} if assumed else {}
    return InstanceHeader(
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        sop_uid=uids["SOPInstanceUID"],
        sop_class_uid=uids["SOPClassUID"],
        transfer_syntax_uid=opened.transfer_syntax,
        modality=text(data, "Modality")[:16],
        patient_id=text(data, "PatientID"),
        issuer_of_patient_id=text(data, "IssuerOfPatientID"),
        started_at=started_at,
        rows=whole(data, "Rows") or 0,
        columns=whole(data, "Columns") or 0,
        frames=max(1, whole(data, "NumberOfFrames") or 1),
        samples=whole(data, "SamplesPerPixel") or 1,
        bits_allocated=whole(data, "BitsAllocated") or 0,
        photometric_interpretation=text(data, "PhotometricInterpretation"),
        study_description=text(data, "StudyDescription"),
        series_description=text(data, "SeriesDescription"),
        body_part=text(data, "BodyPartExamined"),
        view_position=view_of(data),
        laterality=text(data, "ImageLaterality") or text(data, "Laterality"),
        manufacturer=text(data, "Manufacturer"),
        instance_number=whole(data, "InstanceNumber"),
        burned_in_annotation={"YES": True, "NO": False}.get(text(data, "BurnedInAnnotation").upper()),
        has_pixels=_at_pixels(opened),
        extra=extra,
    )


def check_promises(opened: Opened, limits: guard.Limits) -> None:
    """Raises BadInstance without pixels, TooLarge when what the header promises is over a limit."""
    data = opened.dataset
    if not _at_pixels(opened):
        kind = text(data, "Modality")[:16]
        raise BadInstance("there is no pixel data" + (f" (Modality {kind})" if kind else ""))
    rows, columns = whole(data, "Rows") or 0, whole(data, "Columns") or 0
    if rows <= 0 or columns <= 0:
        raise BadInstance(f"Rows or Columns is missing or 0: {REPAIR}")
    frames, samples = whole(data, "NumberOfFrames") or 1, whole(data, "SamplesPerPixel") or 1
    guard.check_pixels(rows, columns, frames, samples, whole(data, "BitsAllocated") or 32, limits)


def digest_pixels(opened: Opened) -> str:
    """SHA-256 hex of the pixel data as sent, read in pieces. Raises BadInstance when it is absent or cut off.

    The stream stands before the pixel data (`open_dataset(pixels=False)`).
    """
    stream = opened.stream
    tag, length = _element_head(stream, opened)
    if tag is None:
        raise BadInstance("there is no pixel data")
    digest = hashlib.sha256()
    if length != UNDEFINED:
        _hash(stream, length, digest)
        return digest.hexdigest()
    while True:
        head = stream.read(8)
        if len(head) < 8:
            raise BadInstance(f"the pixel data is truncated: {AGAIN}")
        group, element, size = struct.unpack("<HHI" if opened.little else ">HHI", head)
        kind = group << 16 | element
        if kind == DELIMITER:
            return digest.hexdigest()
        if kind != ITEM or size == UNDEFINED:
            raise BadInstance(f"the pixel data is damaged, an item was expected: {AGAIN}")
        digest.update(head)
        _hash(stream, size, digest)


def _hash(stream: BinaryIO, length: int, digest: Any) -> None:
    left = length
    while left:
        piece = stream.read(min(CHUNK, left))
        if not piece:
            raise BadInstance(
                f"the pixel data is truncated ({length - left:,} of {length:,} bytes are there): {AGAIN}"
            )
        digest.update(piece)
        left -= len(piece)


def _element_head(stream: BinaryIO, opened: Opened) -> tuple[int | None, int]:
    order = "<" if opened.little else ">"
    head = stream.read(8)
    if len(head) < 8:
        return None, 0
    group, element = struct.unpack(order + "HH", head[:4])
    if opened.implicit:
        return group << 16 | element, struct.unpack(order + "I", head[4:])[0]
    if head[4:6] in guard.LONG_VRS:
        rest = stream.read(4)
        return (group << 16 | element, struct.unpack(order + "I", rest)[0]) if len(rest) == 4 else (None, 0)
    return group << 16 | element, struct.unpack(order + "H", head[6:])[0]


def _at_pixels(opened: Opened) -> bool:
    if any(keyword in opened.dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return True
    at = opened.stream.tell()
    tag, length = _element_head(opened.stream, opened)
    opened.stream.seek(at)
    return tag in (0x7FE00008, 0x7FE00009, 0x7FE00010) and length > 0


def get(data: Dataset, keyword: str) -> Any:
    """The value, or None when absent or when it cannot be read as its VR."""
    try:
        return data.get(keyword)
    except Exception:  # conversion of a damaged value may raise anything; the element then counts as absent
        return None


def text(data: Dataset, keyword: str) -> str:
    """The value as text without padding; several values are joined by a backslash, as in the file."""
    value = get(data, keyword)
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace("\0", "").strip()
    try:
        return "\\".join(str(item) for item in value).strip()
    except TypeError:
        return str(value).strip()


def numbers(data: Dataset, keyword: str) -> list[float]:
    """All values as floats; empty when absent or not numbers."""
    value = get(data, keyword)
    if value is None or value == "":
        return []
    many = value if isinstance(value, list | tuple) or hasattr(value, "__iter__") else [value]
    try:
        return [float(item) for item in many]
    except (TypeError, ValueError):
        return []


def number(data: Dataset, keyword: str) -> float | None:
    """The first value as a float."""
    return next(iter(numbers(data, keyword)), None)


def whole(data: Dataset, keyword: str) -> int | None:
    """The first value as an int."""
    value = number(data, keyword)
    return int(value) if value is not None and abs(value) < 2**31 else None


def items(data: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; empty when absent."""
    value = get(data, keyword)
    return [item for item in value if isinstance(item, Dataset)] if value else []


def view_of(data: Dataset) -> str:
    """ViewPosition, else the meaning of ViewCodeSequence (0054,0220)."""
    given = text(data, "ViewPosition")
    if given:
        return given.upper()[:32]
    return next((text(item, "CodeMeaning")[:32] for item in items(data, "ViewCodeSequence")), "")


def _started_at(data: Dataset, default_tz: tzinfo) -> tuple[datetime | None, bool]:
    """StudyDate + StudyTime, aware. Without StudyTime the end of that day: never earlier than the truth."""
    day, clock = text(data, "StudyDate").replace(".", ""), text(data, "StudyTime").replace(":", "")
    try:
        on = date(int(day[:4]), int(day[4:6]), int(day[6:8]))
    except ValueError:
        return None, False
    zone = _zone(text(data, "TimezoneOffsetFromUTC")) or default_tz
    matched = re.match(r"(\d{2})(\d{2})?(\d{2})?(?:\.(\d{1,6}))?", clock)
    try:
        if matched is None:
            raise ValueError
        hours, minutes, seconds, fraction = matched.groups()
        at = time(
            int(hours), int(minutes or 0), min(59, int(seconds or 0)), int((fraction or "0").ljust(6, "0"))
        )
    except ValueError:
        return datetime.combine(on, time(23, 59, 59), zone), True
    return datetime.combine(on, at, zone), False


def _zone(offset: str) -> tzinfo | None:
    matched = re.fullmatch(r"([+-])(\d{2})(\d{2})", offset)
    if not matched:
        return None
    sign = -1 if matched[1] == "-" else 1
    shift = timedelta(hours=int(matched[2]), minutes=int(matched[3]))
    return timezone(sign * shift) if shift < timedelta(hours=15) else None
