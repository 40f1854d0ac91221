"""What an accepted association sends, from the socket straight into a file (PS3.7 9.3.1, PS3.8 9.3.5).

pynetdicom makes and ends associations; what lies between is read here, in its reading thread, because each
of its messages is copied five times and waits for two threads that look every millisecond. One buffer takes
each P-DATA-TF PDU; what is pixels goes from there to the file and nowhere else.
"""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.association import Association

from ehr.dicom.node import MESSAGE_MOST, PDU_MOST, acknowledge_at_once, answer_at_once

logger = logging.getLogger(__name__)
P_DATA = 4
OPEN = "Sta6"  # PS3.8 9.2: association established and ready for data transfer
COMMAND, LAST = 1, 2  # bits of a message control header, PS3.8 E.2
STORE, STORE_ANSWER, ECHO, ECHO_ANSWER, CANCEL = 0x0001, 0x8001, 0x0030, 0x8030, 0x0FFF
NO_DATA_SET = 0x0101
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700
UID_MOST = 64  # PS3.5 9
COMMENT = 64  # characters of an Error Comment (LO)
ABORT = struct.pack(">BxL2xBB", 7, 4, 2, 0)  # by the service provider, no reason: PS3.8 9.3.8
Answer = tuple[int, str]  # status and Error Comment


class _Ended(Exception):
    """The peer is silent for too long, or says what it may not: the association is aborted."""


@dataclass(slots=True)
class _Store:
    """A C-STORE request whose data set is coming."""

    number: int
    context: int
    sop_class: str
    sop_uid: str
    path: Path
    descriptor: int = -1
    held: int = 0
    fault: str = ""  # why nothing of it is kept: the disk is full


