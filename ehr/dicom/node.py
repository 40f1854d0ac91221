"""A DICOM node and a connection to one: titles, addresses, and what pynetdicom is told once and for all.

A peer's message is somebody else's input. So a PDU may be no longer than we said it may be, whatever its
length field claims, and what it says is not logged: queries carry names and numbers of patients.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pynetdicom import _config
from pynetdicom.association import Association

from ehr.dicom import guard
from ehr.errors import Refused

TITLE = re.compile(r"[\x21-\x5b\x5d-\x7e](?:[\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")
PDU_BYTES = 256 * 1024
PDU_MOST = 1024 * 1024  # with what negotiation may add; a longer one ends the connection
MESSAGE_MOST = 16 * 1024 * 1024  # of a message without a file: a command, a match
VERIFICATION = "1.2.840.10008.1.1"
SCHEMES = {"dimse": False, "dimse+tls": True}

_config.STORE_RECV_CHUNKED_DATASET = True  # to a file as it comes, not into memory
_config.STORE_SEND_CHUNKED_DATASET = True
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False


@dataclass(frozen=True, slots=True)
class Node:
    """A DICOM node: its AE title and where it listens."""

    title: str
    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.title} at {self.host}:{self.port}"


def parse_node(address: str) -> Node:
    """`dimse://TITLE@host:port`, or `dimse+tls://…`. Raises Refused saying what an address looks like."""
    shape = "a DICOM node is written dimse://TITLE@host:port (or dimse+tls://…)"
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    title = parts.netloc.rpartition("@")[0]  # as written: urlsplit would keep its case, but not a colon
    rest = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in SCHEMES or not parts.hostname or not port or not title or rest:
        raise Refused(shape)
    check_title(title)
    return Node(title, parts.hostname, port, SCHEMES[parts.scheme])


def check_title(title: str) -> None:
    """An AE title: PS3.5 6.2. Raises Refused."""
    if not TITLE.fullmatch(title):
        raise Refused(f"{title!r} is not an AE title: 1 to 16 printable characters, no backslash")


def guard_connection(association: Association, file_bytes: int = guard.DEFAULT.file_bytes) -> None:
    """Read in large pieces, and no more than one PDU, one message and one file may have.

    For the event of a connection that opens. pynetdicom reads 4 KiB at a time and believes any length; what
    asks for more loses its connection.
    """
    held = association.dul.socket
    if held is None or held.socket is None:
        return

    def read(count: int) -> bytearray:
        if held.socket is None or count > PDU_MOST or _too_much(association, file_bytes):
            raise OSError("more than we said we take")
        found, filled = bytearray(count), 0
        with memoryview(found) as view:
            while filled < count:
                got = held.socket.recv_into(view[filled:])
                if not got:
                    break
                filled += got
        del found[filled:]
        return found

    held.recv = read  # type: ignore[method-assign, assignment]
    answer_at_once(association)


def _too_much(association: Association, file_bytes: int) -> bool:
    message = association.dimse.message
    if message is None:
        return False
    file: Any = message._data_set_file
    if file is not None:
        return bool(file.tell() > file_bytes)
    return message.encoded_command_set.tell() + message.data_set.tell() > MESSAGE_MOST  # type: ignore[union-attr]


def drop_half(association: Association) -> None:
    """Remove the file of a message that will not end any more. For the event of a connection that closes."""
    message = association.dimse.message
    file: Any = message._data_set_file if message is not None else None
    if file is not None:
        file.close()
        Path(file.name).unlink(missing_ok=True)


def answer_at_once(association: Association) -> None:
    """Neither our answers nor our acknowledgements wait for more: a peer that lets small packets wait for
    those (Nagle) would lose 40 ms a message."""
    found = getattr(association.dul.socket, "socket", None)
    if found is None:
        return
    try:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        return  # it has been closed
    acknowledge_at_once(found)


def acknowledge_at_once(connection: socket.socket) -> None:
    """What came is acknowledged without waiting for more. The kernel forgets this, so it is set again."""
    if hasattr(socket, "TCP_QUICKACK"):  # Linux
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
