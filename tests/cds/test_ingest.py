"""`manage.py ingest`: everything readable is taken once, everything refused is named with its reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, StringIO
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from pydicom import dcmread
from rich.console import Console

import ehr
from cds import fetching, ingesting
from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import Invalid
from cds.management.commands import ingest as command
from cds.patients import importing, importing_new
from cds.patients.models import NOT_READ, IngestRun, Observation, Patient, SetAside
from cds.studies import receiving
from cds.studies.models import Instance, Series, Study, StudyState
from tests.cds.dicom_files import write_radiograph, write_report
from tests.factories import NOW, TESTS, make_source
from tests.shared import shared

pytestmark = pytest.mark.django_db


def _patient(number: str = "p1", **changes: Any) -> dict[str, Any]:
    return {
        "resourceType": "Patient", "id": number, "gender": "female", "birthDate": "1950-06-01",
        "identifier": [{"system": "urn:mrn", "value": f"MRN-{number}"}], **changes,
    }  # fmt: skip


def _pressure(number: str, value: Any = 120, unit: str = "mm[Hg]", **changes: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation", "id": number, "status": "final",
        "subject": {"reference": "Patient/p1"},
        "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
        "effectiveDateTime": "2026-03-01T08:00:00Z",
        "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": unit}, **changes,
    }  # fmt: skip


def _write(path: Path, *resources: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bundle = {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"resource": one} for one in resources],
    }
    path.write_text(json.dumps(bundle))
    return path.parent


def _fhir(where: str | Path) -> ingesting.Tally:
    return ingesting.ingest_fhir(where, source=make_source(), by=TESTS, now=NOW)


def _dicom(where: str | Path) -> ingesting.Tally:
    return ingesting.ingest_dicom(where, source=make_source(), by=TESTS, now=NOW)


def test_a_folder_of_fhir_is_taken_and_taken_again_changes_nothing(tmp_path: Path) -> None:
    folder = _write(
        tmp_path / "fhir" / "a.json", _patient(), _pressure("o1"), {"resourceType": "Claim", "id": "x"}
    )
    first = _fhir(folder)
    assert first.resources == {"Patient": {"new": 1}, "Observation": {"new": 1}}
    assert first.ignored == {"Claim": 1}
    assert first.patients == 1
    again = _fhir(folder)
    assert again.resources == {"Patient": {"unchanged": 1}, "Observation": {"unchanged": 1}}
    assert again.changed == set()
    patient = Patient.objects.get()
    assert (patient.revision, first.changed) == (1, {patient.pk})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (_pressure("bad", unit="kg"), "unit"),
        (_pressure("bad", value="high"), "number"),
        ({"resourceType": "Observation", "id": "bad"}, ""),
    ],
    ids=["wrong unit", "not a number", "no patient"],
)
def test_a_bad_resource_is_set_aside_and_the_rest_goes_on(
    tmp_path: Path, bad: dict[str, Any], reason: str
) -> None:
    tally = _fhir(_write(tmp_path / "fhir" / "a.json", _patient(), _pressure("good"), bad))
    assert tally.resources["Observation"] == {"new": 1, "set_aside": 1}
    (refused,) = tally.refused
    assert refused.identity == "bad"
    assert "a.json" in refused.where
    assert reason in refused.reason
    assert SetAside.objects.get().reason == refused.reason
    assert Observation.objects.get().resource_id == "good"


def test_files_that_are_not_fhir_are_named(tmp_path: Path) -> None:
    folder = _write(tmp_path / "fhir" / "good.json", _patient())
    (folder / "broken.json").write_text('{"resourceType": "Patient"')
    (folder / "other.ndjson").write_text("[1, 2]\nnot json\n")
    tally = _fhir(folder)
    assert tally.patients == 1
    assert {Path(item.where.split("#")[0].split(":")[0]).name for item in tally.refused} == {
        "broken.json",
        "other.ndjson",
    }


def test_a_future_date_is_kept_but_not_known_yet(tmp_path: Path) -> None:
    _fhir(
        _write(
            tmp_path / "fhir" / "a.json",
            _patient(),
            _pressure("o1", effectiveDateTime="2062-01-01T00:00:00Z"),
        )
    )
    assert not Observation.objects.filter(available_at__lte=NOW).exists()


def test_an_unknown_code_is_kept(tmp_path: Path) -> None:
    code = {"coding": [{"system": "urn:oid:1.2.3", "code": "LOCAL-7"}]}
    _fhir(_write(tmp_path / "fhir" / "a.json", _patient(), _pressure("o1", code=code)))
    assert Observation.objects.get().code_system == "urn:oid:1.2.3"


def test_a_record_the_database_refuses_is_set_aside_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = importing.import_record

    def refuse_p1(record: ehr.PatientRecord, **known: Any) -> importing.Imported:
        if record.patient.resource_id == "p1":
            raise Invalid("no")
        return taken(record, **known)

    def refuse_together(records: list[ehr.PatientRecord], **known: Any) -> list[importing.Imported]:
        raise Invalid("no")  # those who are new come together first, and then one by one

    monkeypatch.setattr(importing, "import_record", refuse_p1)
    monkeypatch.setattr(importing_new, "import_new", refuse_together)
    folder = _write(tmp_path / "fhir" / "a.json", _patient("p1"))
    _write(tmp_path / "fhir" / "b.json", _patient("p2"))
    tally = _fhir(folder)
    assert [item.identity for item in tally.refused] == ["p1"]
    assert Patient.objects.get().resource_id == "p2"


def test_dicom_is_taken_decoded_and_linked_whichever_comes_first(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "dicom" / "deep" / "one.dcm")
    fhir = _write(tmp_path / "fhir" / "a.json", _patient())
    tally = _dicom(tmp_path / "dicom")
    assert (tally.instances, tally.studies) == ({"new": 1}, 1)
    assert Study.objects.get().patient is None
    _fhir(fhir)
    study = Study.objects.get()
    assert study.patient == Patient.objects.get()
    assert study.state == StudyState.STORED
    assert Series.objects.get().clip_path
    again = _dicom(tmp_path / "dicom")
    assert (again.instances, again.studies) == ({"duplicate": 1}, 0)
    assert Instance.objects.count() == 1


def test_bad_dicom_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    good = write_radiograph(folder / "good.dcm")
    (folder / "truncated.dcm").write_bytes(good.read_bytes()[:-200])
    (folder / "text.txt").write_text("not an image")
    write_radiograph(folder / "z-other-pixels.dcm", seed=1)
    tally = _dicom(folder)
    assert tally.instances == {"new": 1, "set-aside": 3}
    reasons = {item.where: item.reason for item in tally.refused}
    assert set(reasons) == {"truncated.dcm", "text.txt", "z-other-pixels.dcm"}
    assert all(reasons.values())
    assert "other pixels" in reasons["z-other-pixels.dcm"]
    advice = {name: reason.partition(": ")[2] for name, reason in reasons.items()}
    assert "send it again" in advice["truncated.dcm"]
    assert "leave it out" in advice["text.txt"]
    assert "SOP Instance UID of its own" in advice["z-other-pixels.dcm"]


def test_a_run_killed_before_decoding_is_finished_by_the_next(tmp_path: Path) -> None:
    path = write_radiograph(tmp_path / "dicom" / "one.dcm")
    receiving.receive_file(path, source=make_source(), by=TESTS, now=NOW)
    assert Study.objects.get().state == StudyState.ANNOUNCED
    tally = _dicom(tmp_path / "dicom")
    assert (tally.instances, tally.studies) == ({"duplicate": 1}, 1)
    assert Study.objects.get().state == StudyState.STORED


def test_an_imaging_study_is_announced(tmp_path: Path) -> None:
    found = {
        "resourceType": "ImagingStudy", "id": "i1", "status": "available",
        "subject": {"reference": "Patient/p1"}, "started": "2026-03-01T08:00:00Z",
        "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3.4"}],
    }  # fmt: skip
    folder = _write(tmp_path / "fhir" / "a.json", _patient(), found)
    assert _fhir(folder).resources["ImagingStudy"] == {"new": 1}
    assert _fhir(folder).resources["ImagingStudy"] == {"unchanged": 1}
    study = Study.objects.get()
    assert (study.study_uid, study.state, study.patient) == (
        "1.2.3.4",
        StudyState.ANNOUNCED,
        Patient.objects.get(),
    )


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("https://ehr.example/fhir", True),
        ("http://127.0.0.1:9/fhir", True),
        ("http://localhost:9/fhir", True),
        ("http://[::1]:9/fhir", True),
        ("http://registered.example/fhir", True),
        ("http://registered.example/fhir/", True),
        ("http://ehr.example/fhir", False),
        ("http://169.254.169.254/latest", False),
        ("http://127.0.0.1.evil.example/", False),
        ("https://user:secret@ehr.example/fhir", False),
        ("https://", False),
    ],
)
def test_only_allowed_addresses_are_called(url: str, is_allowed: bool) -> None:
    make_source("registered", base_url="http://registered.example/fhir")
    if is_allowed:
        ingesting.check_address(url)
    else:
        with pytest.raises(Invalid):
            ingesting.check_address(url)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for take in (_fhir, _dicom):
        with pytest.raises(Invalid, match="there is no folder"):
            take(tmp_path / "nowhere")


@contextmanager
def _server(answer: Callable[[str], tuple[int, str, bytes]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_fhir_server_is_read_by_search() -> None:
    held = {"Patient": [_patient()], "Observation": [_pressure("o1")]}

    def answer(path: str) -> tuple[int, str, bytes]:
        resource_type = path.split("?")[0].rsplit("/", 1)[-1]
        entries = [{"resource": one} for one in held.get(resource_type, [])]
        bundle = {"resourceType": "Bundle", "type": "searchset", "entry": entries}
        return 200, "application/fhir+json", json.dumps(bundle).encode()

    with _server(answer) as url:
        tally = _fhir(f"{url}/fhir")
    assert tally.interrupted == ""
    assert tally.resources["Observation"] == {"new": 1}
    assert Observation.objects.get().value == 120


def test_polling_asks_only_for_what_has_changed() -> None:
    asked: list[str] = []
    fails = False

    def answer(path: str) -> tuple[int, str, bytes]:
        asked.append(path)
        if fails:
            return 403, "text/plain", b"no"
        is_whole = "_lastUpdated" not in path
        if path.endswith("/Patient/p1"):
            return 200, "application/fhir+json", json.dumps(_patient()).encode()
        held = {"Patient": [_patient()], "Observation": [_pressure("o1", value=125)]} if is_whole else {}
        if "Observation?_lastUpdated" in path:
            held = {"Observation": [_pressure("o1", value=125)]}
        resource_type = path.split("?")[0].rsplit("/", 1)[-1]
        entries = [{"resource": one} for one in held.get(resource_type, [])]
        bundle = {"resourceType": "Bundle", "type": "searchset", "entry": entries}
        return 200, "application/fhir+json", json.dumps(bundle).encode()

    source = make_source()
    poll = partial(ingesting.ingest_fhir, source=source, by=TESTS, only_changed=True)
    with _server(answer) as url:
        poll(f"{url}/fhir", now=NOW)
        assert not [path for path in asked if "_lastUpdated" in path], "everybody, the first time"
        asked.clear()
        tally = poll(f"{url}/fhir", now=NOW + timedelta(hours=1))
        since = (NOW - timedelta(minutes=5)).astimezone(UTC).isoformat(timespec="seconds")
        assert f"Patient?_lastUpdated={quote('ge' + since, safe='')}" in asked[0]
        assert tally.resources["Observation"] == {"unchanged": 1}
        fails = True
        assert poll(f"{url}/fhir", now=NOW + timedelta(hours=2)).interrupted
    source.refresh_from_db()
    (reached,) = source.exports.values()
    assert datetime.fromisoformat(reached) == NOW + timedelta(hours=1), "a run that failed counts for nothing"


def test_a_server_that_fails_is_said_and_what_came_before_is_kept() -> None:
    with _server(lambda path: (403, "text/plain", b"no")) as url:
        tally = _fhir(f"{url}/fhir")
    assert "it asks who we are" in tally.interrupted
    with (
        _server(lambda path: (403, "text/plain", b"no")) as url,
        pytest.raises(CommandError, match=r"403.*--client-id.*Then run the same command again"),
    ):
        call_command("ingest", fhir=[f"{url}/fhir"])
    with (
        _server(lambda path: (404, "text/html", b"no")) as url,
        pytest.raises(CommandError, match="the server has no Patient here: is the base URL"),
    ):
        call_command("ingest", fhir=[f"{url}/fhir"])


def test_an_archive_is_read_by_dicomweb_and_held_studies_are_not_fetched_again(tmp_path: Path) -> None:
    content = write_radiograph(tmp_path / "one.dcm").read_bytes()
    fetched: list[str] = []

    def answer(path: str) -> tuple[int, str, bytes]:
        if path.split("?")[0].endswith("/studies"):
            if "offset=" in path and "offset=0" not in path:
                return 204, "application/dicom+json", b""
            study = ehr.read_header(content).study_uid
            listed = [{"0020000D": {"vr": "UI", "Value": [study]}, "00201208": {"vr": "IS", "Value": [1]}}]
            return 200, "application/dicom+json", json.dumps(listed).encode()
        if path.endswith("/metadata"):
            return 404, "text/plain", b"no"
        fetched.append(path)
        part = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b--\r\n"
        return 200, 'multipart/related; type="application/dicom"; boundary=b', part

    with _server(answer) as url:
        first, again = _dicom(f"{url}/dicom-web"), _dicom(f"{url}/dicom-web")
    assert (first.instances, first.studies, first.interrupted) == ({"new": 1}, 1, "")
    assert (again.instances, again.interrupted) == ({"duplicate": 1}, "")
    assert len(fetched) == 1


class Archive:
    """A Study of an archive by DICOMweb: each Series as (modality, files), and what was asked of it."""

    def __init__(self, *series: tuple[str, list[Path]]) -> None:
        self.files = {modality: [dcmread(path) for path in paths] for modality, paths in series}
        self.asked: list[str] = []
        self.metadata_status = 200
        self.hidden: list[str] = []  # SOP Instance UIDs that metadata leave out
        self.unnamed: list[str] = []  # and those that metadata do not name

    def answer(self, path: str) -> tuple[int, str, bytes]:
        everything = [one for files in self.files.values() for one in files]
        study = str(everything[0].StudyInstanceUID)
        if path.split("?")[0].endswith("/studies"):
            if "offset=0" not in path:
                return 204, "application/dicom+json", b""
            listed = {
                "0020000D": {"vr": "UI", "Value": [study]},
                "00080061": {"vr": "CS", "Value": list(self.files)},
                "00201208": {"vr": "IS", "Value": [len(everything)]},
            }
            return 200, "application/dicom+json", json.dumps([listed]).encode()
        asked = path.partition(study)[2]
        self.asked.append(asked)
        if asked == "/metadata":
            told = [
                one.to_json_dict(bulk_data_threshold=8, bulk_data_element_handler=str)
                for one in everything
                if one.SOPInstanceUID not in self.hidden
            ]
            for one in told:
                if one["00080018"]["Value"][0] in self.unnamed:
                    del one["00080018"]
            return self.metadata_status, "application/dicom+json", json.dumps(told).encode()
        body = b""
        for one in everything:
            series = f"/series/{one.SeriesInstanceUID}"
            if asked in ("", series, f"{series}/instances/{one.SOPInstanceUID}"):
                file = BytesIO()
                one.save_as(file)
                body += b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n"
        return 200, 'multipart/related; type="application/dicom"; boundary=b', body + b"--b--\r\n"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """A radiograph, a report, and a Series of key images among which a radiograph has got."""
    picture, other = (write_radiograph(tmp_path / f"{n}.dcm", name=str(n), seed=n) for n in range(2))
    report = write_report(tmp_path / "report.dcm", picture)
    keys = write_report(tmp_path / "keys.dcm", picture, modality="KO", number=2)
    data, around = dcmread(other), dcmread(keys)
    data.StudyInstanceUID, data.SeriesInstanceUID = around.StudyInstanceUID, around.SeriesInstanceUID
    data.save_as(other)
    return Archive(("CR", [picture]), ("SR", [report]), ("KO", [keys, other]))


def test_what_is_not_read_is_not_fetched_from_an_archive(archive: Archive) -> None:
    pictures = [archive.files["CR"][0], archive.files["KO"][1]]
    with _server(archive.answer) as url:
        first = _dicom(f"{url}/dicom-web")
        again = _dicom(f"{url}/dicom-web")
    assert archive.asked == [
        "/metadata",
        f"/series/{pictures[0].SeriesInstanceUID}",
        f"/series/{pictures[1].SeriesInstanceUID}/instances/{pictures[1].SOPInstanceUID}",
        "/metadata",
    ], "the second time all that is read is here"
    assert (first.instances, first.refused) == ({"new": 2, "not-read": 2}, [])
    assert again.instances == {"duplicate": 2, "not-read": 2}
    unread = SetAside.objects.filter(kind=NOT_READ)
    assert {one.identity for one in unread} == {
        str(archive.files[modality][0].SOPInstanceUID) for modality in ("SR", "KO")
    }
    assert Instance.objects.count() == 2
    assert IngestRun.objects.latest("started_at").taken == 2


@pytest.mark.parametrize(("status", "is_over"), [(404, False), (500, False), (403, False), (401, True)])
def test_an_archive_that_tells_nothing_gives_everything(archive: Archive, status: int, is_over: bool) -> None:
    archive.metadata_status = status
    with _server(archive.answer) as url:
        tally = _dicom(f"{url}/dicom-web")
    assert archive.asked == (["/metadata"] if is_over else ["/metadata", ""])
    assert bool(tally.interrupted) == is_over
    assert tally.instances == ({} if is_over else {"new": 2, "not-read": 2})
    command.print_tally(tally, Console(file=(out := StringIO()), width=200))
    assert ("does not let us read WADO-RS metadata" in out.getvalue()) == (status == 403)


@pytest.mark.parametrize("how", ["hidden", "unnamed"])
def test_metadata_that_do_not_name_every_instance_hide_no_picture(archive: Archive, how: str) -> None:
    setattr(archive, how, [one.SOPInstanceUID for one in (*archive.files["CR"], *archive.files["KO"])])
    with _server(archive.answer) as url:
        tally = _dicom(f"{url}/dicom-web")
    assert archive.asked == ["/metadata", ""]
    assert tally.instances == {"new": 2, "not-read": 2}
    assert "do not name each of the instances" in tally.notes[0]


def test_of_pictures_alone_nothing_is_asked_first(archive: Archive) -> None:
    del archive.files["SR"], archive.files["KO"]
    with _server(archive.answer) as url:
        assert _dicom(f"{url}/dicom-web").instances == {"new": 1}
    assert archive.asked == [""]


def test_our_own_results_are_known_before_they_are_fetched(archive: Archive) -> None:
    archive.files["SR"][0].Manufacturer = "Tessera"
    with _server(archive.answer) as url:
        assert _dicom(f"{url}/dicom-web").instances == {"new": 2, "not-read": 1, "duplicate": 1}


def test_a_study_that_the_archive_lists_and_does_not_give_stops_no_other(tmp_path: Path) -> None:
    content = write_radiograph(tmp_path / "one.dcm").read_bytes()
    good, status, lost = ehr.read_header(content).study_uid, 404, ["1.2.1", "1.2.2"]

    def answer(path: str) -> tuple[int, str, bytes]:
        if path.split("?")[0].endswith("/studies"):
            uids = [] if "offset=" in path and "offset=0" not in path else [*lost, good]
            listed = [{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in uids]
            return 200, "application/dicom+json", json.dumps(listed).encode()
        if not path.endswith(good):
            return status, "text/plain", b"no"
        part = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b--\r\n"
        return 200, 'multipart/related; type="application/dicom"; boundary=b', part

    with _server(answer) as url:
        tally = _dicom(f"{url}/dicom-web")
        assert (tally.instances["new"], tally.interrupted) == (1, "")
        assert "lists this study and does not give it: the archive answered 404" in tally.refused[0].reason
        status = 500
        assert "a study did not come" in _dicom(f"{url}/dicom-web").interrupted, "run again for it"
        status = 401
        refused = _dicom(f"{url}/dicom-web")
        assert "does not give what was asked" in refused.interrupted
        assert "check the token or password" in refused.interrupted
        assert not refused.may_go_on  # the same command again would be refused again
        status, lost = 404, [f"1.2.{number}" for number in range(fetching.MOST_FAILED)]
        assert "it does not give a study that it listed" in _dicom(f"{url}/dicom-web").interrupted


def test_the_command_prints_what_was_taken_and_writes_what_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fhir = _write(tmp_path / "fhir" / "a.json", _patient(), _pressure("o1"), _pressure("bad", unit="kg"))
    write_radiograph(tmp_path / "dicom" / "one.dcm")
    (tmp_path / "dicom" / "=evil.dcm").write_text("x")
    report = tmp_path / "refused.csv"
    call_command(
        "ingest", fhir=[str(fhir)], dicom=[str(tmp_path / "dicom")], source="st-elsewhere", report=report
    )
    printed = capsys.readouterr().out
    assert "Observation" in printed
    assert "=evil.dcm: DICOM" in printed
    rows = list(csv.DictReader(report.open()))
    assert {row["where"] for row in rows} == {"a.json#entry[2]", "'=evil.dcm"}
    assert Patient.objects.get().source.slug == "st-elsewhere"
    assert [problem for check in recording.verify() for problem in check.problems] == []
    assert AuditEvent.objects.filter(actor="system:ingest", action="patient.import").count() == 1


def test_the_command_needs_a_source() -> None:
    with pytest.raises(CommandError, match="--fhir, --bulk or --dicom"):
        call_command("ingest")
    with pytest.raises(CommandError, match="there is no folder"):
        call_command("ingest", fhir=["/nowhere/at/all"])


def test_a_report_in_json(tmp_path: Path) -> None:
    tally = ingesting.Tally(refused=2 * [ehr.SetAside("a.json", "Patient", "p1", "because [x]")])
    command.write_report(tally, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())[0]["reason"] == "because [x]"
    out = StringIO()
    command.print_tally(tally, Console(file=out, width=200))
    assert "a.json: Patient p1 because [x] (2 times)" in out.getvalue()
    command.write_report(ingesting.Tally(refused=[ehr.SetAside("a", "", "", "b")]), tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text().splitlines()[1] == "a,,,b", "an empty cell is no formula"


@pytest.mark.real_data
@pytest.mark.timeout(600)
def test_all_shared_fhir_is_taken_and_the_second_time_nothing_changes() -> None:
    folder = shared("data/fhir")
    first = _fhir(folder)
    assert first.patients >= 120
    assert first.resources["Observation"]["new"] > 9000
    assert first.resources["Encounter"]["new"] > 3000
    assert all(item.reason for item in first.refused)
    again = _fhir(folder)
    assert len(again.refused) == len(first.refused)
    # One Observation id stands in two files of the genomics examples with two contents: the later one wins,
    # each time.
    (twice,) = again.changed
    assert Patient.objects.get(pk=twice).genomicfindings.exists()
    assert again.resources["Observation"].pop("changed") == 2
    assert {state for states in again.resources.values() for state in states} == {"unchanged", "set_aside"}


@pytest.mark.real_data
def test_every_shared_dicom_file_is_taken_or_refused_with_a_reason() -> None:
    folder = shared("data/dicom")
    files = [path for path in folder.rglob("*") if path.is_file()]
    tally = _dicom(folder)
    assert sum(tally.instances.values()) == len(files)
    assert tally.instances["new"] >= 60
    assert all(item.reason for item in tally.refused)
    assert not Study.objects.filter(state=StudyState.ANNOUNCED).exists()