class Intake:
    """Serves one association that somebody opened with us.

    take        (file, calling AE title) → status and comment of the C-STORE answer; the file is removed
                afterwards unless it was moved away
    ended       called in the same thread when the association has ended
    into        folder of the files while they come; None: `tempfile.gettempdir()`
    file_bytes  of a file; one that grows beyond it ends its association
    idle_s      of silence, after which the association is aborted
    """

    def __init__(
        self,
        association: Association,
        take: Callable[[Path, str], Answer],
        *,
        ended: Callable[[], None],
        into: Path | None,
        file_bytes: int,
        idle_s: float,
    ) -> None:
        self._association, self._take, self._ended = association, take, ended
        self._into, self._file_bytes, self._idle_s = into, file_bytes, idle_s
        self._buffer = bytearray(6)
        self._command = bytearray()
        self._store: _Store | None = None
        self._socket: Any = None
        self._prefix: dict[int, int] = {}

    def begin(self) -> None:
        """Take over the reading. For the event of a connection that opens."""
        held: Any = self._association.dul.socket
        if held is None or held.socket is None:
            return
        self._socket = held.socket
        self._socket.settimeout(self._idle_s)  # before there is an association, too
        held.recv = self._read
        answer_at_once(self._association)

    def hang_up(self) -> None:
        """End the connection, from any thread; whoever waits for it goes on."""
        try:
            self._socket.shutdown(2)
        except OSError:
            return  # it has ended

    def _read(self, count: int) -> bytes | bytearray:
        """What pynetdicom reads by. Once the association is open, the next head that is not of data."""
        if count == 6 and self._association.dul.state_machine.current_state == OPEN:
            return self._serve()
        if count > PDU_MOST:
            raise OSError("more than we said we take")
        return bytearray(self._exactly(count))

    def _serve(self) -> bytes:
        ours: Any = self._association
        ours._reactor_checkpoint.clear()  # its other thread would look for messages all the time
        self._socket.settimeout(self._idle_s)
        try:
            while True:
                head = bytes(self._exactly(6))
                if len(head) < 6 or head[0] != P_DATA:
                    return head
                self._data(struct.unpack_from(">L", head, 2)[0])
        except (_Ended, TimeoutError) as ended:
            logger.warning("an association was aborted: %s", str(ended) or f"{self._idle_s:g} s of silence")
            self._socket.sendall(ABORT)
            return b""
        finally:
            self._drop()
            self._ended()
            ours.dul._idle_timer.restart()
            ours._reactor_checkpoint.set()

    def _exactly(self, count: int) -> memoryview:
        """The next bytes; fewer when the peer has hung up. The view is good until the next call."""
        if count > len(self._buffer):
            self._buffer = bytearray(count)
        view, filled = memoryview(self._buffer), 0
        while filled < count:
            got = self._socket.recv_into(view[filled:count])
            if not got:
                break
            filled += got
        acknowledge_at_once(self._socket)
        return view[:filled]

    def _data(self, length: int) -> None:
        """One P-DATA-TF PDU: presentation data values, each a piece of a command or of a data set."""
        if length > PDU_MOST:
            raise _Ended("a PDU is longer than we said we take")
        pdu, at = self._exactly(length), 0
        if len(pdu) < length:
            raise _Ended("the peer hung up within a PDU")
        while at < length:
            if at + 6 > length:
                raise _Ended("a PDU is damaged")
            size, context, control = struct.unpack_from(">LBB", pdu, at)
            value = pdu[at + 6 : at + 4 + size]
            if size < 2 or at + 4 + size > length:
                raise _Ended("a PDU is damaged")
            at += 4 + size
            if control & COMMAND:
                self._heard(value, context, whole=bool(control & LAST))
            else:
                self._came(value, context, whole=bool(control & LAST))

    def _heard(self, piece: memoryview, context: int, *, whole: bool) -> None:
        if self._store is not None or len(self._command) + len(piece) > MESSAGE_MOST:
            raise _Ended("a command came where a data set was expected, or it is too long")
        self._command += piece
        if not whole:
            return
        command = read_command(bytes(self._command))
        self._command.clear()
        accepted = self._association._accepted_cx.get(context)
        kind, number = _number(command, 0x0100), _number(command, 0x0110)
        if accepted is None:
            raise _Ended("a message came in a presentation context that was not agreed")
        if kind == CANCEL:
            return  # nothing of ours takes long enough
        if kind == ECHO:
            about = {0x0002: _text(command, 0x0002)}
            self._answer(context, about, ECHO_ANSWER, number, SUCCESS)
        elif kind == STORE and _number(command, 0x0800) != NO_DATA_SET:
            sop_class, sop_uid = _text(command, 0x0002), _text(command, 0x1000)
            self._store = self._begin(number, context, sop_class, sop_uid, str(accepted.transfer_syntax[0]))
        else:
            raise _Ended(f"operation 0x{kind:04X} is none of ours")

    def _begin(self, number: int, context: int, sop_class: str, sop_uid: str, syntax: str) -> _Store:
        if not (0 < len(sop_class) <= UID_MOST and 0 < len(sop_uid) <= UID_MOST):
            raise _Ended("a C-STORE request does not say what it sends, or with no UID")
        folder = self._into if self._into is not None else Path(tempfile.gettempdir())
        store = _Store(number, context, sop_class, sop_uid, folder / f"{uuid.uuid4().hex}.dcm")
        try:
            store.descriptor = os.open(store.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            _write(store.descriptor, memoryview(part_10_head(sop_class, sop_uid, syntax)))
        except OSError as error:
            _give_up(store, error)
        return store

    def _came(self, piece: memoryview, context: int, *, whole: bool) -> None:
        store = self._store
        if store is None:
            raise _Ended("a data set came without a command")
        if context != store.context:
            raise _Ended("a data set came in another presentation context than its command")
        store.held += len(piece)
        if store.held > self._file_bytes:
            raise _Ended(f"a file is larger than {self._file_bytes:,} bytes")
        if not store.fault:
            try:
                _write(store.descriptor, piece)
            except OSError as error:  # what is left of it is read all the same, then the sender is told
                _give_up(store, error)
        if whole:
            self._finish(store, context)

    def _finish(self, store: _Store, context: int) -> None:
        status, comment = OUT_OF_RESOURCES, f"not stored: {store.fault}; send it again"
        if not store.fault:
            os.close(store.descriptor)
            store.descriptor = -1
            title = str(self._association.requestor.ae_title).strip()
            status, comment = self._take(store.path, title)
        self._drop()
        about = {0x0002: store.sop_class, 0x1000: store.sop_uid}
        self._answer(context, about, STORE_ANSWER, store.number, status, comment)

    def _drop(self) -> None:
        """Remove what is left of a file: half of one, or one that nobody moved away."""
        store, self._store = self._store, None
        if store is not None:
            if store.descriptor >= 0:
                os.close(store.descriptor)
            store.path.unlink(missing_ok=True)

    def _answer(
        self, context: int, about: dict[int, str], kind: int, number: int, status: int, comment: str = ""
    ) -> None:
        command = write_command(about, kind, number, status, comment)
        value = struct.pack(">LBB", len(command) + 2, context, COMMAND | LAST) + command
        self._socket.sendall(struct.pack(">BxL", P_DATA, len(value)) + value)


def read_command(encoded: bytes) -> dict[int, bytes]:
    """A command set by element number: group 0000, implicit VR little endian (PS3.7 6.3)."""
    found, at = {}, 0
    while at + 8 <= len(encoded):
        group, element, length = struct.unpack_from("<HHL", encoded, at)
        if group != 0 or at + 8 + length > len(encoded):
            raise _Ended("a command is damaged")
        found[element] = encoded[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def write_command(about: dict[int, str], kind: int, number: int, status: int, comment: str = "") -> bytes:
    """An answer's command set. `about` the UIDs by element; `number` the Message ID that is answered."""
    short = {0x0100: kind, 0x0120: number, 0x0800: NO_DATA_SET, 0x0900: status}
    values = {element: struct.pack("<H", value) for element, value in short.items()}
    values |= {element: _even(uid.encode("ascii", "replace"), b"\0") for element, uid in about.items() if uid}
    if comment:
        values[0x0902] = _even(comment.encode("ascii", "replace")[:COMMENT], b" ")
    body = b"".join(
        struct.pack("<HHL", 0, element, len(values[element])) + values[element] for element in sorted(values)
    )
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def part_10_head(sop_class: str, sop_uid: str, syntax: str) -> bytes:
    """Preamble and File Meta Information of a data set that came by C-STORE (PS3.10 7.1)."""
    texts = {0x0002: sop_class, 0x0003: sop_uid, 0x0010: syntax, 0x0012: PYNETDICOM_IMPLEMENTATION_UID}
    meta = struct.pack("<HH2sxxL", 2, 1, b"OB", 2) + b"\0\1"
    for element, uid in texts.items():
        value = _even(uid.encode("ascii", "replace"), b"\0")
        meta += struct.pack("<HH2sH", 2, element, b"UI", len(value)) + value
    version = _even(PYNETDICOM_IMPLEMENTATION_VERSION.encode(), b" ")
    meta += struct.pack("<HH2sH", 2, 0x0013, b"SH", len(version)) + version
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta


def _give_up(store: _Store, error: OSError) -> None:
    logger.error("a file that was sent could not be written: %s", error.strerror)
    store.fault = type(error).__name__
    if store.descriptor >= 0:
        os.ftruncate(store.descriptor, 0)


def _write(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _even(value: bytes, pad: bytes) -> bytes:
    return value + pad if len(value) % 2 else value


def _number(command: dict[int, bytes], element: int) -> int:
    value = command.get(element, b"")
    return int(struct.unpack("<H", value)[0]) if len(value) == 2 else 0


def _text(command: dict[int, bytes], element: int) -> str:
    return command.get(element, b"").rstrip(b"\0 ").decode("ascii", "replace")
