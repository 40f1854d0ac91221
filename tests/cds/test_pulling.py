"""`manage.py ingest --dicom dimse://…`: from a node by C-GET, or by C-MOVE through our own receiver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from django.core.management import CommandError, call_command
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, evt

import ehr
from cds import listening, pulling
from cds.patients import sources
from cds.patients.models import NOT_READ, IngestRun, SetAside
from cds.studies import receiving
from cds.studies.models import Instance, Series, Study, StudyState
from ehr.dicom.dimse import FIND, GET, MOVE
from tests.cds.dicom_files import write_radiograph, write_report
from tests.factories import NOW, TESTS, make_source

CR, SR = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.88.11"
pytestmark = pytest.mark.django_db(transaction=True)


class Pacs:
    """One Study of one Series, which it gives in full or in part."""

    def __init__(self, paths: list[Path]) -> None:
        self.files = [pydicom.dcmread(path) for path in paths]
        self.gives = len(self.files)
        self.receiver_port = 0
        self.asked: list[Dataset] = []

    def find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked, first, found = event.identifier, self.files[0], Dataset()
        self.asked.append(asked)
        wanted = str(asked.get("PatientID", "") or first.PatientID)
        if wanted != str(first.PatientID) or asked.get("StudyInstanceUID", "") not in (
            "",
            None,
            first.StudyInstanceUID,
        ):
            return
        found.StudyInstanceUID, found.PatientID = first.StudyInstanceUID, first.PatientID
        found.SOPClassesInStudy = [CR, SR]
        if asked.QueryRetrieveLevel == "SERIES":
            found.SeriesInstanceUID, found.Modality = first.SeriesInstanceUID, first.Modality
            found.NumberOfSeriesRelatedInstances = len(self.files)
        yield 0xFF00, found

    def get(self, event: evt.Event) -> Iterator[Any]:
        yield self.gives
        for one in self.files[: self.gives]:
            yield 0xFF00, one

    def move(self, event: evt.Event) -> Iterator[Any]:
        yield "127.0.0.1", self.receiver_port, {"ae_title": "TESSERA"}
        yield from self.get(event)


@contextmanager
def serving(pacs: Pacs) -> Iterator[str]:
    node = AE("PACS")
    for kind in (FIND, GET, MOVE, CR, SR):
        node.add_supported_context(kind, scp_role=True, scu_role=True)
    node.requested_contexts = [build_context(kind) for kind in (CR, SR)]
    handlers = [(evt.EVT_C_FIND, pacs.find), (evt.EVT_C_GET, pacs.get), (evt.EVT_C_MOVE, pacs.move)]
    server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield f"dimse://PACS@127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


@pytest.fixture
def pacs(tmp_path: Path, settings: Any) -> Pacs:
    settings.DATA_DIR = tmp_path
    settings.STUDY_STORE = tmp_path / "studies"
    files = [write_radiograph(tmp_path / f"{n}.dcm", name=str(n), seed=n) for n in range(2)]
    data = [pydicom.dcmread(path) for path in files]
    for one, path in zip(data, files, strict=True):
        one.StudyInstanceUID, one.SeriesInstanceUID = data[0].StudyInstanceUID, data[0].SeriesInstanceUID
        one.save_as(path)
    return Pacs(files)


def test_what_is_not_held_whole_is_fetched_and_what_is_is_not(pacs: Pacs) -> None:
    with serving(pacs) as where:
        pacs.gives = 1
        call_command("ingest", "--dicom", where, "--source", "pacs")
        series = Series.objects.get()
        assert "partial: 1 of 2 instances are here" in series.remarks
        assert Study.objects.get().missing() == 1
        pacs.gives = 2
        call_command("ingest", "--dicom", where, "--source", "pacs")
        study = Study.objects.get()
        assert (study.state, study.missing()) == (StudyState.STORED, 0)
        assert not [one for one in Series.objects.get().remarks if "partial" in one]
        asked = len(pacs.asked)
        call_command("ingest", "--dicom", where, "--source", "pacs")
        assert len(pacs.asked) == asked + 2, "study and series, and nothing is fetched again"
    assert Instance.objects.count() == 2


def test_only_what_was_asked_for(pacs: Pacs) -> None:
    with serving(pacs) as where:
        call_command("ingest", "--dicom", where, "--patient-id", "SOMEBODY-ELSE", "--modality", "CR")
        assert not Study.objects.exists()
        call_command("ingest", "--dicom", where, "--since", "2020-01-01", "--accession", "A-9")
    assert pacs.asked[-3].StudyDate == "20200101-"
    assert pacs.asked[-3].AccessionNumber == "A-9"


def test_studies_that_fhir_announced_are_fetched(pacs: Pacs) -> None:
    with serving(pacs) as where:
        call_command("ingest", "--dicom", where, "--announced", "--source", "pacs")
        assert not Study.objects.exists(), "nothing was announced"
        uid = str(pacs.files[0].StudyInstanceUID)
        record = ehr.ImagingStudyRecord(
            resource_type="ImagingStudy", resource_id="i", available_at=None, study_uid=uid
        )
        receiving.announce(record, source=make_source("pacs"), by=TESTS, now=NOW)
        call_command("ingest", "--dicom", where, "--announced", "--source", "pacs")
    assert Study.objects.get().state == StudyState.STORED


def test_moved_to_our_receiver_it_is_complete_at_once(pacs: Pacs) -> None:
    source = make_source("pacs")
    arrivals = listening.Arrivals(source, quiet_s=3600)
    with arrivals, ehr.StorageListener("TESSERA", 0, take=arrivals.take) as ours, serving(pacs) as where:
        pacs.receiver_port = ours.port
        call_command("ingest", "--dicom", where, "--source", "pacs", "--move-to", "TESSERA")
        assert arrivals.settle()
        assert Instance.objects.count() == 2
        assert arrivals.complete_due() == 1, "all that was announced is there: no waiting for quiet"
    assert Study.objects.get().state == StudyState.STORED


@pytest.mark.parametrize("only", [False, True], ids=["among pictures", "nothing else"])
def test_what_holds_no_picture_ends_no_move_and_no_get(pacs: Pacs, tmp_path: Path, only: bool) -> None:
    report = pydicom.dcmread(write_report(tmp_path / "r.dcm", tmp_path / "0.dcm"))
    pacs.files = [report] if only else [report, *pacs.files]
    pacs.gives = len(pacs.files)
    source = make_source("pacs")
    arrivals = listening.Arrivals(source, quiet_s=3600)
    with arrivals, ehr.StorageListener("TESSERA", 0, take=arrivals.take) as ours, serving(pacs) as where:
        pacs.receiver_port = ours.port
        for more in (["--move-to", "TESSERA"], []):
            call_command("ingest", "--dicom", where, "--source", "pacs", *more)
            assert arrivals.settle()
    assert Instance.objects.count() == (0 if only else 2)
    assert not SetAside.objects.exclude(kind=NOT_READ).exists()
    assert SetAside.objects.filter(kind=NOT_READ, where__startswith="C-STORE from PACS, study").exists()
    assert {run.state for run in IngestRun.objects.all()} == {"done"}


def test_what_another_source_noted_as_not_read_is_not_looked_through(pacs: Pacs) -> None:
    ours, other = make_source("pacs"), make_source("other")
    uid = str(pacs.files[0].StudyInstanceUID)
    for number, source in enumerate((ours, other, other)):
        where = f"C-STORE from PACS, study {uid}"
        receiving.pass_over(where, f"1.2.{number}", "SR", source=source, now=NOW)
    assert pulling._here(uid, ours) == (0, 1)


def test_a_node_that_is_away_says_what_to_do(settings: Any, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path
    with pytest.raises(
        CommandError, match=r"PACS at 127.0.0.1:9 .*is it running.*Run the same command again"
    ):
        call_command("ingest", "--dicom", "dimse://PACS@127.0.0.1:9")
    with pytest.raises(CommandError, match="dimse://TITLE@host:port"):
        call_command("ingest", "--dicom", "dimse://127.0.0.1:9")
    assert not SetAside.objects.exists()


def test_a_study_that_the_node_does_not_give_stops_no_other(pacs: Pacs, tmp_path: Path) -> None:
    """Two of three cannot be had; the third comes."""
    good = pacs.files[0].StudyInstanceUID
    lost = ["1.2.1", "1.2.2"]
    find, get = pacs.find, pacs.get

    def find_all(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        if event.identifier.get("StudyInstanceUID", "") in lost:
            found = Dataset()
            found.StudyInstanceUID, found.SOPClassesInStudy = event.identifier.StudyInstanceUID, [CR]
            yield 0xFF00, found
        elif event.identifier.QueryRetrieveLevel == "STUDY" and not event.identifier.get("StudyInstanceUID"):
            for uid in (*lost, good):
                found = Dataset()
                found.StudyInstanceUID, found.PatientID = uid, pacs.files[0].PatientID
                yield 0xFF00, found
        else:
            yield from find(event)

    def get_one(event: evt.Event) -> Iterator[Any]:
        if event.identifier.StudyInstanceUID in lost:
            yield 1
            yield 0xC000, None
        else:
            yield from get(event)

    pacs.find, pacs.get = find_all, get_one  # type: ignore[method-assign]
    with serving(pacs) as where:
        call_command("ingest", "--dicom", where, "--source", "pacs")
    assert Instance.objects.count() == 2
    assert SetAside.objects.filter(reason__startswith="the node did not give this study").count() == 2


def test_a_pull_leaves_its_row_and_a_paused_source_is_not_called(pacs: Pacs) -> None:
    with serving(pacs) as where:
        call_command("ingest", "--dicom", where, "--source", "pacs", "--calling", "OURS")
        run = IngestRun.objects.get()
        assert (run.where, run.state, run.taken, run.how) == (where, "done", 2, {"title": "OURS"})
        sources.pause(run.source, by=TESTS, now=NOW)
        asked = len(pacs.asked)
        with pytest.raises(CommandError, match="source pacs is paused: resume it"):
            call_command("ingest", "--dicom", where, "--source", "pacs")
    assert len(pacs.asked) == asked
