"""Sources: each run has its row, a paused source is left alone, and whether it answers is said in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db.models import F

from cds import ingesting, listening
from cds.audit.models import AuditEvent
from cds.errors import Conflict, Invalid, NotAllowed
from cds.jobs import Job
from cds.jobs.models import LiveEvent, OutboxMessage
from cds.patients import access, source_queries, sources
from cds.patients.models import CheckState, IngestRun, Patient, RunKind, RunState, Source
from cds.studies import checking
from cds.studies.models import Study
from cds.subscriptions.models import Subscription
from tests.cds.dicom_files import write_radiograph
from tests.factories import NOW, TESTS, make_source

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin() -> User:
    user = User.objects.create_user("an-admin")
    access.give_role(user, access.Role.ADMIN)
    return user


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Patient.ndjson").write_text(json.dumps({"resourceType": "Patient", "id": "p1"}) + "\n")
    (tmp_path / "Observation.ndjson").write_text(
        json.dumps({"resourceType": "Observation", "id": "o1"}) + "\n"
    )
    return tmp_path


def ingest(folder: Path) -> ingesting.Tally:
    return ingesting.ingest_fhir(folder, source=make_source(), by=TESTS, now=NOW)


def view(admin: User, source: Source, now: Any = NOW) -> source_queries.SourceView:
    return source_queries.get_source(admin, source.pk, now=now)


def test_a_run_leaves_its_row(folder: Path) -> None:
    ingest(folder)
    run = IngestRun.objects.get()
    assert (run.kind, run.state, run.where) == (RunKind.FOLDER, RunState.DONE, str(folder))
    assert (run.patients, run.taken, run.set_aside, run.error) == (1, 1, 1, "")
    assert run.ended_at is not None
    told = AuditEvent.objects.filter(object_type="IngestRun").order_by("pk")
    assert [event.action for event in told] == ["ingest.begin", "ingest.end"]
    assert LiveEvent.objects.filter(kind="source", subject=str(run.source_id)).count() == 2


def test_a_run_that_fails_says_why(tmp_path: Path, admin: User) -> None:
    with pytest.raises(Invalid):
        ingest(tmp_path / "nowhere")
    run = IngestRun.objects.get()
    assert run.state == RunState.FAILED
    assert "there is no folder or file" in run.error
    assert view(admin, run.source).state == source_queries.SourceState.FAILING
    assert AuditEvent.objects.get(action="ingest.end").outcome == "failed"


def test_another_programmes_error_is_not_quoted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("Maria Musterfrau")

    monkeypatch.setattr("cds.folders.take_folder", broken)
    with pytest.raises(ValueError, match="Musterfrau"):
        ingest(folder)
    assert IngestRun.objects.get().error == "ValueError: see the log of the run"


def test_a_paused_source_refuses_every_way_in(folder: Path) -> None:
    source = make_source()
    sources.pause(source, by=TESTS, now=NOW)
    for take in (ingesting.ingest_fhir, ingesting.ingest_dicom):
        with pytest.raises(Conflict, match="is paused: resume it on the Sources screen"):
            take(folder, source=source, by=TESTS, now=NOW)
    with pytest.raises(Conflict, match="paused"):
        ingesting.ingest_bulk("https://ehr.example/fhir", source=source, by=TESTS, now=NOW)
    with pytest.raises(Conflict, match="paused"):  # Subscriptions and SMART launches come this way
        ingesting.ingest_patients("https://ehr.example/fhir", ["p1"], source=source, by=TESTS, now=NOW)
    with pytest.raises(CommandError, match="paused"):
        call_command("ingest", fhir=[str(folder)], source=source.slug)
    assert not Patient.objects.exists()
    assert not IngestRun.objects.exists()
    sources.resume(source, by=TESTS, now=NOW)
    assert ingest(folder).patients == 1
    acts = AuditEvent.objects.filter(object_type="Source").values_list("action", flat=True)
    assert sorted(acts) == ["source.pause", "source.resume"]


def test_how_a_source_stands(admin: User) -> None:
    source = make_source()
    state = source_queries.SourceState
    assert view(admin, source).state == state.NEVER_RUN
    run = sources.begin(source, kind=RunKind.BULK, where="https://ehr.example", by=TESTS, now=NOW)
    sources.beat(run, stage="Export files", done=3, total=8, now=NOW)
    running = view(admin, source, NOW + timedelta(minutes=9)).running
    assert running is not None
    assert (running.stage, running.done, running.total) == ("Export files", 3, 8)
    killed = view(admin, source, NOW + timedelta(minutes=11))
    assert (killed.running, killed.state) == (None, state.FAILING)
    assert "it was killed" in killed.error
    sources.end(run, RunState.DONE, by=TESTS, now=NOW, counts={"patients": 1})
    assert view(admin, source, NOW + timedelta(hours=24)).state == state.CURRENT
    assert view(admin, source, NOW + timedelta(hours=26)).state == state.LATE
    sources.pause(source, by=TESTS, now=NOW)
    assert view(admin, source).state == state.PAUSED
    with pytest.raises(Conflict):
        sources.end(run, RunState.FAILED, by=TESTS, now=NOW, counts={})


FHIR, PACS = "https://ehr.example/fhir", "https://pacs.example/dicom-web"


def went(
    source: Source, where: str, kind: RunKind, state: RunState, *, days: float = 0, error: str = "gone"
) -> None:
    at = NOW + timedelta(days=days)
    run = sources.begin(source, kind=kind, where=where, by=TESTS, now=at)
    said = "" if state == RunState.DONE else error
    sources.end(run, state, by=TESTS, now=at, counts={}, error=said)


def test_a_run_of_another_kind_hides_no_failure(admin: User) -> None:
    """`ingest --fhir … --dicom …`: both belong to one source, and each speaks for itself."""
    source, state = make_source(), source_queries.SourceState
    went(source, FHIR, RunKind.SERVER, RunState.BROKEN_OFF, error="the FHIR server stopped answering")
    assert view(admin, source).error == "the FHIR server stopped answering"
    for number in range(120):  # an archive that is polled every five minutes
        went(source, PACS, RunKind.DICOM, RunState.DONE, days=0.001 * number)
    shown = view(admin, source)
    assert shown.state == state.FAILING
    assert shown.error == f"FHIR server, {FHIR}: the FHIR server stopped answering"
    assert [one.where for one in checking.addresses_of(source)] == [PACS, FHIR]
    went(source, PACS, RunKind.DICOM, RunState.FAILED, days=0.5, error="401")
    assert sorted(view(admin, source).error.splitlines()) == [
        f"DICOM, {PACS}: 401",
        f"FHIR server, {FHIR}: the FHIR server stopped answering",
    ]
    for where, kind in ((FHIR, RunKind.SERVER), (PACS, RunKind.DICOM)):
        went(source, where, kind, RunState.DONE, days=0.6)
    assert (view(admin, source).state, view(admin, source).error) == (state.CURRENT, "")


def test_an_address_that_was_mistyped_or_given_up_is_forgotten(admin: User) -> None:
    source = make_source()
    went(source, "https://her.example/fhir", RunKind.SERVER, RunState.BROKEN_OFF)
    went(source, "/nowhere", RunKind.FOLDER, RunState.FAILED)
    assert len(view(admin, source).error.splitlines()) == 2
    went(source, FHIR, RunKind.SERVER, RunState.DONE, days=1)
    went(source, "/there", RunKind.FOLDER, RunState.DONE, days=1)
    assert view(admin, source).error == ""
    went(source, FHIR, RunKind.SERVER, RunState.BROKEN_OFF, days=2)
    went(source, "https://new.example/fhir", RunKind.SERVER, RunState.DONE, days=3)
    assert FHIR in view(admin, source).error, "it worked until yesterday"
    went(source, "https://new.example/fhir", RunKind.SERVER, RunState.DONE, days=40)
    assert view(admin, source).error == ""


def subscribed(source: Source, **said: Any) -> Subscription:
    given = {"base_url": FHIR, "shape": "r4", "criteria": "Observation?", "secret_digest": "0" * 64,
             "server_id": "s1", "status": "active", "good_until": NOW, "created_at": NOW, **said}  # fmt: skip
    return Subscription.objects.create(source=source, **given)


@pytest.mark.parametrize(
    ("said", "state", "words"),
    [
        ({}, "Current", ""),
        ({"last_error": "the FHIR server stopped answering: 401"}, "Failing", "stopped answering: 401"),
        ({"status": "error"}, "Failing", "its server says that it is 'error': look there at Subscription/s1"),
        ({"gap": "events between 3 and 5 did not arrive"}, "Late", ""),
        ({"good_until": NOW - timedelta(hours=26)}, "Late", ""),
    ],
)
def test_a_source_that_only_subscriptions_fill(
    admin: User, said: dict[str, Any], state: str, words: str
) -> None:
    source = make_source()
    subscribed(source, **said)
    shown = view(admin, source)
    assert shown.state == state
    assert words in shown.error
    assert bool(words) == bool(shown.error)
    (one,) = shown.subscriptions
    assert (one.what, one.gap) == ("Observation?", said.get("gap", ""))
    went(source, PACS, RunKind.DICOM, RunState.DONE)
    assert view(admin, source).state == state, "a run of the archive hides nothing"


def test_the_server_of_a_subscription_is_called(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source, server.token = make_source(), "Bearer good"
    subscribed(source, base_url=f"{server.url}/fhir", sign_in={"token_env": "WARD_TOKEN"})
    assert "the environment variable WARD_TOKEN is not set" in ask(source)[1]
    monkeypatch.setenv("WARD_TOKEN", "good")
    state, said = ask(source)
    assert (state, "lets us read Patient" in said) == (CheckState.ANSWERED, True), said


def test_reasons_are_counted_together(admin: User, folder: Path) -> None:
    ingest(folder)
    ingest(folder)
    (reason,) = source_queries.list_reasons(admin, make_source())
    assert (reason["kind"], reason["items"], reason["seen"]) == ("Observation", 1, 2)


def test_only_admins_look(admin: User) -> None:
    clinician = User.objects.create_user("a-clinician")
    access.give_role(clinician, access.Role.CLINICIAN)
    with pytest.raises(NotAllowed):
        source_queries.list_sources(clinician, now=NOW)
    assert source_queries.list_sources(admin, now=NOW) == []


class Server(ThreadingHTTPServer):
    """A hospital's FHIR server and archive on one port; `token`: what it wants to be shown."""

    token = ""
    version = "4.0.1"
    archive: dict[str, tuple[int, Any]] = {}  # path → answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, shown: str) -> tuple[int, Any]:
        if path == "/fhir/metadata":  # open to everybody, as is usual
            software = {"name": "Ours"}
            return 200, {
                "resourceType": "CapabilityStatement",
                "fhirVersion": self.version,
                "software": software,
            }
        if self.token and self.token != shown:
            return 401 if not shown else 403, {"resourceType": "OperationOutcome"}
        if path == "/fhir/Patient?_count=1":
            return 200, {"resourceType": "Bundle", "type": "searchset"}
        if path in self.archive:
            return self.archive[path]
        return 404, {"resourceType": "OperationOutcome"}


