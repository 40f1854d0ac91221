"""The DIMSE client against a node that answers as hospitals' nodes do: cut, slow, unwilling."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.acse import ACSE

import ehr
from ehr.dicom.dimse import FIND, GET
from tests.ehr.dicom.making import make_dataset, save

CT = "1.2.840.10008.5.1.4.1.1.2"


@contextmanager
def node(*handlers: Any, classes: tuple[str, ...] = (FIND,), **given: Any) -> Iterator[ehr.Node]:
    """A node called PACS that offers `classes`."""
    ours = AE("PACS")
    for kind in classes:
        ours.add_supported_context(kind, scp_role=True, scu_role=True)
    for name, value in given.items():
        setattr(ours, name, value)
    server = ours.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers))
    assert server is not None
    try:
        yield ehr.Node("PACS", "127.0.0.1", server.server_address[1])
    finally:
        server.shutdown()


def client(of: ehr.Node, **kwargs: Any) -> ehr.DimseClient:
    return ehr.DimseClient(of, **{"timeout_s": 5, **kwargs})


class Archive:
    """Studies by day; gives at most `most` and either says so or keeps silent about it."""

    def __init__(self, days: list[str], most: int, status: int) -> None:
        self.days, self.most, self.status = days, most, status
        self.asked: list[str] = []

    def find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        days = str(event.identifier.get("StudyDate", "") or "")
        self.asked.append(days)
        first, _, last = days.partition("-")
        matches = [
            (number, day)
            for number, day in enumerate(self.days)
            if not days or (day and (first or "0") <= day <= (last or "9"))
        ]
        for number, day in matches[: self.most]:
            found = Dataset()
            found.StudyInstanceUID, found.StudyDate = f"1.2.{number}", day
            yield 0xFF00, found
        if len(matches) > self.most and self.status:
            yield self.status, None


@pytest.mark.parametrize("status", [0xA700, 0], ids=["says so", "silently cut"])
def test_an_answer_that_was_cut_is_asked_again_in_halves(status: int) -> None:
    days = [f"20260{1 + n // 28 % 9}{1 + n % 28:02}" for n in range(110)]
    archive = Archive(["", *days], most=100, status=status)
    with node((evt.EVT_C_FIND, archive.find)) as pacs:
        found = [ehr.value_of(one, "0020000D") for one in client(pacs).studies()]
    assert sorted(found) == sorted(f"1.2.{number}" for number in range(111))
    assert len(found) == len(set(found))
    assert archive.asked[0] == ""
    assert len(archive.asked) > 3


def test_more_on_one_day_than_it_lists_is_no_silent_loss() -> None:
    archive = Archive(["20260101"] * 30, most=10, status=0xA700)
    with node((evt.EVT_C_FIND, archive.find)) as pacs, pytest.raises(ehr.TooLarge, match="name a modality"):
        list(client(pacs).studies(since=date(2025, 12, 1)))


def test_a_modality_the_node_ignored_is_looked_up() -> None:
    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked, found = event.identifier, Dataset()
        if asked.QueryRetrieveLevel == "STUDY":
            for uid in ("1.2.1", "1.2.2"):
                found = Dataset()
                found.StudyInstanceUID = uid
                yield 0xFF00, found
        else:
            found.SeriesInstanceUID = "1.2.3"
            found.Modality = "US" if asked.StudyInstanceUID == "1.2.2" else "CT"
            yield 0xFF00, found

    with node((evt.EVT_C_FIND, find)) as pacs:
        assert [ehr.value_of(one, "0020000D") for one in client(pacs).studies(modality="US")] == ["1.2.2"]


def test_nobody_there_says_what_to_look_at() -> None:
    nowhere = ehr.Node("PACS", "127.0.0.1", 9)
    with pytest.raises(ehr.Retriable, match=r"PACS at 127.0.0.1:9 .*is it running"):
        client(nowhere).echo()


@pytest.mark.parametrize(
    ("given", "called", "words"),
    [
        ({"require_calling_aet": ["OTHER"]}, "PACS", "does not know our AE title TESSERA: have it added"),
        ({"require_called_aet": True}, "WRONG", "is not called WRONG: ask what its AE title is"),
    ],
)
def test_a_wrong_title_is_told_apart(given: dict[str, Any], called: str, words: str) -> None:
    with node(**given) as pacs, pytest.raises(ehr.Refused, match=words):
        list(client(ehr.Node(called, pacs.host, pacs.port)).studies())


def test_a_rejection_is_told_though_the_node_hung_up_before_we_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ACSE.send_request

    def slow(acse: ACSE) -> None:
        asked(acse)
        time.sleep(0.3)  # as on a busy machine

    with node(require_calling_aet=["OTHER"]) as pacs:
        monkeypatch.setattr(ACSE, "send_request", slow)
        with pytest.raises(ehr.Refused, match="does not know our AE title TESSERA"):
            list(client(pacs).studies())


def test_an_operation_that_is_not_offered() -> None:
    with node() as pacs, pytest.raises(ehr.Refused, match=r"does not offer Verification SOP Class"):
        client(pacs).echo()


def test_silence_ends() -> None:
    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        time.sleep(1.5)
        yield 0xFF00, Dataset()

    with node((evt.EVT_C_FIND, find)) as pacs, pytest.raises(ehr.Retriable, match="silent too long"):
        list(client(pacs, timeout_s=0.5).studies())


def test_a_failure_status_is_told_in_words() -> None:
    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield 0xA900, None

    with node((evt.EVT_C_FIND, find)) as pacs, pytest.raises(ehr.Refused, match="0xA900: the query does not"):
        list(client(pacs).studies())


def test_get_asks_for_each_syntax_apart_and_answers_what_became_of_a_file(tmp_path: Path) -> None:
    path = save(make_dataset(np.zeros((8, 8), np.uint16), SOPClassUID=CT), tmp_path / "a.dcm")
    answered = []

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        found = Dataset()
        found.StudyInstanceUID, found.SOPClassesInStudy = "1.2.1", [CT]
        yield 0xFF00, found

    def get(event: evt.Event) -> Iterator[Any]:
        answered.append(
            [
                str(one.transfer_syntax[0])
                for one in event.assoc.accepted_contexts
                if one.abstract_syntax == CT
            ]
        )
        yield 1
        yield 0xFF00, pydicom.dcmread(path)

    handlers = (evt.EVT_C_FIND, find), (evt.EVT_C_GET, get)
    with node(*handlers, classes=(FIND, GET, CT)) as pacs:
        got: list[str] = []

        def take(file: Path) -> ehr.Taken:
            got.append(ehr.read_header(file).sop_uid)
            return ehr.Taken()

        done = client(pacs).get("1.2.1", take)
        refused = client(pacs).get("1.2.1", lambda _: ehr.Taken("not ours"))
    assert (done.completed, done.failed) == (1, 0)
    assert got == [ehr.read_header(path).sop_uid]
    assert len(answered[0]) == len(set(answered[0])) > 2
    assert (refused.completed, refused.failed) == (0, 1)


def test_what_the_node_does_not_take_is_not_sent(tmp_path: Path) -> None:
    stored = []

    def store(event: evt.Event) -> int:
        stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0xA700

    picture = save(make_dataset(np.zeros((8, 8), np.uint16), SOPClassUID=CT), tmp_path / "a.dcm")
    other = save(make_dataset(np.zeros((8, 8), np.uint16)), tmp_path / "b.dcm")
    with node((evt.EVT_C_STORE, store), classes=(CT,)) as pacs:
        full, unknown = client(pacs).store([picture, other])
    assert (full.accepted, full.again, full.words) == (False, True, "status 0xA700: it is out of resources")
    assert (unknown.accepted, unknown.again) == (False, False)
    assert unknown.words.startswith("PACS does not take Computed Radiography")
    assert stored == [full.sop_uid]


def test_a_file_that_does_not_say_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"nothing")
    with pytest.raises(ehr.BadInstance, match="File Meta Information"):
        client(ehr.Node("PACS", "127.0.0.1", 9)).store([path])


@pytest.mark.parametrize(
    "address",
    [
        "dimse://host:104",
        "dimse://PACS@host",
        "http://PACS@host:104",
        "dimse://PACS@host:104/x",
        "dimse://A\\B@h:1",
    ],
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ehr.Refused):
        ehr.parse_node(address)


def test_an_address() -> None:
    assert ehr.parse_node("dimse://PACS@10.0.0.7:104") == ehr.Node("PACS", "10.0.0.7", 104)
    assert ehr.parse_node("dimse+tls://My PACS@pacs.example:2762").tls
