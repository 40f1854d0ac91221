"""Measurements, masks and heat maps go back to the archive; partial failure is read; twice is once."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from django.utils import timezone
from PIL import Image
from pynetdicom import AE

import ehr
from cds import listening
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.patients.models import Patient, SetAside
from cds.sending import clients, composing, delivering, dicom_documents, queries
from cds.sending.models import Destination, Document
from cds.studies import clips, receiving
from cds.studies.models import Series
from tests import certificates
from tests.cds.registry import ward
from tests.cds.registry.rows import make_version
from tests.cds.risk.scores import score_by_hand
from tests.cds.sending.results import add_destination, colour, draw, make_radiograph, send_all, states
from tests.certificates import Authority
from tests.factories import NOW, TESTS, make_patient

pytestmark = pytest.mark.django_db


@dataclass
class Archive:
    """A STOW-RS server. `fails`: Failure Reason it gives; `lose`: answers lost after storing."""

    stored: dict[str, list[bytes]] = field(default_factory=dict)
    fails: int = 0
    lose: int = 0
    empty: bool = False

    def answer(self, request: httpx.Request) -> httpx.Response:
        boundary = re.search("boundary=(.+)$", request.headers["Content-Type"])
        assert boundary is not None
        assert int(request.headers["Content-Length"]) == len(request.content)
        (part,) = request.content.split(b"--" + boundary[1].encode())[1:-1]
        content = part.partition(b"\r\n\r\n")[2][:-2]
        data = pydicom.dcmread(io.BytesIO(content))
        assert str(request.url.path).endswith(f"/studies/{data.StudyInstanceUID}")
        item = {
            "00081150": {"vr": "UI", "Value": [str(data.SOPClassUID)]},
            "00081155": {"vr": "UI", "Value": [str(data.SOPInstanceUID)]},
        }
        if self.fails:
            item["00081197"] = {"vr": "US", "Value": [self.fails]}  # type: ignore[list-item]
            return httpx.Response(409, json={"00081198": {"vr": "SQ", "Value": [item]}})
        self.stored.setdefault(str(data.SOPInstanceUID), []).append(content)
        if self.lose:
            self.lose -= 1
            raise httpx.ReadError("the line was cut", request=request)
        if self.empty:
            return httpx.Response(200)
        return httpx.Response(200, json={"00081199": {"vr": "SQ", "Value": [item]}})

    def by_modality(self) -> dict[str, pydicom.Dataset]:
        read = [pydicom.dcmread(io.BytesIO(kept[-1])) for kept in self.stored.values()]
        return {str(data.Modality): data for data in read}


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    server = Archive()
    client = lambda to: ehr.StowClient(to.address, transport=httpx.MockTransport(server.answer))  # noqa: E731
    monkeypatch.setattr(clients, "stow_client", client)
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    return server


@pytest.fixture
def patient() -> Patient:
    return make_patient("p1")


@pytest.fixture
def series(tmp_path: Path, patient: Patient) -> Series:
    return make_radiograph(tmp_path, patient)


def add_archive() -> Destination:
    return add_destination("dicomweb+https://pacs.example/dicom-web", slug="pacs")


def try_now() -> None:
    Destination.objects.update(not_before=None)
    Document.objects.filter(work_state=WorkState.QUEUED).update(due_at=None)
    send_all()


def test_what_was_measured_drawn_and_coloured_arrives_in_the_same_study(
    archive: Archive, series: Series, patient: Patient
) -> None:
    add_archive()
    outline = draw(series)
    prediction = score_by_hand(patient, make_version()).predictions.get()
    colour(series, prediction)
    send_all()
    assert states() == {"measurements": "done", "outlines": "done", "heat-map": "done"}
    got = archive.by_modality()
    assert set(got) == {"SR", "SEG", "OT"}
    assert {str(data.StudyInstanceUID) for data in got.values()} == {series.study.study_uid}
    assert len({str(data.SeriesInstanceUID) for data in got.values()} - {series.series_uid}) == 3
    assert {str(data.PatientID) for data in got.values()} == {"MRN-p1"}
    masks = clips.load_masks(outline.path)
    np.testing.assert_array_equal(got["SEG"].pixel_array.astype(bool), np.moveaxis(masks[0], -1, 0))
    said = str(got["SR"])
    for words in ("Cardiothoracic ratio", "By hand", "aaaaaaaa", "Tracking Unique Identifier", "0.444444"):
        assert words in said
    assert "Area" not in said  # a size that is not known is not sent
    source = series.instances.get().sop_uid
    assert source in said
    assert source in str(got["SEG"])
    assert got["OT"].SourceImageSequence[0].ReferencedSOPInstanceUID == source
    assert "not a finding" in got["OT"].DerivationDescription
    assert all("Research use only" in data.SeriesDescription for data in got.values())


def test_the_label_is_burned_into_the_picture(archive: Archive, series: Series, patient: Patient) -> None:
    add_archive()
    colour(series, score_by_hand(patient, make_version()).predictions.get())
    send_all()
    picture = archive.by_modality()["OT"].pixel_array
    band = picture[-60:]
    assert band.mean() < 60  # a dark band …
    assert (band > 200).sum() > 300  # … with words on it
    assert Image.fromarray(picture).size[0] >= 512


def test_an_answer_lost_after_storing_costs_the_same_instance_again(archive: Archive, series: Series) -> None:
    add_archive()
    archive.lose = 1
    draw(series)
    send_all()
    try_now()
    assert states() == {"measurements": "done", "outlines": "done"}
    assert sorted(len(kept) for kept in archive.stored.values()) == [1, 2]
    assert all(len(set(kept)) == 1 for kept in archive.stored.values())  # byte for byte


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [
        (0x0122, "failed", "it does not take this SOP Class (0122H)"),
        (0xA900, "failed", "does not fit its SOP Class"),
        (0xA700, "queued", "it is out of resources"),
        (0x0111, "done", ""),
    ],
)
def test_each_failure_the_archive_gives_is_read(
    reason: int, state: str, words: str, archive: Archive, series: Series
) -> None:
    add_archive()
    archive.fails = reason
    draw(series)
    send_all()
    report = Document.objects.get(kind="measurements")
    assert report.work_state == state
    assert words in report.failure


def test_an_archive_that_says_nothing_took_it(archive: Archive, series: Series) -> None:
    add_archive()
    archive.empty = True
    draw(series)
    send_all()
    assert set(states().values()) == {"done"}


def test_no_map_that_failed_its_checks_and_one_for_a_picture_outcome_and_model(
    archive: Archive, series: Series, patient: Patient
) -> None:
    add_archive()
    version = make_version()
    first = score_by_hand(patient, version).predictions.get()
    colour(series, first, passed=False)
    send_all()
    assert states() == {}
    for hours in (2, 4):
        at = NOW + timedelta(hours=hours)
        colour(series, score_by_hand(patient, version, now=at).predictions.get(), at=at)
        send_all(now=at + timedelta(minutes=1))
    assert Document.objects.filter(kind="heat-map").count() == 1
    assert len(archive.stored) == 1


def test_outlines_of_pictures_that_were_replaced_are_not_sent(archive: Archive, series: Series) -> None:
    add_archive()
    draw(series)
    Series.objects.filter(pk=series.pk).update(pixels_digest="0" * 64)
    send_all()
    assert states() == {}


def test_frames_of_unknown_origin_are_refused_saying_what_to_do(archive: Archive, series: Series) -> None:
    add_archive()
    outline = draw(series)
    outline.frames = []
    outline.save()
    send_all()
    (refused, *_) = queries.list_refused("pacs")
    assert "ingest it again" in refused.reason


def test_the_same_result_is_the_same_bytes(series: Series) -> None:
    draw(series)
    document = Document(kind="measurements", subject=str(series.outlines.get().pk))
    assert dicom_documents.build(document) == dicom_documents.build(document)


def test_lag_is_since_the_oldest_that_waits(archive: Archive, series: Series, monkeypatch: Any) -> None:
    add_archive()
    draw(series)
    archive.fails = 0xA700
    send_all()
    (view,) = queries.list_destinations(now=timezone.now())
    assert (view.waiting, view.waiting_since) == (2, NOW)


class Pacs:
    """A node over TLS that keeps what it gets."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def take(self, path: Path, calling: str) -> ehr.Taken:
        self.kept.append(f"{calling} {pydicom.dcmread(path).Modality}")
        return ehr.Taken()


