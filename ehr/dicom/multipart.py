"""multipart/related bodies (RFC 2387), read as they arrive: one part in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message

from ehr.dicom.advice import SMALLER
from ehr.errors import Refused, Retriable, TooLarge

HEAD_LIMIT = 16 * 1024


class _Window:
    """The bytes not yet used of a stream."""

    def __init__(self, pieces: Iterator[bytes], limit: int, what: str) -> None:
        self.held = bytearray()
        self._pieces, self._limit, self._what = pieces, limit, what

    def more(self) -> bool:
        """Take in the next piece; False at the end."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self.held += piece
        if len(self.held) > self._limit + HEAD_LIMIT + len(piece):
            raise _too_large(self._what, self._limit)
        return True

    def until(self, mark: bytes) -> bytes | None:
        """Everything before `mark`, which is dropped; None when the stream ends first."""
        start = 0
        while (at := self.held.find(mark, start)) < 0:
            start = max(0, len(self.held) - len(mark) + 1)
            if not self.more():
                return None
        found = bytes(self.held[:at])
        del self.held[: at + len(mark)]
        return found

    def take(self, count: int) -> bytes | None:
        """Exactly `count` bytes; None when the stream ends first."""
        while len(self.held) < count:
            if not self.more():
                return None
        found = bytes(self.held[:count])
        del self.held[:count]
        return found


def read_parts(
    content_type: str,
    pieces: Iterator[bytes],
    *,
    limit: int,
    alone: str = "application/dicom",
    what: str = "an instance",
) -> Iterator[bytes]:
    """The bodies of the parts, one by one; a body of the type `alone` is the only part.

    what    what a part is, for messages
    raises  Refused for another type, Retriable when the stream ends in the middle of a part, TooLarge
    """
    message = Message()
    message["content-type"] = content_type
    kind, boundary = message.get_content_type(), message.get_param("boundary")
    if kind == alone:
        yield _whole(pieces, limit, what)
        return
    if kind != "multipart/related" or not isinstance(boundary, str) or not boundary:
        raise Refused(
            f"the archive answered {kind!r} instead of multipart/related: is this its DICOMweb address, and "
            "WADO-RS switched on?"
        )
    window = _Window(iter(pieces), limit, what)
    window.held += b"\r\n"  # so that the first boundary looks like the others
    mark = b"\r\n--" + boundary.encode("latin-1")
    if window.until(mark) is None:
        raise Retriable("the archive's answer ended before its first part")
    while True:
        rest = window.take(2)
        if rest == b"--":
            return
        head = b"" if rest == b"\r\n" and _starts_with_blank(window) else window.until(b"\r\n\r\n")
        if rest is None or head is None:
            raise Retriable("the archive's answer ended in the middle of a part")
        length = _length(head)
        if length is not None and length > limit:
            raise _too_large(what, limit)
        body = window.take(length) if length is not None else None
        after = window.until(mark)
        if after is None or (length is not None and body is None):
            raise Retriable(f"the archive's answer ended in the middle of {what}")
        found = after if body is None else body
        if len(found) > limit:
            raise _too_large(what, limit)
        yield found


def _starts_with_blank(window: _Window) -> bool:
    """A part without headers: the blank line follows at once."""
    while len(window.held) < 2:
        if not window.more():
            return False
    if window.held[:2] == b"\r\n":
        del window.held[:2]
        return True
    return False


def _length(head: bytes) -> int | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None


def _too_large(what: str, limit: int) -> TooLarge:
    return TooLarge(f"{what} of the archive is over {limit:,} bytes: {SMALLER}")


def _whole(pieces: Iterator[bytes], limit: int, what: str) -> bytes:
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) > limit:
            raise _too_large(what, limit)
    return bytes(held)
