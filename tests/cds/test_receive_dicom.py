"""`manage.py receive_dicom`: a scanner sends, and success means stored. The peer is pynetdicom's own SCU."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from django.db import OperationalError, connections
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ

import ehr
from cds import listening
from cds.patients.models import NOT_READ, Patient, SetAside
from cds.studies import arriving, clips, receiving
from cds.studies.models import Encoding, Instance, Study, StudyState
from ehr import ImagingStudyRecord, Refused, StorageListener
from ehr.dicom import guard
from tests.cds.dicom_files import write_radiograph, write_report
from tests.ehr.dicom.making import bomb, make_dataset, save
from tests.factories import NOW, TESTS, make_source

SEND_RAW = """
import sys
from pynetdicom import AE, _config
_config.STORE_SEND_CHUNKED_DATASET = True  # as it is: nothing is inflated by us
node = AE("CT1")
node.add_requested_context("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.1.99")
peer = node.associate("127.0.0.1", int(sys.argv[1]), ae_title="TESSERA")
answer = peer.send_c_store(sys.argv[2])
print(f"{answer.Status:x}", answer.ErrorComment)
peer.release()
"""
CR = "1.2.840.10008.5.1.4.1.1.1"
ECHO = "1.2.840.10008.1.1"
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def arrivals(settings: Any, tmp_path: Path) -> listening.Arrivals:
    settings.DATA_DIR = tmp_path
    settings.STUDY_STORE = tmp_path / "studies"
    return listening.Arrivals(make_source(), quiet_s=0)


@contextmanager
def node(arrivals: listening.Arrivals, **kwargs: Any) -> Iterator[StorageListener]:
    with (
        arrivals,
        StorageListener(
            "TESSERA", 0, take=arrivals.take, ended=arrivals.hang_up, into=arrivals.incoming, **kwargs
        ) as found,
    ):
        yield found


@contextmanager
def calling(
    port: int, *, called: str = "TESSERA", title: str = "CT1", more: Sequence[str] = (), **kwargs: Any
) -> Iterator[Association]:
    peer = AE(title)
    for context in (CR, ECHO, *more):
        peer.add_requested_context(context)
    found = peer.associate("127.0.0.1", port, ae_title=called, **kwargs)
    try:
        yield found
    finally:
        if found.is_established:
            found.release()
        if found.is_alive():
            found.join(5)


def send(port: int, *paths: Path, **kwargs: Any) -> list[Dataset]:
    with calling(port, **kwargs) as peer:
        assert peer.is_established
        return [peer.send_c_store(pydicom.dcmread(path)) for path in paths]


def test_what_was_answered_with_success_is_stored_and_completed(
    arrivals: listening.Arrivals, tmp_path: Path
) -> None:
    path = write_radiograph(tmp_path / "a.dcm")
    with node(arrivals) as listener:
        (answer,) = send(listener.port, path)
    assert answer.Status == 0
    study = Study.objects.get()
    assert study.state == StudyState.ANNOUNCED, "more may come"
    assert arrivals.complete_due() == 1
    study.refresh_from_db()
    assert study.state == StudyState.STORED
    assert Encoding.objects.filter(study=study).exists()
    assert arrivals.complete_due() == 0


def test_the_same_instance_twice_is_one_and_with_other_pixels_it_is_refused_with_words(
    arrivals: listening.Arrivals, tmp_path: Path
) -> None:
    path, other = write_radiograph(tmp_path / "a.dcm"), write_radiograph(tmp_path / "b.dcm", seed=1)
    with node(arrivals) as listener:
        answers = send(listener.port, path, path, other)
    assert [answer.Status for answer in answers] == [0, 0, 0xC000]
    assert answers[2].ErrorComment
    assert Instance.objects.count() == 1
    assert SetAside.objects.get().where == "C-STORE from CT1"


@pytest.mark.parametrize("modality", ["SR", "PR", "KO"])
def test_what_holds_no_picture_is_no_failure_and_is_not_kept(
    arrivals: listening.Arrivals, tmp_path: Path, modality: str
) -> None:
    picture = write_radiograph(tmp_path / "a.dcm")
    report = write_report(tmp_path / "r.dcm", picture, modality=modality)
    lost = pydicom.dcmread(picture)
    del lost.PixelData
    lost.SOPInstanceUID = lost.file_meta.MediaStorageSOPInstanceUID = f"{lost.SOPInstanceUID[:50]}.9"
    lost.save_as(tmp_path / "lost.dcm")
    kind = pydicom.dcmread(report).SOPClassUID
    with node(arrivals) as listener:
        answers = send(listener.port, report, picture, tmp_path / "lost.dcm", more=[kind])
    assert [answer.Status for answer in answers] == [0, 0, 0xC000], "a picture without pixels is one"
    noted = SetAside.objects.get(kind=NOT_READ)
    data = pydicom.dcmread(report)
    assert (noted.identity, noted.where) == (
        data.SOPInstanceUID,
        f"C-STORE from CT1, study {data.StudyInstanceUID}",
    )
    assert f"holds no picture (Modality {modality})" in noted.reason
    assert Instance.objects.count() == 1
    assert not list(arrivals._root.rglob("*.dcm"))


def test_a_picture_cut_off_before_its_rows_is_refused_and_not_lost(
    arrivals: listening.Arrivals, tmp_path: Path
) -> None:
    cut = pydicom.dcmread(write_radiograph(tmp_path / "a.dcm"))
    for tag in [element.tag for element in cut if element.tag.group >= 0x0028]:
        del cut[tag]
    cut.save_as(tmp_path / "cut.dcm")
    with node(arrivals) as listener:
        (answer,) = send(listener.port, tmp_path / "cut.dcm")
    assert answer.Status == 0xC000, "the sender keeps what it has"
    assert SetAside.objects.get().kind == "DICOM"


def test_what_holds_no_picture_and_cannot_be_noted_is_sent_again(
    arrivals: listening.Arrivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("gone")

    report = write_report(tmp_path / "r.dcm", write_radiograph(tmp_path / "a.dcm"))
    with node(arrivals) as listener, monkeypatch.context() as broken:
        broken.setattr("cds.patients.importing.keep_set_aside", away)
        (answer,) = send(listener.port, report, more=[pydicom.dcmread(report).SOPClassUID])
    assert answer.Status == 0xA700
    left = arrivals._root / f"{arrivals._source.slug}.left"
    left.mkdir(parents=True)
    report.rename(left / "1.dcm")
    with listening.Arrivals(arrivals._source):
        assert SetAside.objects.get().kind == NOT_READ, "a killed receiver left it"
    assert not list(arrivals._root.rglob("*.dcm"))


def test_a_full_store_is_not_a_success(
    arrivals: listening.Arrivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cds.listening._sync", full)
    with node(arrivals) as listener:
        (answer,) = send(listener.port, write_radiograph(tmp_path / "a.dcm"))
    assert answer.Status == 0xA700
    assert "send it again" in answer.ErrorComment
    assert not Instance.objects.exists()


def test_file_and_name_are_synced_before_success_is_answered(
    arrivals: listening.Arrivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr("cds.listening.os.fsync", fsync)
    with node(arrivals) as listener:
        assert synced.pop() == arrivals.inbox.parent
        (answer,) = send(listener.port, write_radiograph(tmp_path / "a.dcm"))
        before = list(synced)
    assert answer.Status == 0
    file, folder = before[:2]
    assert (file.suffix, file.parent, folder) == (".dcm", arrivals.inbox, arrivals.inbox)


def test_the_database_was_away_and_the_next_process_records_what_was_answered(
    arrivals: listening.Arrivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("gone")

    with monkeypatch.context() as broken:
        broken.setattr("cds.studies.arriving.record_arrivals", away)
        with node(arrivals) as listener:
            (answer,) = send(listener.port, write_radiograph(tmp_path / "a.dcm"))
    assert answer.Status == 0, "it lies durably in the inbox"
    assert not Instance.objects.exists()
    with listening.Arrivals(arrivals._source, quiet_s=0) as again:
        held = Instance.objects.get()
        assert clips.path_of(held.path).is_file()
        assert again.complete_due() == 1
    assert not list(arrivals._root.rglob("*.dcm"))


def test_a_fault_that_nobody_expected_stops_no_recording(
    arrivals: listening.Arrivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, faults = arriving.record_arrivals, [RuntimeError("a defect"), ehr.Retriable("no child")]

    def sometimes(*known: Any, **more: Any) -> Any:
        if faults:
            raise faults.pop()
        return record(*known, **more)

    monkeypatch.setattr("cds.studies.arriving.record_arrivals", sometimes)
    with node(arrivals) as listener:
        send(listener.port, write_radiograph(tmp_path / "a.dcm"))
        assert arrivals.settle()
    assert not faults
    assert Instance.objects.exists()


def test_what_cannot_be_read_after_a_restart_is_kept_with_its_reason(arrivals: listening.Arrivals) -> None:
    left = arrivals._root / f"{arrivals._source.slug}.left"
    left.mkdir(parents=True)
    (left / "1.dcm").write_bytes(b"success was answered for it")
    with arrivals:
        assert SetAside.objects.get().where == "C-STORE, found in the inbox"
    assert (arrivals.aside / "1.dcm").read_bytes() == b"success was answered for it"


def test_killed_between_the_row_and_its_place(
    arrivals: listening.Arrivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise OSError("killed here")

    with monkeypatch.context() as broken:
        broken.setattr("cds.studies.clips.place", killed)
        with node(arrivals) as listener:
            send(listener.port, write_radiograph(tmp_path / "a.dcm"))
    held = Instance.objects.get()
    assert not clips.path_of(held.path).exists()
    with listening.Arrivals(arrivals._source):
        assert clips.path_of(held.path).is_file()
    assert Instance.objects.count() == 1


def test_what_is_found_wrong_after_success_is_reported_and_its_file_kept(
    arrivals: listening.Arrivals, tmp_path: Path
) -> None:
    first = write_radiograph(tmp_path / "a.dcm", name="a")
    other = write_radiograph(tmp_path / "b.dcm", name="b", seed=1)
    data = pydicom.dcmread(other)
    data.SeriesInstanceUID, data.StudyInstanceUID = pydicom.dcmread(first).SeriesInstanceUID, "1.2.3.4"
    data.save_as(other)
    with node(arrivals) as listener:
        answers = send(listener.port, first, other)
    assert [answer.Status for answer in answers] == [0, 0]
    assert "belongs to another Study" in SetAside.objects.get().reason
    assert len(list(arrivals.aside.glob("*.dcm"))) == 1


def test_a_file_larger_than_the_limit_ends_the_association_and_leaves_nothing(
    arrivals: listening.Arrivals, tmp_path: Path
) -> None:
    limits = guard.Limits(file_bytes=200_000)
    big = make_dataset(np.zeros((1024, 1024), np.uint16))
    with node(arrivals, limits=limits) as listener:
        with calling(listener.port) as peer, pytest.raises((RuntimeError, AttributeError)):
            assert peer.send_c_store(pydicom.dcmread(save(big, tmp_path / "big.dcm"))).Status is None
        (answer,) = send(listener.port, write_radiograph(tmp_path / "a.dcm"))
    assert answer.Status == 0, "the next one is served"
    assert not list(arrivals._root.rglob("*.dcm"))
    assert Instance.objects.count() == 1


def test_a_deflated_bomb_costs_a_refusal(arrivals: listening.Arrivals, tmp_path: Path) -> None:
    path = bomb(tmp_path, megabytes=520)
    assert path.stat().st_size < 3_000_000
    with node(arrivals) as listener:
        said = subprocess.run(
            [sys.executable, "-c", SEND_RAW, str(listener.port), str(path)], capture_output=True, text=True
        )
        (answer,) = send(listener.port, write_radiograph(tmp_path / "a.dcm"))
    assert said.stdout.startswith("c000 the deflated data set inflates beyond"), said.stderr
    assert answer.Status == 0


def test_only_those_who_are_allowed_and_know_our_title(arrivals: listening.Arrivals) -> None:
    answers: list[Any] = []
    heard = [(evt.EVT_PDU_RECV, lambda event: answers.append(event.pdu))]
    with node(arrivals, allowed=["CT1"]) as listener:
        with calling(listener.port) as peer:
            assert peer.send_c_echo().Status == 0
        for wrong in ({"title": "CT2"}, {"called": "OTHER"}):
            with calling(listener.port, **wrong, evt_handlers=heard) as peer:
                assert not peer.is_established
    assert all(isinstance(answer, A_ASSOCIATE_RJ) for answer in answers)
    assert [answer.reason_diagnostic for answer in answers] == [3, 7], "PS3.8 9.3.4: calling, called AE title"


@pytest.mark.parametrize(
    ("given", "message"),
    [({"host": "0.0.0.0"}, "name the AE titles"), ({"allowed": ["back\\slash"]}, "not an AE title")],
)
def test_an_open_door_is_not_opened(
    arrivals: listening.Arrivals, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=message), node(arrivals, **given):
        pass


def test_several_associations_at_once(arrivals: listening.Arrivals, tmp_path: Path) -> None:
    paths = [write_radiograph(tmp_path / f"{n}.dcm", name=str(n), seed=n) for n in range(8)]
    found: list[int] = []

    def sender(mine: list[Path]) -> None:
        found.extend(answer.Status for answer in send(listener.port, *mine))

    with node(arrivals) as listener:
        threads = [threading.Thread(target=sender, args=(paths[n::4],)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == [0] * 8
    assert Instance.objects.count() == 8


def test_associations_that_end_give_their_connections_back(
    arrivals: listening.Arrivals, tmp_path: Path
) -> None:
    paths = [write_radiograph(tmp_path / f"{n}.dcm", name=str(n), seed=n) for n in range(12)]
    with node(arrivals) as listener:  # on PostgreSQL a pool of eight serves them all
        assert [send(listener.port, path)[0].Status for path in paths] == [0] * 12


def test_a_study_that_a_killed_process_left_is_completed(
    arrivals: listening.Arrivals, tmp_path: Path
) -> None:
    with node(arrivals) as listener:
        send(listener.port, write_radiograph(tmp_path / "a.dcm"))
    again = listening.Arrivals(Study.objects.get().source, quiet_s=0)
    assert again.complete_due() == 1


def test_a_study_that_is_whole_is_completed_at_once(arrivals: listening.Arrivals, tmp_path: Path) -> None:
    path = write_radiograph(tmp_path / "a.dcm")
    header = pydicom.dcmread(path)
    told = ImagingStudyRecord(
        resource_type="ImagingStudy", resource_id="s1", available_at=None,
        study_uid=str(header.StudyInstanceUID), expected=((str(header.SeriesInstanceUID), 1),),
    )  # fmt: skip
    arrivals._quiet_s = 3600
    receiving.announce(told, source=make_source(), by=TESTS, now=NOW)
    stop = threading.Event()

    def watch() -> None:
        listening.watch(arrivals, stop, every_s=600)
        connections.close_all()

    watching = threading.Thread(target=watch)
    with node(arrivals) as listener:
        watching.start()
        send(listener.port, path)
        until = time.monotonic() + 60
        while Study.objects.get().state != StudyState.STORED and time.monotonic() < until:
            time.sleep(0.05)
        stop.set()
        arrivals.wake()
        watching.join(30)
    assert Study.objects.get().state == StudyState.STORED
    assert not watching.is_alive()


def test_a_patient_who_is_known_is_scored_anew(arrivals: listening.Arrivals, tmp_path: Path) -> None:
    patient = Patient.objects.create(source=make_source(), resource_id="p1", changed_at=NOW)
    number = patient.identifiers.create(system="urn:mrn", value="MRN-77")
    with node(arrivals) as listener:
        send(listener.port, write_radiograph(tmp_path / "a.dcm", patient_id=number.value))
    was = patient.revision
    arrivals.complete_due()
    patient.refresh_from_db()
    assert patient.revision > was


def test_over_tls(arrivals: listening.Arrivals, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.fail(f"openssl made no certificate: {made.stderr.decode()[-300:]}")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(certificate))
    with node(arrivals, tls=server) as listener:
        answers = send(listener.port, write_radiograph(tmp_path / "a.dcm"), tls_args=(client, "localhost"))
        assert answers[0].Status == 0
        with calling(listener.port) as peer:
            assert not peer.is_established, "nobody comes in without TLS"


@contextmanager
def command(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`receive_dicom` as a process of its own, on a database of its own."""
    environment = {**os.environ, "TESSERA_DATA_DIR": str(folder), "DATABASE_URL": ""}
    manage = [sys.executable, "manage.py"]
    subprocess.run([*manage, "migrate", "-v", "0"], env=environment, check=True, timeout=120)
    asked = [*manage, "receive_dicom", "--port", str(port), "--quiet", "0.5"]
    started = subprocess.Popen(asked, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        assert "TESSERA listens" in started.stdout.readline()
        yield started
    finally:
        started.kill()
        started.wait(10)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def held(folder: Path) -> list[tuple[str, str]]:
    """(SOP Instance UID, path) of every instance in that database."""
    with closing(sqlite3.connect(folder / "tessera.sqlite3")) as database:
        return database.execute("SELECT sop_uid, path FROM studies_instance").fetchall()


def test_the_command_listens_and_stops(tmp_path: Path, port: int) -> None:
    with command(tmp_path, port) as started:
        (answer,) = send(port, write_radiograph(tmp_path / "a.dcm"))
        assert answer.Status == 0
        time.sleep(2)
        started.send_signal(signal.SIGTERM)
        assert "stopped" in started.communicate(timeout=30)[0]
    assert len(held(tmp_path)) == 1
    assert not list((tmp_path / "studies" / ".inbox").rglob("*.dcm"))


def test_killed_while_receiving_nothing_is_lost_and_nothing_doubled(tmp_path: Path, port: int) -> None:
    paths = [write_radiograph(tmp_path / f"{n}.dcm", name=str(n), seed=n) for n in range(12)]
    answered: list[str] = []
    with command(tmp_path, port) as started, calling(port) as peer:
        for number, path in enumerate(paths):
            if number == 5:
                threading.Timer(0.01, started.kill).start()
            try:
                status = peer.send_c_store(pydicom.dcmread(path)).get("Status")
            except RuntimeError:
                break  # the association is gone
            if status == 0:
                answered.append(pydicom.dcmread(path).SOPInstanceUID)
        started.wait(10)
    assert 5 <= len(answered) < len(paths)
    with command(tmp_path, port) as again:
        assert {uid for uid, _ in held(tmp_path)} >= set(answered), "success was answered, so it is stored"
        assert [answer.Status for answer in send(port, *paths)] == [0] * len(paths)
        again.terminate()
        again.wait(60)
    found = held(tmp_path)
    assert len(found) == len({uid for uid, _ in found}) == len(paths)
    assert all((tmp_path / "studies" / path).is_file() for _, path in found)