STUDIES, LISTED = "/dicom-web/studies?limit=1", "/dicom-web/studies/1.2/instances?limit=10"
METADATA = "/dicom-web/studies/1.2/series/1.3/instances/1.5/metadata"
FRAME = "/dicom-web/studies/1.2/series/1.3/instances/1.5/frames/1"


def told(**said: Any) -> dict[str, Any]:
    tags = {"study": "0020000D", "series": "0020000E", "sop": "00080018", "modality": "00080060",
            "rows": "00280010"}  # fmt: skip
    return {tags[name]: {"vr": "UI", "Value": [value]} for name, value in said.items()}


REPORT = told(series="1.3", sop="1.5", modality="SR")
ARCHIVE: dict[str, tuple[int, Any]] = {
    STUDIES: (200, [told(study="1.2")]),
    LISTED: (200, [told(series="1.3", sop="1.4"), told(series="1.3", sop="1.5", rows=16)]),
    METADATA: (200, [told(series="1.3", sop="1.5", modality="CR", rows=16)]),
    FRAME: (200, b"x" * 1536),
}


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown = self.headers.get("Authorization", "")
            status, said = cast(Server, self.server).answer(self.path, shown)
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            if isinstance(said, bytes):
                self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = Server(("127.0.0.1", 0), Handler)
    http.archive = dict(ARCHIVE)
    Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def ask(source: Source) -> tuple[str, str]:
    sources.ask_check(source, by=TESTS, now=NOW)
    source.refresh_from_db()
    assert source.check_state == CheckState.ASKED
    message = OutboxMessage.objects.filter(job=Job.CHECK_SOURCE).latest("pk")
    checking.check(message.kwargs["source_id"], now=NOW)
    source.refresh_from_db()
    return source.check_state, source.check_said


