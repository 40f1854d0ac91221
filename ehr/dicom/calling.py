"""Calling a DICOM node: an association with it; in words why there is none, or why it did not do as asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import build_context

from ehr.dicom import guard
from ehr.dicom.node import PDU_BYTES, Node, check_title, drop_half, guard_connection
from ehr.dicom.securing import TlsFiles, client_context, handshake_fault
from ehr.errors import EhrError, Refused, Retriable

SYNTAXES = (  # what is asked for, commonest first
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)  # fmt: skip
STATUS = {
    0x0110: "it failed inside", 0x0112: "it does not know that instance", 0x0117: "the UID is invalid",
    0x0122: "it does not support that SOP Class", 0x0124: "it is not authorised: allow our AE title there",
    0x0211: "it does not support this operation", 0xA700: "it is out of resources",
    0xA701: "it is out of resources: it cannot count the matches",
    0xA702: "it is out of resources: it could not send", 0xA801: "it does not know the move destination",
    0xA900: "the query does not fit its model", 0xFE00: "it was cancelled",
}  # fmt: skip
BUSY = frozenset({0x0110, 0xA700, 0xA701, 0xA702, 0xFE00})


class Caller:
    """A DICOM node that we call.

    title       our AE title, which the peer may want to know
    tls         whose certificates are trusted and which is ours; counts where the node's address says so
    timeout_s   to connect, to agree, and for each answer
    patience_s  between two messages while the peer moves a Study
    raises      Retriable (nobody there, hung up, out of resources), Refused (title, operation or syntax not
                accepted), each with what to change
    """

    def __init__(
        self,
        node: Node,
        *,
        title: str = "TESSERA",
        tls: TlsFiles | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 300.0,
        limits: guard.Limits = guard.DEFAULT,
    ) -> None:
        check_title(title)
        self.node, self.title = node, title
        self._tls = client_context(tls or TlsFiles()) if node.tls else None
        self._timeout, self._patience, self._limits = timeout_s, patience_s, limits

    @contextmanager
    def _associated(
        self,
        contexts: Sequence[tuple[str, list[str]]],
        roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
        handlers: Sequence[tuple[Any, Any]] = (),
        *,
        patience: bool = False,
    ) -> Iterator[Association]:
        ours = AE(self.title)
        ours.acse_timeout = ours.connection_timeout = self._timeout
        ours.network_timeout = ours.dimse_timeout = self._patience if patience else self._timeout
        requested = [build_context(kind, syntaxes) for kind, syntaxes in contexts]
        rejections: list[A_ASSOCIATE_RJ] = []

        def received(event: evt.Event) -> None:
            if isinstance(event.pdu, A_ASSOCIATE_RJ):
                rejections.append(event.pdu)

        peer = ours.associate(
            self.node.host,
            self.node.port,
            contexts=requested,
            ae_title=self.node.title,
            max_pdu=PDU_BYTES,
            ext_neg=list(roles),
            tls_args=(self._tls, self.node.host) if self._tls is not None else None,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, lambda event: guard_connection(event.assoc, self._limits.file_bytes)),
                (evt.EVT_CONN_CLOSE, lambda event: drop_half(event.assoc)),
                (evt.EVT_PDU_RECV, received),
                *handlers,
            ],
        )
        try:
            if not peer.is_established:
                raise self._why_not(peer, requested[0].abstract_syntax, rejections)
            yield peer
            if peer.is_established:
                peer.release()
        finally:
            if peer.is_established:
                peer.abort()

    def _why_not(self, peer: Association, first: Any, rejections: Sequence[A_ASSOCIATE_RJ]) -> EhrError:
        """`rejections` as they came (PS3.8 9.3.4): pynetdicom may look only after the node has hung up."""
        if rejections:
            source, reason = rejections[0].source or 0, rejections[0].reason_diagnostic or 0
            why = {
                (1, 3): f"does not know our AE title {self.title}: have it added there",
                (1, 7): f"is not called {self.node.title}: ask what its AE title is",
                (1, 2): "does not know the DICOM application context",
            }.get((source, reason))
            if why is not None:
                return Refused(f"the node at {self.node.host}:{self.node.port} {why}")
            if source == 3:
                return Retriable(f"{self.node} has too many connections now")
            return Refused(
                f"{self.node} refused the association without a reason: are both AE titles right "
                f"({self.title} calls {self.node.title})?"
            )
        if peer.rejected_contexts and not peer.accepted_contexts:
            return Refused(f"{self.node} does not offer {name_of(first)} to {self.title}")
        if self._tls is not None and (fault := handshake_fault(self.node, self._tls)):
            return Refused(f"no association with {self.node} over TLS: {fault}")
        secured = "over TLS " if self._tls is not None else ""
        return Retriable(
            f"no association with {self.node} {secured}within {self._timeout:g} s: is it running, are host "
            f"and port right, does it {'' if secured else 'not '}speak TLS, and may we call it?"
        )

    def _gone(self, what: str) -> Retriable:
        return Retriable(f"{self.node} hung up or was silent too long during {what}; try again")

    def _check(self, status: Dataset, what: str) -> None:
        if not status:
            raise self._gone(what)
        code = int(status.Status)
        if code:
            said = in_words(code, str(status.get("ErrorComment", "") or ""))
            words = f"{self.node} answered {what} with {said}"
            raise Retriable(words) if code in BUSY else Refused(words)


def in_words(code: int, comment: str) -> str:
    """What a status means, with the comment that came with it."""
    known = STATUS.get(code) or ("it is out of resources" if 0xA700 <= code <= 0xA7FF else "")
    said = f' ("{comment[:64]}")' if comment else ""
    return f"status 0x{code:04X}{': ' + known if known else ''}{said}"


def name_of(uid: Any) -> str:
    """A UID as the standard names it."""
    return str(UID(str(uid)).name)
