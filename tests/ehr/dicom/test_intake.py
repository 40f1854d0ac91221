"""What comes over an open association: pieces of any size, nonsense, silence, a full disk."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dsutils import decode

from ehr import StorageListener, Taken
from ehr.dicom import intake, listener
from tests.ehr.dicom.making import make_dataset, save

CR, ECHO, EXPLICIT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.1", "1.2.840.10008.1.2.1"
FILE = make_dataset(np.arange(4096, dtype=np.uint16).reshape(64, 64), PatientID="PIECES")


class Kept:
    """What was taken: the bytes of each file, as the listener's `take` found it."""

    def __init__(self) -> None:
        self.files: list[bytes] = []

    def take(self, path: Path, calling: str) -> Taken:
        assert calling == "CT1"
        self.files.append(path.read_bytes())
        return Taken()


@contextmanager
def listening(folder: Path) -> Iterator[tuple[StorageListener, Kept]]:
    kept = Kept()
    with StorageListener("TESSERA", 0, take=kept.take, into=folder) as found:
        yield found, kept


@contextmanager
def calling(port: int) -> Iterator[Association]:
    """An association whose own side is quiet, so that the test may write to its socket."""
    node = AE("CT1")
    node.add_requested_context(CR, EXPLICIT)
    node.add_requested_context(ECHO)
    peer = node.associate("127.0.0.1", port, ae_title="TESSERA")
    assert peer.is_established
    peer._reactor_checkpoint.clear()
    try:
        yield peer
    finally:
        peer._reactor_checkpoint.set()
        if peer.is_established:
            peer.abort()
        peer.join(5)


def raw(peer: Association) -> Any:
    held: Any = peer.dul.socket
    return held.socket


def answer(peer: Association) -> int:
    """The status of the next answer."""
    peer.dimse.assoc.dimse_timeout = 20
    _, message = peer.dimse.get_msg(block=True)
    assert message is not None, "no answer came"
    return int(message.Status or 0)


def ended(peer: Association) -> bool:
    """Whether the other side ends the association, within a while."""
    until = time.monotonic() + 20
    while time.monotonic() < until and not peer.acse.is_aborted():
        time.sleep(0.01)
    return bool(peer.acse.is_aborted())


def data_set() -> bytes:
    held = BytesIO()
    pydicom.dcmwrite(held, FILE, implicit_vr=False, little_endian=True)
    content = held.getvalue()
    return content[content.index(b"\x08\x00\x16\x00UI") :]


def store_command(number: int = 7, sop_uid: str = str(FILE.SOPInstanceUID)) -> bytes:
    values = {
        0x0002: CR.encode() + b"\0", 0x0100: struct.pack("<H", 1), 0x0110: struct.pack("<H", number),
        0x0700: struct.pack("<H", 2), 0x0800: struct.pack("<H", 1),
        0x1000: sop_uid.encode() + b"\0" * (len(sop_uid) % 2),
    }  # fmt: skip
    body = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in sorted(values.items()))
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def value_item(piece: bytes, control: int, context: int = 1) -> bytes:
    return struct.pack(">LBB", len(piece) + 2, context, control) + piece


def pdu(*items: bytes) -> bytes:
    return struct.pack(">BxL", 4, sum(map(len, items))) + b"".join(items)


def in_pieces(content: bytes, cuts: list[int], last: int, more: int) -> list[bytes]:
    places = sorted({0, len(content), *(cut % len(content) for cut in cuts)})
    spans = list(pairwise(places))
    return [value_item(content[a:b], last if b == len(content) else more) for a, b in spans]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Association, Kept]]:
    with listening(tmp_path_factory.mktemp("door")) as (found, kept), calling(found.port) as peer:
        yield peer, kept


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 10**6), max_size=6), st.lists(st.integers(1, 10**6), max_size=3), st.booleans()
)
def test_a_file_is_the_same_in_whatever_pieces_it_comes(
    door: tuple[Association, Kept], cuts: list[int], command_cuts: list[int], together: bool
) -> None:
    peer, kept = door
    kept.files.clear()
    items = in_pieces(store_command(), command_cuts, 3, 1) + in_pieces(data_set(), cuts, 2, 0)
    raw(peer).sendall(pdu(*items) if together else b"".join(map(pdu, items)))
    assert answer(peer) == 0
    (content,) = kept.files
    came = pydicom.dcmread(BytesIO(content))
    assert content.endswith(data_set())
    assert came.file_meta.TransferSyntaxUID == EXPLICIT
    assert came.file_meta.MediaStorageSOPInstanceUID == FILE.SOPInstanceUID
    assert came.pixel_array.tolist() == FILE.pixel_array.tolist()


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (pdu(value_item(b"\0" * 10, 2)), "a data set without a command"),
        (pdu(value_item(store_command(), 3), value_item(store_command(), 3)), "two commands"),
        (pdu(value_item(store_command(), 3, context=99)), "no such context"),
        (pdu(value_item(b"\1\2\3\4" * 8, 3)), "a command of nonsense"),
        (struct.pack(">BxL", 4, 20) + struct.pack(">LBB", 999, 1, 2) + b"\0" * 14, "longer than its PDU"),
        (struct.pack(">BxL", 4, 2**31), "a PDU of two gigabytes"),
        (
            pdu(value_item(store_command(), 3), value_item(b"\0" * 10, 0, context=3)),
            "data elsewhere",
        ),
        (pdu(value_item(store_command(sop_uid="1." * 40_000), 3)), "a UID without end"),
        (pdu(value_item(intake.write_command({}, 0x0020, 1, 0), 3)), "C-FIND"),
    ],
)
def test_nonsense_ends_its_association_and_leaves_nothing(tmp_path: Path, sent: bytes, why: str) -> None:
    with listening(tmp_path) as (found, kept):
        with calling(found.port) as peer:
            raw(peer).sendall(sent)
            assert ended(peer), why
        with calling(found.port) as peer:
            peer._reactor_checkpoint.set()
            assert peer.send_c_echo().Status == 0, "the next one is served"
    assert not kept.files
    assert not list(tmp_path.iterdir())


