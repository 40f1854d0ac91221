"""Reading the body of an answer: a limit in bytes and in seconds, so that no server fills the memory."""

from __future__ import annotations

import time

import httpx

from ehr.errors import Retriable, TooLarge

ERROR_BYTES = 64 * 1024  # what is read of an answer that refuses


def read_body(answer: httpx.Response, said: str, *, limit: int, within_s: float) -> bytes:
    """The whole body of a streamed answer, unpacked. Raises TooLarge, Retriable.

    said    what was asked, for messages: "GET /fhir/metadata"
    """
    held, started = bytearray(), time.monotonic()
    for piece in answer.iter_bytes():
        held += piece
        if time.monotonic() - started > within_s:
            raise Retriable(f"{said}: the body took longer than {within_s:g} s")
        if len(held) > limit:
            raise TooLarge(
                f"{said}: the body is larger than {limit} bytes, the most that is read of one answer; have "
                "the server answer with less, or see that the address is the one you meant"
            )
    return bytes(held)


def read_beginning(answer: httpx.Response, *, limit: int = ERROR_BYTES) -> bytes:
    """The first bytes of a streamed answer, unpacked: enough of one that refuses. Raises httpx.HTTPError."""
    held = bytearray()
    for piece in answer.iter_bytes():
        held += piece
        if len(held) >= limit:
            break
    return bytes(held[:limit])
