"""SR, SEG and Secondary Capture at a real archive, by STOW-RS and by C-STORE: conformant, whole, and once."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest

from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.sending import clients, destinations
from cds.sending.models import Document
from cds.studies import clips
from cds.studies.models import Series
from tests.cds.registry import ward
from tests.cds.registry.rows import make_version
from tests.cds.risk.scores import score_by_hand
from tests.cds.sending.results import add_destination, colour, draw, make_radiograph, send_all
from tests.factories import NOW, TESTS, make_patient
from tests.services.conftest import missing
from tests.services.orthanc import Orthanc, running_orthanc

pytestmark = [pytest.mark.service, pytest.mark.django_db]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Series:
    """A radiograph with its outline and heat map, made after the destination was added."""
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    return make_radiograph(tmp_path, make_patient("p1"))


def faults_of(content: bytes, folder: Path) -> list[str]:
    """What dciodvfy (Debian's dicom3tools) calls an error."""
    program = shutil.which("dciodvfy")
    if program is None:
        missing("dciodvfy is not installed (Debian: dicom3tools)")
    path = folder / "judged.dcm"
    path.write_bytes(content)
    said = subprocess.run([str(program), str(path)], capture_output=True, text=True, check=False)
    return [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


def held(orthanc: Orthanc, study_uid: str) -> dict[str, tuple[bytes, pydicom.Dataset]]:
    """Modality → file, as the archive gives it back."""
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study_uid}}
    found = httpx.post(f"{orthanc.url}/tools/find", json=query, auth=orthanc.auth, timeout=30).json()
    contents = [
        httpx.get(f"{orthanc.url}/instances/{one}/file", auth=orthanc.auth, timeout=30).content
        for one in found
    ]
    read = [(content, pydicom.dcmread(io.BytesIO(content))) for content in contents]
    assert len({data.SOPInstanceUID for _, data in read}) == len(read)
    return {str(data.Modality): (content, data) for content, data in read}


def send_twice() -> None:
    """Once, and again from the beginning, as after a crash that forgot the answers."""
    send_all()
    assert set(Document.objects.values_list("work_state", flat=True)) == {WorkState.DONE}, list(
        Document.objects.values_list("kind", "failure")
    )
    Document.objects.update(work_state=WorkState.QUEUED, remote="", finished_at=None)
    send_all()
    assert set(Document.objects.values_list("work_state", flat=True)) == {WorkState.DONE}


@pytest.mark.parametrize("way", ["dicomweb", "dimse"])
def test_results_arrive_conformant_whole_and_once(
    way: str, orthanc: Orthanc, series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIVE_LOGIN", ":".join(orthanc.auth))
    address = f"dicomweb+{orthanc.dicom_web}"
    if way == "dimse":
        address = f"dimse://ORTHANC@127.0.0.1:{orthanc.dicom_port}"
        # the other way has been here before, with the same UIDs
        study = httpx.post(
            f"{orthanc.url}/tools/find",
            json={"Level": "Study", "Query": {"StudyInstanceUID": series.study.study_uid}},
            auth=orthanc.auth, timeout=30,
        ).json()  # fmt: skip
        for one in study:
            httpx.delete(f"{orthanc.url}/studies/{one}", auth=orthanc.auth, timeout=30).raise_for_status()
    add_destination(address, slug="archive", secret_env="ARCHIVE_LOGIN" if way == "dicomweb" else "")
    assert clients.list_problems(destinations.get("archive")) == []
    outline = draw(series)
    patient = series.study.patient
    assert patient is not None
    colour(series, score_by_hand(patient, make_version()).predictions.get())
    send_twice()

    got = held(orthanc, series.study.study_uid)
    assert set(got) == {"SR", "SEG", "OT"}
    for content, _ in got.values():
        assert faults_of(content, tmp_path) == []
    masks = clips.load_masks(outline.path)
    np.testing.assert_array_equal(got["SEG"][1].pixel_array.astype(bool), np.moveaxis(masks[0], -1, 0))


def test_the_judge_finds_faults(series: Series, tmp_path: Path) -> None:
    path = tmp_path / "cut.dcm"
    data = pydicom.dcmread(clips.path_of(series.instances.get().path))
    del data.SeriesInstanceUID
    data.save_as(path)
    assert faults_of(path.read_bytes(), tmp_path) != []


def test_a_wrong_password_is_refused_saying_what_to_check(
    orthanc: Orthanc, series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIVE_LOGIN", "tessera:wrong")
    add_destination(f"dicomweb+{orthanc.dicom_web}", slug="archive", secret_env="ARCHIVE_LOGIN")
    (problem,) = clients.list_problems(destinations.get("archive"))
    assert "401: check the token or password" in problem
    draw(series)
    send_all()
    assert set(Document.objects.values_list("work_state", flat=True)) == {WorkState.FAILED}
    monkeypatch.setenv("ARCHIVE_LOGIN", ":".join(orthanc.auth))
    destinations.retry("archive", by=TESTS, now=NOW)
    send_all()
    assert set(Document.objects.values_list("work_state", flat=True)) == {WorkState.DONE}
