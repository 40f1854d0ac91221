"""The body of an answer, within limits so that no server fills the memory; why none came, in words."""

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


def why(error: httpx.HTTPError) -> str:
    """A connection's fault in words an integrator can act on, its kind first."""
    kind, said = type(error).__name__, str(error)
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            f"{kind}: its certificate is not trusted here ({said.rpartition(': ')[2][:100]}): install the "
            "hospital's authority (CA) on this machine"
        )
    if isinstance(error, httpx.ConnectError) and said == "Refused":  # by ehr.guarded
        return f"{kind}: its name leads to this machine or to a reserved network, which is not called"
    if isinstance(error, httpx.ConnectTimeout):
        return f"{kind}: nobody answered: is a firewall between us?"
    if isinstance(error, httpx.ConnectError):
        return f"{kind}: nobody listens there: check host and port, and that the server runs"
    return kind
