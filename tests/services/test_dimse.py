"""C-ECHO, C-FIND, C-GET, C-MOVE and C-STORE with archives of others: dcmtk's dcmqrscp, and Orthanc."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless, UltrasoundMultiFrameImageStorage, generate_uid

import ehr
from tests.ehr.dicom.making import make_dataset, save
from tests.services import dcmtk
from tests.services.namespace import free_port
from tests.services.orthanc import running_orthanc

pytestmark = pytest.mark.service
RADIOGRAPH, ECHO = generate_uid(), generate_uid()


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A radiograph of two views, one RLE; an echo cine; and one compressed with JPEG 2000."""
    folder = tmp_path_factory.mktemp("sent")
    ramp = (np.arange(64 * 48, dtype=np.uint16) % 4096).reshape(64, 48)
    chest = {
        "StudyInstanceUID": RADIOGRAPH,
        "SeriesInstanceUID": generate_uid(),
        "BitsStored": 12,
        "HighBit": 11,
        "AccessionNumber": "A-1",
    }
    frontal = make_dataset(ramp, ViewPosition="PA", **chest)
    lateral = make_dataset(ramp[::-1].copy(), ViewPosition="LL", InstanceNumber=2, **chest)
    lateral.compress(RLELossless, generate_instance_uid=False)
    moving = np.stack([np.full((32, 40), 20 * place, np.uint8) for place in range(8)])
    echo = {
        "StudyInstanceUID": ECHO,
        "Modality": "US",
        "PatientID": "MRN-p2",
        "SOPClassUID": UltrasoundMultiFrameImageStorage,
        "FrameTime": 33.3,
        "StudyDate": "20251224",
    }
    cine, packed = make_dataset(moving, **echo), make_dataset(moving + 10, **echo)
    packed.compress(JPEG2000Lossless, generate_instance_uid=False)
    return [save(data, folder / f"{n}.dcm") for n, data in enumerate((frontal, lateral, cine, packed))]


class Receiver:
    """A node of ours that keeps what it gets."""

    def __init__(self) -> None:
        self.port = free_port()
        self.got: dict[str, str] = {}

    def take(self, path: Path, calling: str = "") -> ehr.Taken:
        self.got[ehr.read_header(path).sop_uid] = ehr.pixel_digest(path)
        return ehr.Taken()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    with ehr.StorageListener("TESSERA", found.port, take=found.take):
        yield found


@dataclass(frozen=True, slots=True)
class Archive:
    """A node of somebody else's, and what it took of what we sent."""

    client: ehr.DimseClient
    holds: list[Path]
    refused: list[ehr.Sent]


@pytest.fixture(scope="module", params=["dcmqrscp", "Orthanc"])
def archive(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    receiver: Receiver,
    sent: list[Path],
) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("archive")
    if request.param == "dcmqrscp":
        with dcmtk.running_archive(folder, receiver_port=receiver.port) as node:
            yield _filled(node, sent)
    else:
        with running_orthanc(folder, receiver_port=receiver.port) as orthanc:
            yield _filled(ehr.Node("ORTHANC", "127.0.0.1", orthanc.dicom_port), sent)


def _filled(node: ehr.Node, sent: list[Path]) -> Archive:
    client = ehr.DimseClient(node, timeout_s=10)
    answers = client.store(sent)
    assert [one.path for one in answers] == sent
    held = [one.path for one in answers if one.accepted]
    return Archive(client, held, [one for one in answers if not one.accepted])


@pytest.fixture
def client(archive: Archive) -> ehr.DimseClient:
    return archive.client


def test_every_file_is_answered_for(archive: Archive) -> None:
    """Orthanc takes all; dcmqrscp what is not compressed, and what it would not take is not sent."""
    if archive.client.node.title == "ORTHANC":
        assert not archive.refused
    else:
        rle, jpeg = archive.refused
        assert not rle.again
        assert rle.words == "ARCHIVE does not take Computed Radiography Image Storage in RLE Lossless"
        assert "JPEG 2000" in jpeg.words


def expected(sent: list[Path]) -> dict[str, str]:
    return {ehr.read_header(path).sop_uid: ehr.pixel_digest(path) for path in sent}


def test_it_is_there(client: ehr.DimseClient) -> None:
    client.echo()


