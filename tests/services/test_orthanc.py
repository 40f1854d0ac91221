"""Simulated studies in a real archive, fetched by DICOMweb through a hospital's doors, and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from pydicom import dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless, RLELossless, UltrasoundMultiFrameImageStorage, generate_uid

import ehr
from cds.studies import receiving
from cds.studies.models import Instance, Series, Study, StudyState
from tests.ehr.dicom.making import make_dataset, save
from tests.factories import NOW, TESTS, make_source
from tests.services.orthanc import INSIDE, Orthanc, running_orthanc

pytestmark = pytest.mark.service
RADIOGRAPH, ECHO = generate_uid(), generate_uid()


def _sent(folder: Path) -> list[Path]:
    """A radiograph of two views, one RLE; an echo cine; and one compressed with JPEG 2000."""
    ramp = (np.arange(64 * 48, dtype=np.uint16) % 4096).reshape(64, 48)
    chest = {
        "StudyInstanceUID": RADIOGRAPH,
        "SeriesInstanceUID": generate_uid(),
        "BitsStored": 12,
        "HighBit": 11,
    }
    frontal = make_dataset(
        ramp, ViewPosition="PA", BodyPartExamined="CHEST", WindowCenter=2048, WindowWidth=4096, **chest
    )
    lateral = make_dataset(ramp[::-1].copy(), ViewPosition="LL", InstanceNumber=2, **chest)
    lateral.compress(RLELossless, generate_instance_uid=False)
    moving = np.stack([np.full((32, 40), 20 * place, np.uint8) for place in range(8)])
    echo = {
        "StudyInstanceUID": ECHO,
        "Modality": "US",
        "PatientID": "MRN-p2",
        "SOPClassUID": UltrasoundMultiFrameImageStorage,
        "FrameTime": 33.3,
        "PixelSpacing": [0.4, 0.4],
        "StudyDate": "20251224",
    }
    cine = make_dataset(moving, **echo)
    packed = make_dataset(moving + 10, **echo)
    packed.compress(JPEG2000Lossless, generate_instance_uid=False)
    return [
        save(data, folder / f"{place}.dcm") for place, data in enumerate((frontal, lateral, cine, packed))
    ]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return _sent(tmp_path_factory.mktemp("sent"))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, sent: list[Path]) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        for path in sent:
            running.upload(path.read_bytes())
        yield running


@pytest.fixture
def archive(orthanc: Orthanc) -> Iterator[ehr.DicomWebClient]:
    with ehr.DicomWebClient(orthanc.dicom_web, auth=orthanc.auth, page=1) as client:
        yield client


def test_it_is_reachable_from_this_machine_only(orthanc: Orthanc) -> None:
    """Orthanc's own port is open in its namespace only; the relay's on 127.0.0.1 only."""
    port = int(orthanc.url.rsplit(":", 1)[1])
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line
    ]
    assert [place for place in listening if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    assert not [place for place in listening if place.endswith(f":{INSIDE:04X}")]


def test_every_page_is_asked_for(archive: ehr.DicomWebClient) -> None:
    found = {study.study_uid: study for study in map(ehr.read_study, archive.studies())}
    assert set(found) == {RADIOGRAPH, ECHO}
    assert found[ECHO].modalities == ("US",)
    assert found[RADIOGRAPH].started_at is not None
    assert [ehr.value_of(one, "0020000D") for one in archive.studies(since=date(2026, 1, 1))] == [RADIOGRAPH]
    assert [ehr.value_of(one, "0020000D") for one in archive.studies(patient_id="MRN-p2")] == [ECHO]
    assert list(archive.studies(patient_id="nobody")) == []


def test_instances_come_as_they_were_stored(archive: ehr.DicomWebClient, sent: list[Path]) -> None:
    fetched = [content for uid in (RADIOGRAPH, ECHO) for content in archive.instances(uid)]
    expected = {ehr.read_header(path).sop_uid: path for path in sent}
    assert {ehr.read_header(content).sop_uid for content in fetched} == set(expected)
    for content in fetched:
        header = ehr.read_header(content)
        original = expected[header.sop_uid]
        assert header.transfer_syntax_uid == ehr.read_header(original).transfer_syntax_uid
        assert ehr.pixel_digest(content) == ehr.pixel_digest(original)


def test_metadata_and_frames_tell_and_bring_what_was_stored(
    archive: ehr.DicomWebClient, sent: list[Path]
) -> None:
    """The RLE view of the radiograph too: frames come as bare values, whatever the archive keeps."""
    expected = {ehr.read_header(path).sop_uid: path for path in sent}
    contents = [one for uid in (RADIOGRAPH, ECHO) for one in ehr.read_contents(archive.metadata(uid))]
    assert {one.sop_uid for one in contents} == set(expected)
    assert {one.modality for one in contents} == {"CR", "US"}
    assert all(one.is_picture and not one.is_ours for one in contents)
    for one in contents:
        data = dcmread(expected[one.sop_uid])
        values = data.pixel_array
        where = (str(data.StudyInstanceUID), one.series_uid, one.sop_uid)
        (told,) = ehr.read_contents(archive.metadata(*where))
        assert told == one
        assert {ehr.read_header(content).sop_uid for content in archive.instances(*where)} == {one.sop_uid}
        if data.Modality == "CR":
            assert list(archive.frames(*where, [1])) == [values.tobytes()]
        elif data.file_meta.TransferSyntaxUID == JPEG2000Lossless:
            kept = list(generate_frames(data.PixelData, number_of_frames=8))
            assert list(archive.frames(*where, [8, 2], syntax="*")) == [kept[7], kept[1]]
            with pytest.raises(ehr.Retriable, match="500"):
                list(archive.frames(*where, [1]))
        else:
            assert list(archive.frames(*where, [8, 2])) == [values[7].tobytes(), values[1].tobytes()]


def test_a_client_that_nobody_here_wrote_is_given_the_same(
    archive: ehr.DicomWebClient, orthanc: Orthanc
) -> None:
    session = create_session_from_user_pass(*orthanc.auth)
    other = DICOMwebClient(orthanc.dicom_web, session=session)
    for uid in (RADIOGRAPH, ECHO):
        theirs = {ehr.value_of(one, "00080018"): one for one in other.retrieve_study_metadata(uid)}
        ours = {ehr.value_of(one, "00080018"): one for one in archive.metadata(uid)}
        for one in (*ours.values(), *theirs.values()):
            one.pop("7FE00010", None)  # an address; theirs asks with a Host that lacks the port
        assert ours == theirs
        for sop, one in ours.items():
            where = (uid, ehr.value_of(one, "0020000E"), sop)
            (content,) = archive.instances(*where)
            data = dcmread(BytesIO(content))
            assert other.retrieve_instance(*where) == data
            if data.file_meta.TransferSyntaxUID != JPEG2000Lossless:  # this Orthanc cannot decode it
                frames = other.retrieve_instance_frames(
                    *where, [1], media_types=("application/octet-stream",)
                )
                assert list(archive.frames(*where, [1])) == frames
    assert {one["0020000D"]["Value"][0] for one in other.search_for_studies()} == {RADIOGRAPH, ECHO}


def test_refusals_are_told_apart(archive: ehr.DicomWebClient, orthanc: Orthanc) -> None:
    with pytest.raises(ehr.Refused, match="404"):
        list(archive.instances("1.2.3.4.5"))
    stranger = ehr.DicomWebClient(orthanc.dicom_web, auth=("tessera", "wrong"))
    with stranger, pytest.raises(ehr.Refused, match="401"):
        list(stranger.studies())


@pytest.mark.django_db
def test_from_the_archive_to_the_clip(
    archive: ehr.DicomWebClient, sent: list[Path], tmp_path: Path, settings: Any
) -> None:
    settings.STUDY_STORE = tmp_path / "store"
    source = make_source("orthanc")
    outcomes: Counter[str] = Counter()
    for _ in range(2):
        for listed in archive.studies():
            found = ehr.read_study(listed)
            patient_id = ehr.value_of(listed, "00100020")
            study = receiving.announce(found, source=source, patient_id=patient_id, by=TESTS, now=NOW)
            for content in archive.instances(found.study_uid):
                path = tmp_path / "incoming.dcm"
                path.write_bytes(content)
                outcomes[receiving.receive_file(path, source=source, by=TESTS, now=NOW).outcome] += 1
            receiving.complete(study, by=TESTS, now=NOW)
    assert outcomes == {"new": 4, "duplicate": 4}
    assert set(Study.objects.values_list("state", flat=True)) == {StudyState.STORED}
    assert (Series.objects.count(), Instance.objects.count()) == (3, 4)
    chest = Series.objects.get(imaging_modality="CR")
    assert (chest.view, chest.frames) == ("PA", 1)
    np.testing.assert_array_equal(receiving.load_clip(chest).frames, ehr.read_clip(sent[:2]).frames)
    for series in Series.objects.filter(imaging_modality="US"):
        assert (series.frames, series.is_cine) == (8, True)
        assert series.frame_ms == pytest.approx(33.3, rel=1e-4)
        original = next(path for path in sent if ehr.read_header(path).series_uid == series.series_uid)
        np.testing.assert_array_equal(receiving.load_clip(series).frames, ehr.read_clip([original]).frames)