@pytest.mark.parametrize("named", ["at the destination", "for the site"])
def test_by_c_store_over_tls_with_the_hospitals_own_authority(
    named: str, series: Series, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    hospital, pacs = Authority(tmp_path), Pacs()
    ours, theirs = hospital.issue("tessera.example"), hospital.issue("127.0.0.1")
    files = {"tls_ca": str(hospital.ca), "tls_cert": str(ours.cert), "tls_key": str(ours.key)}
    if named == "for the site":
        for name, file in files.items():
            setattr(settings, f"DICOM_{name.upper()}", file)
    tls = certificates.server(theirs, asks_for=hospital.ca)
    with ehr.StorageListener("PACS", 0, take=pacs.take, tls=tls) as node:
        given = files if named == "at the destination" else {}
        to = add_destination(f"dimse+tls://PACS@127.0.0.1:{node.port}", slug="pacs", **given)
        assert clients.list_problems(to) == []
        draw(series)
        send_all()
    assert states() == {"measurements": "done", "outlines": "done"}
    assert sorted(pacs.kept) == ["TESSERA SEG", "TESSERA SR"]


def test_a_destination_that_fails_is_asked_by_one_document_at_a_time(
    archive: Archive, series: Series
) -> None:
    to = add_archive()
    draw(series)
    composing.compose_all(now=NOW + timedelta(minutes=1))
    first, second = Document.objects.order_by("order", "kind")
    assert leases.claim(Document, first.pk) is not None
    Destination.objects.filter(pk=to.pk).update(failures=1)
    delivering.deliver(second.pk)
    second.refresh_from_db()
    assert (second.work_state, archive.stored) == (WorkState.QUEUED, {})
    assert second.due_at is not None
    Document.objects.filter(pk=first.pk).update(work_state=WorkState.DONE)
    try_now()
    assert len(archive.stored) == 1


def test_what_a_node_does_not_take_is_seen_before_anything_is_sent() -> None:
    node = AE("PACS")
    node.add_supported_context("1.2.840.10008.5.1.4.1.1.88.33")
    server = node.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    to = add_destination(f"dimse://PACS@127.0.0.1:{server.server_address[1]}", slug="pacs")
    try:
        found = clients.list_problems(to)
    finally:
        server.shutdown()
    assert [one.partition(":")[0] for one in found] == [
        "Segmentation Storage", "Secondary Capture Image Storage"
    ]  # fmt: skip


def test_results_that_come_back_with_their_study_are_known_and_not_kept(
    archive: Archive, series: Series, patient: Patient, tmp_path: Path
) -> None:
    """A PACS gives them with the next pull: no refusal that ends a C-MOVE, no picture for a model."""
    add_archive()
    draw(series)
    colour(series, score_by_hand(patient, make_version()).predictions.get())
    send_all()
    assert set(archive.by_modality()) == {"SR", "SEG", "OT"}
    before = set(Series.objects.values_list("pk", flat=True))
    arrivals = listening.Arrivals(series.study.source)
    arrivals.inbox.mkdir(parents=True)
    for number, (content, *_) in enumerate(archive.stored.values()):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content)
        found = receiving.receive_file(path, source=series.study.source, by=TESTS, now=NOW)
        assert (found.outcome, found.reason) == ("duplicate", "a result of ours that came back")
        assert arrivals.take(path, "PACS").refused == ""
    assert set(Series.objects.values_list("pk", flat=True)) == before
    assert not list(arrivals.inbox.iterdir())
    assert not SetAside.objects.exists()