def test_who_hangs_up_within_a_file_leaves_nothing(tmp_path: Path) -> None:
    with listening(tmp_path) as (found, kept):
        with calling(found.port) as peer:
            raw(peer).sendall(pdu(value_item(store_command(), 3), value_item(data_set()[:500], 0)))
            until = time.monotonic() + 20
            while not list(tmp_path.iterdir()) and time.monotonic() < until:
                time.sleep(0.01)
            assert list(tmp_path.iterdir()), "it is on its way"
            raw(peer).shutdown(2)
        until = time.monotonic() + 20
        while list(tmp_path.iterdir()) and time.monotonic() < until:
            time.sleep(0.01)
    assert not kept.files
    assert not list(tmp_path.iterdir())


def test_silence_ends_an_association(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "IDLE_S", 0.3)
    with listening(tmp_path) as (found, _), calling(found.port) as peer:
        raw(peer).sendall(pdu(value_item(store_command(), 3), value_item(data_set()[:500], 0)))
        assert ended(peer)
    assert not list(tmp_path.iterdir())


def test_silence_before_an_association_ends_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "IDLE_S", 0.3)
    with listening(tmp_path) as (found, _), socket.create_connection(("127.0.0.1", found.port)) as peer:
        peer.sendall(b"\1\0\0")
        peer.settimeout(20)
        assert peer.recv(1) == b"", "the door hangs up"


def test_a_listener_that_closes_ends_what_is_open(tmp_path: Path) -> None:
    with listening(tmp_path) as (found, _), calling(found.port) as peer:
        raw(peer).sendall(pdu(value_item(store_command(), 3), value_item(data_set(), 2)))
        assert answer(peer) == 0
        found.close()
        assert ended(peer)


def test_a_full_disk_is_told_and_the_association_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, written = 300, os.write

    def write(descriptor: int, piece: Any) -> int:
        if len(piece) > room:
            raise OSError(28, "No space left on device")
        return written(descriptor, piece)

    with listening(tmp_path) as (found, kept), calling(found.port) as peer:
        store = pdu(value_item(store_command(), 3), value_item(data_set(), 2))
        with monkeypatch.context() as full:
            full.setattr(os, "write", write)
            raw(peer).sendall(store)
            assert answer(peer) == 0xA700
        assert not kept.files
        raw(peer).sendall(store)
        assert answer(peer) == 0
    assert len(kept.files) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("comment", ["", "why not", "odd"])
def test_an_answer_is_a_command_set_as_the_standard_has_it(comment: str) -> None:
    encoded = intake.write_command({0x0002: CR, 0x1000: "1.2.3"}, 0x8001, 9, 0xC000, comment)
    command = decode(BytesIO(encoded), True, True)
    assert (command.CommandField, command.MessageIDBeingRespondedTo, command.Status) == (0x8001, 9, 0xC000)
    assert (command.AffectedSOPClassUID, command.AffectedSOPInstanceUID) == (CR, "1.2.3")
    assert command.CommandDataSetType == 0x0101
    assert command.get("ErrorComment", "") == comment
    assert command.CommandGroupLength == len(encoded) - 12
    assert intake.read_command(encoded)[0x0900] == b"\x00\xc0"


def test_a_saved_file_is_what_pydicom_would_have_written(tmp_path: Path) -> None:
    head = intake.part_10_head(CR, str(FILE.SOPInstanceUID), EXPLICIT)
    ours, theirs = tmp_path / "ours.dcm", save(FILE, tmp_path / "theirs.dcm")
    ours.write_bytes(head + data_set())
    assert pydicom.dcmread(ours) == pydicom.dcmread(theirs)
    meta = pydicom.filereader.read_file_meta_info(ours)
    assert meta.FileMetaInformationGroupLength == len(head) - 144


def test_the_end_of_an_association_is_told_in_the_thread_that_took_its_files(tmp_path: Path) -> None:
    threads: list[str] = []

    def take(path: Path, calling: str) -> Taken:
        threads.append(f"took in {threading.get_ident()}")
        return Taken()

    def over() -> None:
        threads.append(f"ended in {threading.get_ident()}")

    with StorageListener("TESSERA", 0, take=take, ended=over, into=tmp_path) as node:
        with calling(node.port) as peer:
            raw(peer).sendall(pdu(value_item(store_command(), 3), value_item(data_set(), 2)))
            assert answer(peer) == 0
        until = time.monotonic() + 20
        while len(threads) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    took, told = threads
    assert (took.split()[0], told.split()[0]) == ("took", "ended")
    assert took.split()[-1] == told.split()[-1]


def test_an_association_copies_one_list_of_transfer_syntaxes_only(tmp_path: Path) -> None:
    """pynetdicom copies every context for each association: with a list in each, that takes 60 ms."""
    with StorageListener("TESSERA", 0, take=Kept().take, into=tmp_path) as node:
        contexts = node._server.contexts
        assert len(contexts) > 100
        assert len({id(context._transfer_syntax) for context in contexts}) == 2  # of storage, of C-ECHO
