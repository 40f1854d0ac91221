"""Size limits, checked before anything is parsed or decoded (INTEROP 42).

A DICOM file is somebody else's input: its header may ask for any amount of memory, and a deflated one of
some hundred KB may inflate to gigabytes. So: the file's size, then the inflated size, then rows x columns x
frames x bytes are bounded here; and all of it happens in a child process with a memory limit
(`ehr.dicom.child`).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ehr.dicom.advice import AGAIN, EXPORT, SMALLER
from ehr.errors import BadInstance, TooLarge

MIB = 1024 * 1024
DEFLATED = "1.2.840.10008.1.2.1.99"  # Deflated Explicit VR Little Endian, PS3.5 A.5
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
META_LIMIT = 64 * 1024
LONG_VRS = frozenset(
    {b"OB", b"OW", b"UN", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UT", b"UC", b"UR", b"SV", b"UV"}
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one DICOM file may cost."""

    file_bytes: int = 1024 * MIB
    inflated_bytes: int = 512 * MIB
    side: int = 32_768  # rows, columns
    frames: int = 20_000
    pixel_bytes: int = 8 * 1024 * MIB  # of all frames, decoded; they are decoded one at a time
    frame_bytes: int = 512 * MIB
    clip_pixels: int = 128 * MIB  # of a Clip: frames x rows x columns after downscaling
    memory_bytes: int = 3 * 1024 * MIB  # address space of the decoding process
    seconds: float = 120.0  # per call


DEFAULT = Limits()


def check_file(path: Path, limits: Limits = DEFAULT) -> int:
    """The size of a regular, non-empty file within the limit. Raises BadInstance or TooLarge."""
    try:
        found = path.stat()
    except OSError as error:
        raise BadInstance(
            f"the file cannot be opened ({error.strerror}): is it there, and may we read it?"
        ) from None
    if not path.is_file():
        raise BadInstance(f"not a regular file: {EXPORT}")
    return check_size(found.st_size, limits)


def check_size(size: int, limits: Limits = DEFAULT) -> int:
    """A number of bytes within the limit. Raises BadInstance when 0, TooLarge when over."""
    if size == 0:
        raise BadInstance(f"the file is empty: {AGAIN}")
    if size > limits.file_bytes:
        raise TooLarge(f"the file has {_mib(size)}, the limit is {_mib(limits.file_bytes)}: {SMALLER}")
    return size


def check_pixels(
    rows: int, columns: int, frames: int, samples: int, bits: int, limits: Limits = DEFAULT
) -> None:
    """What the header promises must fit, before a decoder is asked. Raises TooLarge."""
    if rows > limits.side or columns > limits.side:
        raise TooLarge(f"{rows} x {columns} pixels, the limit is {limits.side} a side: {SMALLER}")
    if frames > limits.frames:
        raise TooLarge(f"{frames} frames, the limit is {limits.frames}: {SMALLER}")
    one = rows * columns * max(samples, 1) * max(1, (bits + 7) // 8)
    if one > limits.frame_bytes:
        raise TooLarge(
            f"one frame would take {_mib(one)}, the limit is {_mib(limits.frame_bytes)}: {SMALLER}"
        )
    if one * frames > limits.pixel_bytes:
        raise TooLarge(
            f"the frames would take {_mib(one * frames)}, the limit is {_mib(limits.pixel_bytes)}: {SMALLER}"
        )


def inflate(packed: bytes, limits: Limits = DEFAULT) -> bytes:
    """Inflate a raw deflate stream (RFC 1951), never beyond the limit. Raises TooLarge, BadInstance."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = engine.decompress(packed, limits.inflated_bytes)
    except zlib.error:
        raise BadInstance(f"the deflated data set is damaged: {AGAIN}") from None
    if engine.unconsumed_tail:
        raise TooLarge(f"the deflated data set inflates beyond {_mib(limits.inflated_bytes)}: {SMALLER}")
    if not engine.eof:
        raise BadInstance(f"the deflated data set is truncated: {AGAIN}")
    return data


def read_meta(stream: BinaryIO) -> tuple[str, int] | None:
    """(TransferSyntaxUID or "", where the data set begins) of a Part 10 file; None without preamble.

    Reads the File Meta Information only (PS3.10 7.1: explicit VR little endian), at most 64 KiB.
    """
    found = read_meta_elements(stream)
    return None if found is None else (found[0].get(0x0010, ""), found[1])


def read_meta_elements(stream: BinaryIO) -> tuple[dict[int, str], int] | None:
    """The texts of group 0002 by element number, and where the data set begins; None without preamble."""
    stream.seek(0)
    head = stream.read(META_LIMIT)
    if head[128:132] != b"DICM":
        return None
    position, texts = 132, {}
    while position + 8 <= len(head):
        group, element, kind = struct.unpack_from("<HH2s", head, position)
        if group != 0x0002:
            break
        if kind in LONG_VRS:
            if position + 12 > len(head):
                break
            length, start = struct.unpack_from("<I", head, position + 8)[0], position + 12
        else:
            length, start = struct.unpack_from("<H", head, position + 6)[0], position + 8
        texts[element] = head[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        position = start + length
    return texts, position


def as_explicit(data: bytes) -> bytes:
    """A data set in explicit VR little endian as a Part 10 file."""
    uid = EXPLICIT_LITTLE.encode() + b"\0"
    syntax = struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(uid)) + uid
    length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(syntax))
    return b"\0" * 128 + b"DICM" + length + syntax + data


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB" if size >= MIB else f"{size:,} bytes"
