"""Asking a DICOM node and sending to it: C-ECHO, C-FIND, C-GET, C-MOVE and C-STORE (PS3.4 annexes A to C).

Every call is an association of its own, with a time limit on each step. What goes wrong is an EhrError that
says what to change, and on whose side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_role

from ehr.dicom import guard
from ehr.dicom.calling import BUSY, SYNTAXES, Caller, in_words, name_of
from ehr.dicom.listener import Taken, answer_store
from ehr.dicom.node import VERIFICATION, check_title
from ehr.errors import BadInstance, Refused, TooLarge

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{last}" for last in (1, 2, 3))  # Study Root
LASTS = (
    "1", "1.1", "1.2", "2", "2.1", "3.1", "4", "4.1", "6.1", "7", "7.2", "7.3", "7.4", "12.1",
    "12.2", "20", "128", "77.1.1", "77.1.4", "88.33", "66.4",
)  # fmt: skip
USUAL = tuple(f"1.2.840.10008.5.1.4.1.1.{last}" for last in LASTS)
# Storage classes, for nodes that do not tell: CR, DX, MG, CT, US, MR, SC, XA, RF, NM, PET, VL, SR, SEG.
CONTEXTS = 128  # presentation contexts of one association, PS3.8 9.3.2.2
WANTED = ("StudyInstanceUID", "StudyDate", "StudyTime", "TimezoneOffsetFromUTC", "ModalitiesInStudy",
          "StudyDescription", "PatientID", "IssuerOfPatientID", "AccessionNumber",
          "NumberOfStudyRelatedInstances", "SOPClassesInStudy")  # fmt: skip
ROUND = 100  # a number of matches that this divides may be where the peer stopped counting
EARLIEST = date(1970, 1, 1)
MOST_MATCHES = 100_000


@dataclass(frozen=True, slots=True)
class Sent:
    """What a node answered to one file: `accepted`, or not and whether to send it `again`."""

    path: Path
    sop_uid: str
    accepted: bool
    again: bool = False
    words: str = ""


@dataclass(slots=True)
class Moved:
    """What came of a C-GET or C-MOVE, as the peer counts. `words` says why, where something is missing."""

    completed: int = 0
    failed: int = 0
    words: str = ""
    failed_uids: list[str] = field(default_factory=list)


class DimseClient(Caller):
    """Questions to a DICOM node, and files for it: each call an association of its own (see `Caller`)."""

    def echo(self) -> None:
        """Ask whether it is there and would talk to us (C-ECHO)."""
        with self._associated([(VERIFICATION, list(SYNTAXES[:2]))]) as peer:
            self._check(peer.send_c_echo(), "C-ECHO")

    def list_untaken(self, kinds: Sequence[str], syntax: str = SYNTAXES[0]) -> list[str]:
        """Of these SOP Classes, those it would not take in `syntax` by C-STORE; asked, and nothing sent.

        Raises Retriable, Refused: also when it takes none of them.
        """
        with self._associated([(kind, [syntax]) for kind in kinds]) as peer:
            taken = {str(one.abstract_syntax) for one in peer.accepted_contexts}
        return [name_of(kind) for kind in kinds if kind not in taken]

    def studies(
        self,
        *,
        since: date | None = None,
        until: date | None = None,
        patient_id: str = "",
        modality: str = "",
        accession: str = "",
        study_uid: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Studies the node has, as DICOM JSON (see `read_study`), each once (C-FIND, study root).

        since, until  StudyDate, both days included
        C-FIND has no pages. Where the peer says that there are too many, or stops at a round number, the days
        are halved until every answer is whole; studies without a date are then found only as far as the first
        answer lists them.
        raises  TooLarge when one day alone has more than it gives
        """
        query = {"PatientID": patient_id, "ModalitiesInStudy": modality, "AccessionNumber": accession,
                 "StudyInstanceUID": study_uid}  # fmt: skip
        seen: set[str] = set()
        with self._associated([(FIND, list(SYNTAXES[:2]))]) as peer:
            for found in self._studies(peer, query, since, until):
                uid = str(found.get("StudyInstanceUID", ""))
                if uid and uid not in seen:
                    seen.add(uid)
                    if modality and not self._has(peer, found, modality):
                        continue
                    yield found.to_json_dict(suppress_invalid_tags=True)

    def series(self, study_uid: str) -> list[dict[str, Any]]:
        """The Series of a Study as DICOM JSON: UID, Modality and, where told, how many instances."""
        wanted = ("SeriesInstanceUID", "Modality", "SeriesNumber", "NumberOfSeriesRelatedInstances")
        with self._associated([(FIND, list(SYNTAXES[:2]))]) as peer:
            found, _ = self._find(peer, "SERIES", {"StudyInstanceUID": study_uid}, wanted)
        return [one.to_json_dict(suppress_invalid_tags=True) for one in found]

    def get(self, study_uid: str, take: Callable[[Path], Taken]) -> Moved:
        """Fetch a Study over the same connection (C-GET), each instance in the syntax the node keeps it in.

        take   called with each file; what it refuses is answered so. The file is gone afterwards
        Files come into `tempfile.gettempdir()`.
        """
        classes = self._classes(study_uid)
        each = max(1, (CONTEXTS - 1) // max(1, len(classes)))
        contexts = [(GET, list(SYNTAXES[:2]))]
        contexts += [(kind, [syntax]) for kind in classes for syntax in SYNTAXES[:each]]

        def store(event: evt.Event) -> Dataset | int:
            try:
                return answer_store(event, take)
            finally:
                event.request._dataset_file.close()  # type: ignore[union-attr]
                Path(event.dataset_path).unlink(missing_ok=True)

        roles = [build_role(UID(kind), scp_role=True) for kind in classes]
        handlers = [(evt.EVT_C_STORE, store)]
        with self._associated(contexts[:CONTEXTS], roles, handlers, patience=True) as peer:
            return self._moved(peer.send_c_get(_identifier(study_uid), GET), "C-GET")

    def move(self, study_uid: str, destination: str) -> Moved:
        """Have a Study sent to the node called `destination` (C-MOVE): usually our own receiver."""
        check_title(destination)
        with self._associated([(MOVE, list(SYNTAXES[:2]))], patience=True) as peer:
            answers = peer.send_c_move(_identifier(study_uid), destination, MOVE)
            return self._moved(answers, "C-MOVE", f"{destination} and where it listens")

    def store(self, paths: Sequence[Path]) -> list[Sent]:
        """Send files as they are (C-STORE); one answer each, in order.

        A file whose kind or syntax the node does not take is answered for by us, without sending it.
        raises  BadInstance when a file's meta information does not say what it is
        """
        files = [(path, *_meta(path)) for path in paths]
        kinds: dict[str, set[str]] = defaultdict(set)
        for _, kind, _, syntax in files:
            kinds[kind].add(syntax)
        contexts = [(kind, [syntax]) for kind in sorted(kinds) for syntax in sorted(kinds[kind])]
        if not files:
            return []
        if len(contexts) > CONTEXTS:
            raise Refused(f"{len(contexts)} kinds of files at once; send at most {CONTEXTS} in one go")
        sent = []
        with self._associated(contexts) as peer:
            taken = {
                (str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in peer.accepted_contexts
            }
            for path, kind, uid, syntax in files:
                if (kind, syntax) not in taken:
                    words = f"{self.node.title} does not take {name_of(kind)} in {name_of(syntax)}"
                    sent.append(Sent(path, uid, accepted=False, words=words))
                    continue
                try:
                    status = peer.send_c_store(path)
                except (RuntimeError, ValueError, AttributeError, OSError) as error:
                    raise self._gone("C-STORE") from error
                if not status:
                    raise self._gone("C-STORE")
                code, said = int(status.Status), str(status.get("ErrorComment", "") or "")
                accepted = code == 0 or code in (0x0001, 0xB000, 0xB006, 0xB007)
                words = "" if code == 0 else in_words(code, said)
                again = not accepted and (code in BUSY or 0xA700 <= code <= 0xA7FF)
                sent.append(Sent(path, uid, accepted, again, words))
        return sent

    def _has(self, peer: Association, study: Dataset, modality: str) -> bool:
        """Whether a Study has this Modality; a node may ignore the question (it is optional in C-FIND)."""
        told = {str(one) for one in _many(study.get("ModalitiesInStudy"))}
        if not told:
            query = {"StudyInstanceUID": str(study.StudyInstanceUID)}
            series, _ = self._find(peer, "SERIES", query, ("SeriesInstanceUID", "Modality"))
            told = {str(one.get("Modality", "")) for one in series}
        return modality in told

    def _studies(
        self, peer: Association, query: dict[str, str], since: date | None, until: date | None
    ) -> Iterator[Dataset]:
        days = "-".join(f"{day:%Y%m%d}" if day else "" for day in (since, until)) if since or until else ""
        found, whole = self._find(peer, "STUDY", {**query, "StudyDate": days}, WANTED)
        if whole:
            yield from found
            return
        first, last = since or EARLIEST, until or datetime.now(UTC).date() + timedelta(days=1)
        if first >= last:
            if found and len(found) % ROUND == 0:
                yield from found  # there happen to be as many, or it gives no more: nothing smaller to ask
                return
            raise TooLarge(
                f"{self.node.title} has more studies on one day than it lists: name a modality or a patient, "
                "or raise its limit of C-FIND answers"
            )
        yield from found  # those without a date match no range
        middle = first + (last - first) // 2
        yield from self._studies(peer, query, first, middle)
        yield from self._studies(peer, query, middle + timedelta(days=1), last)

    def _find(
        self, peer: Association, level: str, query: dict[str, str], wanted: Sequence[str]
    ) -> tuple[list[Dataset], bool]:
        """Matches, and whether these are all."""
        asked = Dataset()
        asked.QueryRetrieveLevel = level
        for keyword in dict.fromkeys((*wanted, *query)):
            setattr(asked, keyword, query.get(keyword, "") or None)
        found: list[Dataset] = []
        try:
            for status, match in peer.send_c_find(asked, FIND):
                if not status:
                    raise self._gone("C-FIND")
                code = int(status.Status)
                if code in (0xFF00, 0xFF01):
                    if match is not None:
                        found.append(match)
                    if len(found) > MOST_MATCHES:
                        raise TooLarge(f"{self.node.title} found over {MOST_MATCHES:,} matches: ask for less")
                elif code in (0xA700, 0xFE00):
                    return found, False
                else:
                    self._check(status, "C-FIND")
        except (RuntimeError, ValueError) as error:
            raise self._gone("C-FIND") from error
        return found, not (level == "STUDY" and found and len(found) % ROUND == 0)

    def _classes(self, study_uid: str) -> list[str]:
        """The SOP Classes of a Study: as the node tells, else as its instances are."""
        with self._associated([(FIND, list(SYNTAXES[:2]))]) as peer:
            query = {"StudyInstanceUID": study_uid}
            found, _ = self._find(peer, "STUDY", query, ("StudyInstanceUID", "SOPClassesInStudy"))
            told = {str(uid) for one in found for uid in _many(one.get("SOPClassesInStudy"))}
            if told:
                return sorted(told)
            if not found:
                raise Refused(f"{self.node.title} has no such Study")
            series, _ = self._find(peer, "SERIES", query, ("SeriesInstanceUID",))
            for one in series:
                within = {**query, "SeriesInstanceUID": str(one.get("SeriesInstanceUID", ""))}
                images, _ = self._find(peer, "IMAGE", within, ("SOPInstanceUID", "SOPClassUID"))
                told |= {str(image.get("SOPClassUID", "")) for image in images} - {""}
        return sorted(told) or list(USUAL)

    def _moved(self, answers: Iterator[tuple[Dataset, Dataset | None]], what: str, to: str = "") -> Moved:
        done = Moved()
        try:
            for status, identifier in answers:
                if not status:
                    raise self._gone(what)
                done.completed = int(status.get("NumberOfCompletedSuboperations", done.completed) or 0)
                done.completed += int(status.get("NumberOfWarningSuboperations", 0) or 0)
                done.failed = int(status.get("NumberOfFailedSuboperations", done.failed) or 0)
                code = int(status.Status)
                if identifier is not None:
                    done.failed_uids = [str(uid) for uid in _many(identifier.get("FailedSOPInstanceUIDList"))]
                if code == 0xA801 or (to and code in (0xC000, 0xA702) and not done.completed):
                    raise Refused(
                        f"{self.node} could not send it (status 0x{code:04X}): tell it of {to}, and have it "
                        "reach us there. If other studies come, our receiver refused one of its instances, "
                        "and says why"
                    )
                if code in (0xFF00, 0x0000):
                    continue
                if code == 0xB000 or (code in (0xA702, 0xC000) and done.failed):
                    done.words = in_words(code, str(status.get("ErrorComment", "") or ""))
                    continue
                self._check(status, what)
        except RuntimeError as error:
            raise self._gone(what) from error
        return done


def _identifier(study_uid: str) -> Dataset:
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", study_uid
    return asked


def _many(value: Any) -> list[Any]:
    held = getattr(value, "value", value)
    if held is None or held == "":
        return []
    return list(held) if not isinstance(held, str) else [held]


def _meta(path: Path) -> tuple[str, str, str]:
    """(SOP Class UID, SOP Instance UID, Transfer Syntax UID) as the File Meta Information says."""
    try:
        with path.open("rb") as stream:
            read = guard.read_meta_elements(stream)
    except OSError as error:
        raise BadInstance(f"the file cannot be opened ({error.strerror})") from None
    found = read[0] if read is not None else {}
    kind, uid, syntax = (found.get(element, "") for element in (0x0002, 0x0003, 0x0010))
    if not (kind and uid and syntax):
        raise BadInstance("the file does not say what it is: it lacks DICOM File Meta Information")
    return kind, uid, syntax
