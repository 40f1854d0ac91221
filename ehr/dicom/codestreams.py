"""Compressed frames without what is not picture: comments, application segments, leftovers.

A JPEG may carry Exif data or a comment with a name in it, and a JPEG 2000 codestream a comment as well. They
are overwritten with zeros in place: lengths and offsets stay, and so does every pixel. Bytes after the end of
the picture go the same way. ISO/IEC 10918-1 annex B, 14495-1 annex C, 15444-1 annex A. RLE has no comments.
"""

from __future__ import annotations

import re
import struct

from ehr.errors import BadInstance

# JPEG (50 to 70) and JPEG-LS share their markers; so do JPEG 2000 and its high-throughput kin (201 to 203)
JPEG_LIKE = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (*range(50, 71), 80, 81))
JPEG_2000_LIKE = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 92, 93, 201, 202, 203))
RLE = "1.2.840.10008.1.2.5"
SCAN_END = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # a marker in entropy-coded data, but no restart
EOI, SOS, COM, APP0, APP14, APP15 = 0xD9, 0xDA, 0xFE, 0xE0, 0xEE, 0xEF
SOC, SOT, SOD, EOC, COM_2000 = 0x4F, 0x90, 0x93, 0xD9, 0x64
BOX_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"


def can_clean(syntax: str) -> bool:
    """Whether frames of this transfer syntax can be searched for what is not picture."""
    return syntax in JPEG_LIKE or syntax in JPEG_2000_LIKE or syntax == RLE


def cleaned(frame: bytes, syntax: str) -> bytes:
    """One compressed frame with nothing but picture in it. Raises BadInstance when it is damaged."""
    if syntax == RLE:
        return frame
    try:
        return _jpeg(frame) if syntax in JPEG_LIKE else _jpeg_2000(frame)
    except (IndexError, struct.error):
        raise BadInstance("a compressed frame is damaged: it cannot be searched for comments") from None


def _jpeg(frame: bytes) -> bytes:
    data = bytearray(frame)
    if data[:2] != b"\xff\xd8":
        raise BadInstance("a compressed frame does not begin as JPEG does")
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker = data[at + 1]
        if data[at] != 0xFF:
            raise BadInstance("a compressed frame is damaged: a JPEG marker was expected")
        if marker == EOI:
            return _ended(data, at + 2)
        length = struct.unpack_from(">H", data, at + 2)[0]
        begin, end = at + 4, at + 2 + length
        if length < 2 or end > len(data):
            raise BadInstance("a compressed frame is damaged: a JPEG segment is cut off")
        if (APP0 <= marker <= APP15 or marker == COM) and not _says_how_to_decode(marker, data[begin:end]):
            data[begin:end] = bytes(end - begin)
        at = end
        if marker == SOS:
            found = SCAN_END.search(data, at)
            if found is None:
                return bytes(data)  # some encoders leave the end away
            at = found.start()


def _says_how_to_decode(marker: int, segment: bytearray) -> bool:
    """JFIF without a thumbnail, and Adobe's flag for the colour transform, hold numbers only."""
    jfif = marker == APP0 and segment.startswith(b"JFIF\0") and len(segment) == 14
    return jfif or (marker == APP14 and segment.startswith(b"Adobe") and len(segment) == 12)


def _jpeg_2000(frame: bytes) -> bytes:
    if frame.startswith(BOX_SIGNATURE):
        frame = _codestream_of(frame)
    data = bytearray(frame)
    if data[:2] != bytes((0xFF, SOC)):
        raise BadInstance("a compressed frame does not begin as JPEG 2000 does")
    at, tile_at = 2, 0
    while True:
        if data[at] != 0xFF:
            raise BadInstance("a compressed frame is damaged: a JPEG 2000 marker was expected")
        marker = data[at + 1]
        if marker == EOC:
            return _ended(data, at + 2)
        if marker == SOD:
            size = struct.unpack_from(">I", data, tile_at + 6)[0]
            if size == 0:  # the last tile-part: up to the end
                return bytes(data)
            if tile_at + size >= len(data) or tile_at + size <= at:
                if tile_at + size == len(data):
                    return bytes(data)
                raise BadInstance("a compressed frame is damaged: a JPEG 2000 tile-part is cut off")
            at = tile_at + size
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        begin, end = at + 4, at + 2 + length
        if length < 2 or end > len(data):
            raise BadInstance("a compressed frame is damaged: a JPEG 2000 segment is cut off")
        if marker == SOT:
            tile_at = at
        elif marker == COM_2000:
            data[begin + 2 : end] = bytes(max(0, end - begin - 2))
        at = end


def _codestream_of(boxed: bytes) -> bytes:
    """What is in the jp2c box of a JP2 file, which some modalities send instead of a bare codestream."""
    at = 0
    while at + 8 <= len(boxed):
        size, kind = struct.unpack_from(">I4s", boxed, at)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", boxed, at + 8)[0], 16
        if kind == b"jp2c":
            return boxed[at + head : at + size if size else len(boxed)]
        if size < head:
            break
        at += size
    raise BadInstance("a compressed frame is a JP2 file without a codestream")


def _ended(data: bytearray, end: int) -> bytes:
    data[end:] = bytes(len(data) - end)
    return bytes(data)