@pytest.mark.parametrize(
    ("address", "state", "said"),
    [
        ("/fhir", CheckState.ANSWERED, "FHIR 4.0.1, Ours, and lets us read Patient"),
        ("/other", CheckState.SILENT, "404"),
        ("", CheckState.SILENT, "no address"),
    ],
)
def test_whether_a_source_answers(server: Server, address: str, state: str, said: str) -> None:
    source = make_source()
    Source.objects.filter(pk=source.pk).update(base_url=f"{server.url}{address}" if address else "")
    found, words = ask(source)
    assert found == state
    assert said in words


def ran(source: Source, where: str, kind: RunKind = RunKind.SERVER, **how: str) -> None:
    """The newest run of a source; another's is made older."""
    source.runs.update(started_at=F("started_at") - timedelta(hours=1))
    begun = sources.begin(source, kind=kind, where=where, how=how, by=TESTS, now=NOW)
    sources.end(begun, RunState.DONE, by=TESTS, now=NOW, counts={})


def test_each_address_is_asked_as_its_last_run_was_made(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, server.token = make_source(), "Bearer good"
    monkeypatch.setenv("WARD_TOKEN", "good")
    ran(source, f"{server.url}/fhir")
    assert "it asks who we are (GET /fhir/Patient: 401" in (said := ask(source)[1])
    assert "run `ingest` with --client-id" in said
    ran(source, f"{server.url}/fhir", token_env="WARD_TOKEN")
    ran(source, f"{server.url}/dicom-web", RunKind.DICOM, token_env="WARD_TOKEN")
    ran(source, "dimse://PACS@127.0.0.1:9", RunKind.DICOM)
    state, said = ask(source)
    assert state == CheckState.SILENT, "one of three does not answer"
    node, archive, fhir = said.splitlines()
    assert "is it running, are host and port right" in node
    assert archive.endswith("QIDO-RS, with studies, and WADO-RS, with metadata and a frame of 1,536 bytes")
    assert fhir.endswith("lets us read Patient")


def test_what_to_change_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source, server.token = make_source(), "Bearer good"
    ran(source, f"{server.url}/fhir", token_env="WARD_TOKEN")
    assert "the environment variable WARD_TOKEN is not set" in ask(source)[1]
    monkeypatch.setenv("WARD_TOKEN", "old")
    assert "put a fresh one into WARD_TOKEN" in ask(source)[1]
    ran(source, f"{server.url}/fhir", client_id="tessera")
    assert "names no token_endpoint; give its address yourself" in ask(source)[1]
    ran(source, f"{server.url}/fhir", client_id="tessera", token_url=f"{server.url}/token")
    assert "run `manage.py fhir_key add`" in ask(source)[1]
    server.version = "5.0.0"
    ran(source, f"{server.url}/fhir")
    assert "Tessera reads FHIR R4" in ask(source)[1]


def test_a_stranger_at_the_archive_is_told_which_option(server: Server) -> None:
    source, server.token = make_source(), "Bearer good"
    ran(source, f"{server.url}/dicom-web", RunKind.DICOM)
    assert "401: check the token or password; none was given: name its variable" in ask(source)[1]


@pytest.mark.parametrize(
    ("changed", "state", "said"),
    [
        ({STUDIES: (200, [])}, CheckState.ANSWERED, "with no study yet"),
        (
            {METADATA: (200, [told(series="1.3", sop="1.5", modality="SR")])},
            CheckState.ANSWERED,
            "no picture",
        ),
        ({FRAME: (406, {})}, CheckState.ANSWERED, "gives no single frame (the archive answered 406)"),
        (
            {METADATA: (403, {})},
            CheckState.SILENT,
            "not fetch them (the archive answered 403",
        ),
        ({FRAME: (403, {})}, CheckState.SILENT, "allow our account WADO-RS as well"),
        ({FRAME: (503, {})}, CheckState.SILENT, "the archive answered 503"),
    ],
    ids=["empty", "a report", "no frames", "closed", "closed frames", "busy"],
)
def test_an_archive_that_lists_is_asked_whether_it_gives(
    server: Server, changed: dict[str, tuple[int, Any]], state: str, said: str
) -> None:
    source = make_source()
    server.archive |= changed
    ran(source, f"{server.url}/dicom-web", RunKind.DICOM)
    found, words = ask(source)
    assert (found, said in words) == (state, True), words


def test_a_paused_receiver_stores_nothing(tmp_path: Path) -> None:
    source = make_source()
    sources.pause(source, by=TESTS, now=NOW)
    taken = listening.Arrivals(source).take(write_radiograph(tmp_path / "a.dcm"), "SCANNER")
    assert "is paused" in taken.refused
    assert not Study.objects.exists()
