"""DICOMweb out: STOW-RS (PS3.18 10.5), each instance with the archive's answer, partial failures included.

Sending the same instance again is harmless: an archive that has its SOP Instance UID already says so, or
answers as if it were new, and either counts as stored.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from ehr.calling import ServerClient
from ehr.dicom.web import check_answer, value_of
from ehr.fhir.sign_in import SignIn

PIECE = 256 * 1024
ALREADY_THERE = 0x0111  # duplicate SOP Instance
REASONS = {  # Failure Reason (0008,1197), PS3.18 table I.2-2 and PS3.4 B.2.3
    0x0110: "it could not process it",
    0x0122: "it does not take this SOP Class",
    0x0124: "we are not authorised",
    0xA700: "it is out of resources",
    0xA900: "the data set does not fit its SOP Class",
    0xC000: "it cannot understand it",
    0xC122: "it does not take this transfer syntax",
}
HINTS = {
    403: "allow our account to store",
    405: "it does not offer STOW-RS here",
    413: "it takes no file of that size",
    415: "it does not take application/dicom",
}
RESENT = frozenset({0x0110, 0xA700})  # reasons that may pass


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """What the archive did with one instance.

    again  the same may succeed later
    words  why it was not stored
    """

    sop_uid: str
    stored: bool
    again: bool = False
    words: str = ""


class StowClient(ServerClient):
    """An archive's STOW-RS at `base_url` (the part before `/studies`). Use in a `with`, or call `close`.

    token       bearer token or where tokens come from; `auth` for user and password instead
    allow_http  plain http outside loopback, for a network that is trusted
    raises      Refused when it is not an address we may call
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | SignIn = "",
        auth: tuple[str, str] | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        allow_http: bool = False,
    ) -> None:
        super().__init__(
            base_url,
            accept="application/dicom+json",
            token=token,
            auth=auth,
            timeout_s=timeout_s,
            transport=transport,
            allow_http=allow_http,
        )

    def check(self) -> None:
        """Ask for one Study, to see that the address and the sign-in are right. Raises Refused, Retriable."""
        self._call("GET", "studies?limit=1")

    def store(self, study_uid: str, instances: Mapping[str, bytes]) -> list[StoreAnswer]:
        """Store Part 10 files of one Study, by SOP Instance UID.

        raises  Retriable (time-out, connection lost, 429, 5xx with Retry-After), Refused (another 4xx without
                an answer for each instance, a redirect)
        """
        boundary = uuid.uuid4().hex
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        parts = list(instances.values())
        status, body = self._call(
            "POST",
            f"studies/{study_uid}",
            content=_multipart(parts, boundary),
            headers={"Content-Type": kind, "Content-Length": str(_length(parts, boundary))},
            readable=frozenset({409}),  # none was stored: the body says why of each
        )
        return _answers(status, body, list(instances))

    def _call(
        self,
        method: str,
        path: str,
        *,
        content: Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        readable: frozenset[int] = frozenset(),
    ) -> tuple[int, bytes]:
        answer, body = self._exchange(
            method,
            path,
            said=f"{method} {path.partition('?')[0]} of the archive",
            content=content,
            headers=headers,
        )
        if not (answer.status_code in readable and body):
            check_answer(answer, HINTS)
        return answer.status_code, body


def _answers(status: int, body: bytes, sent: list[str]) -> list[StoreAnswer]:
    """What is said of each; an archive that says nothing at all (200, empty) took everything."""
    said = _as_object(body)
    stored = {value_of(item, "00081155") for item in _items(said, "00081199")}
    failed = {value_of(item, "00081155"): _reason(item) for item in _items(said, "00081198")}
    answers = []
    for uid in sent:
        if uid in failed and failed[uid] != ALREADY_THERE:
            reason = failed[uid]
            why = REASONS.get(reason, "it gave no reason that we know")
            words = f"the archive did not store it: {why} ({reason:04X}H)"
            answers.append(StoreAnswer(uid, False, reason in RESENT or reason >> 8 == 0xA7, words))
        elif uid in failed or uid in stored or (status == 200 and not failed):
            answers.append(StoreAnswer(uid, True))
        else:
            answers.append(
                StoreAnswer(uid, False, True, f"the archive answered {status} and said nothing of it")
            )
    return answers


def _multipart(parts: list[bytes], boundary: str) -> Iterator[bytes]:
    for part in parts:
        yield _head(boundary)
        for start in range(0, len(part), PIECE):
            yield part[start : start + PIECE]
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _head(boundary: str) -> bytes:
    return f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()


def _length(parts: list[bytes], boundary: str) -> int:
    around = len(_head(boundary)) + 2
    return sum(len(part) + around for part in parts) + len(boundary) + 6


def _as_object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _items(said: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    attribute = said.get(tag)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    return [one for one in values or [] if isinstance(one, Mapping)]


def _reason(item: Mapping[str, Any]) -> int:
    found = value_of(item, "00081197")
    return int(found) if found.isdecimal() else 0
