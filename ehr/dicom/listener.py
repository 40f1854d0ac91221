"""A DICOM node that others send pictures to: C-STORE and C-ECHO (PS3.4 annex B and A; INTEROP 40).

Success is answered only after whoever takes the file says that it lies durably. What is refused is answered
with a failure status and words, so that the sender keeps it and its operator can read why.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from pydicom.dataset import Dataset
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import PresentationContext

from ehr.dicom import guard
from ehr.dicom.intake import COMMENT, OUT_OF_RESOURCES, SUCCESS, Answer, Intake
from ehr.dicom.node import PDU_BYTES, VERIFICATION, check_title
from ehr.errors import Refused

logger = logging.getLogger(__name__)
CANNOT_UNDERSTAND = 0xC000
IDLE_S = 60.0


def _nothing() -> None:
    """For callers that keep nothing for an association."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a file that was sent: `refused` says why not, "" when it lies durably."""

    refused: str = ""


class StorageListener:
    """Listens until it is closed; use it in a `with`.

    title      our AE title; callers must call us by it
    allowed    AE titles that may call; empty: any, for loopback only (raises Refused elsewhere)
    take       (file, calling AE title) → Taken, once it is durable; in the thread of that association. A
               fault is answered "out of resources", so that the sender tries again
    ended      called in the same thread when that association has ended
    into       folder of the files while they come; None: `tempfile.gettempdir()`
    tls        a server context, for DICOM over TLS (PS3.15 annex B)
    most       associations at once; more are told to come back later
    limits     a file that grows beyond `file_bytes` while it comes ends its association
    """

    def __init__(
        self,
        title: str,
        port: int,
        *,
        take: Callable[[Path, str], Taken],
        host: str = "127.0.0.1",
        allowed: Sequence[str] = (),
        ended: Callable[[], None] = _nothing,
        into: Path | None = None,
        tls: ssl.SSLContext | None = None,
        most: int = 6,
        limits: guard.Limits = guard.DEFAULT,
    ) -> None:
        for one in (title, *allowed):
            check_title(one)
        if not allowed and host not in ("127.0.0.1", "::1", "localhost"):
            raise Refused("name the AE titles that may call: open to everybody we listen on loopback only")
        self._take, self._ended, self._into, self._limits = take, ended, into, limits
        self._intakes: WeakSet[Intake] = WeakSet()
        self._closed = False
        node = AE(title)
        node.supported_contexts = AllStoragePresentationContexts
        for context in node.supported_contexts:
            context.transfer_syntax = list(AllTransferSyntaxes)
        node.add_supported_context(VERIFICATION)
        node.require_called_aet = True
        node.require_calling_aet = list(allowed)
        node.maximum_associations = most
        node.maximum_pdu_size = PDU_BYTES
        node.network_timeout = node.dimse_timeout = IDLE_S
        node.acse_timeout = 30.0
        handlers: list[Any] = [(evt.EVT_CONN_OPEN, self._opened), (evt.EVT_REJECTED, self._rejected)]
        server = node.start_server((host, port), block=False, evt_handlers=handlers, ssl_context=tls)
        assert server is not None  # it is when it does not block
        _share_syntaxes(server.contexts)
        self._server = server
        self.port: int = int(server.server_address[1])  # as given, or as found where it was 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more calls; associations that are open end, and their senders will send again."""
        if self._closed:
            return
        self._closed = True
        self._server.shutdown()
        for intake in list(self._intakes):
            intake.hang_up()

    def _opened(self, event: evt.Event) -> None:
        limit, idle = self._limits.file_bytes, IDLE_S
        intake = Intake(
            event.assoc, self._answer, ended=self._ended, into=self._into, file_bytes=limit, idle_s=idle
        )
        intake.begin()
        self._intakes.add(intake)

    def _answer(self, path: Path, calling: str) -> Answer:
        return decide(lambda: self._take(path, calling))

    def _rejected(self, event: evt.Event) -> None:
        asked = event.assoc.requestor.ae_title.strip()
        logger.warning("an association was refused: calling AE title %r, called by %r", asked, _called(event))


def _share_syntaxes(contexts: Sequence[PresentationContext]) -> None:
    """Give contexts that offer the same transfer syntaxes one list of them.

    pynetdicom copies all contexts deeply for every association: 60 ms with a list in each, 8 with one.
    """
    lists: dict[tuple[str, ...], list[UID]] = {}
    for context in contexts:
        offered = context.transfer_syntax
        context._transfer_syntax = lists.setdefault(tuple(offered), offered)


def answer_store(event: evt.Event, take: Callable[[Path], Taken]) -> Dataset | int:
    """What a C-STORE request within a C-GET is answered with, once `take` has decided about its file."""
    written: Any = event.request

    def decided() -> Taken:
        written._dataset_file.flush()
        return take(event.dataset_path)

    status, comment = decide(decided)
    if status == SUCCESS:
        return SUCCESS
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment.encode("ascii", "replace").decode()[:COMMENT]
    return answer


def decide(take: Callable[[], Taken]) -> Answer:
    """The status and the words that `take` leads to."""
    try:
        taken = take()
    except Exception as fault:  # disk, database or a defect: the sender is told to try again, and we go on
        logger.exception("a file that was sent could not be taken")
        return OUT_OF_RESOURCES, f"not stored: {type(fault).__name__}; send it again"
    return (CANNOT_UNDERSTAND, taken.refused) if taken.refused else (SUCCESS, "")


def _called(event: evt.Event) -> str:
    primitive = event.assoc.requestor.primitive
    return str(getattr(primitive, "called_ae_title", "") or "").strip()
