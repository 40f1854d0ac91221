"""SIGKILL a sender while the archive is taking an instance: sent again, nothing lost, nothing doubled."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest
from django.conf import settings
from django.utils import timezone

from cds.audit.models import AuditEvent
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.sending import composing, delivering
from cds.sending.models import Document, DocumentKind
from tests.cds.sending.results import add_destination, draw, make_radiograph
from tests.factories import NOW, make_patient
from tests.flows import workers
from tests.flows.test_kill_worker import let_the_dead_expire


class Archive(ThreadingHTTPServer):
    """A STOW-RS server that takes the first instance, keeps it, and never answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kept: dict[str, list[bytes]] = {}
        self.took = threading.Event()
        self.is_patient = threading.Event()
        self.answers = False


class _Handler(BaseHTTPRequestHandler):
    server: Archive

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = re.search("boundary=(.+)$", self.headers["Content-Type"])
        assert boundary is not None
        (part,) = body.split(b"--" + boundary[1].encode())[1:-1]
        content = part.partition(b"\r\n\r\n")[2][:-2]
        uid = str(pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID)
        self.server.kept.setdefault(uid, []).append(content)
        self.server.took.set()
        if not self.server.answers:
            self.server.is_patient.wait(60)
            return
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def _archive() -> Iterator[Archive]:
    server = Archive()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_patient.set()
        server.shutdown()
        server.server_close()
        thread.join()


def send_elsewhere(document: Document, folder: Path) -> subprocess.Popen[bytes]:
    """`delivering.deliver` in a process of its own, on the database of this test."""
    body = (
        "import sys, django; django.setup(); from cds.sending import delivering as d; d.deliver(sys.argv[1])"
    )
    environment = {
        **os.environ, **workers.same_database(folder), "DJANGO_SETTINGS_MODULE": "cds.settings",
        "STUDY_STORE": str(settings.STUDY_STORE), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", body, str(document.pk)], env=environment)


@pytest.mark.django_db(transaction=True)
def test_killed_while_an_instance_is_on_its_way(tmp_path: Path) -> None:
    series = make_radiograph(tmp_path, make_patient("p1"))
    with _archive() as archive:
        add_destination(f"dicomweb+http://127.0.0.1:{archive.server_port}/dicom-web", slug="pacs")
        draw(series)
        composing.compose_all(now=NOW)
        report = Document.objects.get(kind=DocumentKind.MEASUREMENTS)
        sender = send_elsewhere(report, tmp_path)
        assert archive.took.wait(120), "nothing came"
        os.kill(sender.pid, signal.SIGKILL)
        assert sender.wait() == -signal.SIGKILL
        report.refresh_from_db()
        assert (report.work_state, report.starts) == (WorkState.RUNNING, 1)
        delivering.deliver(report.pk)  # its lease still holds: nobody else may send it
        assert len(archive.kept) == 1

        archive.answers = True
        assert let_the_dead_expire(Document, sender.pid) == 1
        assert leases.sweep(timezone.now())["requeued"] == 1
        for document in Document.objects.all():
            delivering.deliver(document.pk)
            delivering.deliver(document.pk)
    assert set(Document.objects.values_list("work_state", flat=True)) == {WorkState.DONE}
    report.refresh_from_db()
    assert (report.starts, report.remote in archive.kept) == (2, True)
    assert sorted(len(copies) for copies in archive.kept.values()) == [1, 2]  # two instances, one sent twice
    assert all(len(set(copies)) == 1 for copies in archive.kept.values())  # and the same bytes each time
    assert AuditEvent.objects.filter(action="document.send").count() == 2