def test_studies_are_found_by_what_a_hospital_asks_for(client: ehr.DimseClient) -> None:
    def uids(**query: object) -> set[str]:
        return {ehr.read_study(one).study_uid for one in client.studies(**query)}  # type: ignore[arg-type]

    assert uids() == {RADIOGRAPH, ECHO}
    assert uids(since=date(2026, 1, 1)) == {RADIOGRAPH}
    assert uids(until=date(2025, 12, 24)) == {ECHO}
    assert uids(patient_id="MRN-p2") == {ECHO}
    assert uids(accession="A-1") == {RADIOGRAPH}
    assert uids(modality="US") == {ECHO}
    assert uids(patient_id="nobody") == set()
    series = client.series(ECHO)
    assert {ehr.value_of(one, "00080060") for one in series} == {"US"}


def test_get_brings_every_instance_as_it_is_kept(archive: Archive) -> None:
    found = Receiver()
    done = [archive.client.get(uid, found.take) for uid in (RADIOGRAPH, ECHO)]
    assert sum(one.completed for one in done) == len(archive.holds)
    assert not any(one.failed or one.words for one in done)
    assert found.got == expected(archive.holds), "and in the same transfer syntax, pixel for pixel"


def test_move_brings_it_to_our_receiver(archive: Archive, receiver: Receiver) -> None:
    receiver.got.clear()
    done = [archive.client.move(uid, "TESSERA") for uid in (RADIOGRAPH, ECHO)]
    assert not any(one.failed for one in done)
    assert receiver.got == expected(archive.holds)


def test_what_is_wrong_is_said(client: ehr.DimseClient) -> None:
    with pytest.raises(ehr.Refused, match=r"could not send it .* tell it of NOWHERE"):
        client.move(RADIOGRAPH, "NOWHERE")
    wrong = ehr.Node("WRONG", client.node.host, client.node.port)
    with pytest.raises(ehr.Refused, match="WRONG"):
        ehr.DimseClient(wrong, timeout_s=5).echo()
    with pytest.raises(ehr.Refused, match="no such Study"):
        client.get("1.2.3.4.5", lambda _: ehr.Taken())


def test_a_refused_instance_is_counted(archive: Archive) -> None:
    done = archive.client.get(RADIOGRAPH, lambda _: ehr.Taken("not today"))
    assert done.completed == 0
    assert done.failed == len(
        {path for path in archive.holds if ehr.read_header(path).study_uid == RADIOGRAPH}
    )


def test_dcmtk_sends_to_us_and_success_means_taken(receiver: Receiver, sent: list[Path]) -> None:
    receiver.got.clear()
    said = dcmtk.call("storescu", "-xs", "-aec", "TESSERA", "127.0.0.1", receiver.port, sent[0])
    assert said.returncode == 0, said.stderr
    said = dcmtk.call("dcmsend", "--decompress-never", "-aec", "TESSERA", "127.0.0.1", receiver.port, *sent)
    assert said.returncode == 0, said.stderr
    assert receiver.got == expected(sent)
    assert dcmtk.call("echoscu", "-aec", "TESSERA", "127.0.0.1", receiver.port).returncode == 0
    assert dcmtk.call("echoscu", "-aec", "OTHER", "127.0.0.1", receiver.port).returncode != 0


def test_others_may_have_an_archive_send_to_us(archive: Archive, receiver: Receiver) -> None:
    """dcmtk's movescu asks the archive, and the archive sends: nobody of ours asked."""
    receiver.got.clear()
    node, keys = (
        archive.client.node,
        ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={RADIOGRAPH}"),
    )
    said = dcmtk.call(
        "movescu", "-S", "-aet", "TESSERA", "-aec", node.title, "-aem", "TESSERA", *keys, node.host, node.port
    )
    assert said.returncode == 0, said.stderr
    held = [path for path in archive.holds if ehr.read_header(path).study_uid == RADIOGRAPH]
    assert receiver.got == expected(held)


@pytest.mark.parametrize("program", ["findscu", "getscu"])
def test_we_are_no_archive_to_be_asked(receiver: Receiver, program: str) -> None:
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3")
    said = dcmtk.call(program, "-S", "-aec", "TESSERA", *keys, "127.0.0.1", receiver.port)
    assert said.returncode != 0 or "No Acceptable" in said.stderr + said.stdout
    assert "Presentation Contexts" in said.stderr + said.stdout
    assert dcmtk.call("echoscu", "-aec", "TESSERA", "127.0.0.1", receiver.port).returncode == 0
