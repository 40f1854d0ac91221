"""kill -9 while a research copy is written: the same command goes on, nothing is lost, doubled or stray."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

PATIENTS, PARTS = 300, 12
CLINIC = """
import json, sys
from datetime import UTC, datetime
from pathlib import Path
import django
django.setup()
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from cds import folders
from cds.audit import recording
from cds.patients import importing
call_command("migrate", verbosity=0)
User.objects.create_user("curator").groups.add(Group.objects.get(name="admin"))
source = importing.get_source("ward", now=datetime.now(UTC))
folders.take_folder(Path(sys.argv[1]), source=source, by=recording.system("test"), now=datetime.now(UTC))
"""


def write_patients(path: Path) -> None:
    with path.open("w") as file:
        for number in range(PATIENTS):
            pressure = {
                "resourceType": "Observation", "id": f"o{number}", "status": "final",
                "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
                "subject": {"reference": f"Patient/p{number}"}, "effectiveDateTime": "2026-03-01T08:00:00Z",
                "valueQuantity": {"value": 90 + number % 60, "code": "mm[Hg]"},
            }  # fmt: skip
            for one in ({"resourceType": "Patient", "id": f"p{number}", "gender": "female"}, pressure):
                file.write(json.dumps(one) + "\n")


def count(database: sqlite3.Connection, where: str) -> int:
    found: int = database.execute(f"SELECT count(*) FROM {where}").fetchone()[0]
    return found


@pytest.mark.timeout(300)
def test_killed_between_a_parts_files_and_its_row(tmp_path: Path) -> None:
    environment = {
        **os.environ, "TESSERA_DATA_DIR": str(tmp_path / "data"), "DATABASE_URL": "", "REDIS_URL": "",
        "DJANGO_SETTINGS_MODULE": "cds.settings", "LOG_LEVEL": "CRITICAL",
    }  # fmt: skip
    known: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL}
    write_patients(tmp_path / "ward.ndjson")
    (tmp_path / "data").mkdir()
    subprocess.run(
        [sys.executable, "-c", CLINIC, str(tmp_path / "ward.ndjson")], check=True, timeout=240, **known
    )
    folder = tmp_path / "copy"
    command = [
        sys.executable, "manage.py", "export_research", str(folder), "--source", "ward", "--as", "curator"
    ]  # fmt: skip

    with closing(sqlite3.connect(tmp_path / "data" / "tessera.sqlite3", isolation_level=None)) as database:
        database.execute("PRAGMA busy_timeout = 20000")
        exporting = subprocess.Popen(command, **known)
        deadline = time.monotonic() + 120
        while count(database, "research_researchpart") < 2:
            assert exporting.poll() is None, "the copy ended before two of its parts were seen"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        database.execute("BEGIN IMMEDIATE")  # whatever it writes next to the database waits for us
        held = count(database, "research_researchpart")
        while exporting.poll() is None and len(list((folder / "fhir").glob("records-*"))) <= held:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        exporting.kill()
        exporting.wait(10)
        database.execute("ROLLBACK")
        assert 2 <= held < PARTS, "it was killed in between"
        assert json.loads((folder / "manifest.json").read_bytes())["state"] == "unfinished"
        first = (folder / "fhir" / "records-0001.ndjson").stat().st_mtime_ns
        torn = folder / "fhir" / f"records-{held + 1:04}.ndjson"
        assert torn.exists(), "a part's files were there, its row was not"
        before = torn.read_bytes()

        subprocess.run(command, check=True, timeout=240, **known)
        assert count(database, "research_researchpart") == PARTS
        assert count(database, "audit_auditevent WHERE action = 'research.copy'") == PATIENTS

    assert (folder / "fhir" / "records-0001.ndjson").stat().st_mtime_ns == first, "what was whole is left"
    assert torn.read_bytes() == before, "the same bytes under the same name"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["state"] == "finished"
    assert manifest["counts"]["resources"] == {"Observation": PATIENTS, "Patient": PATIENTS}
    lines = [json.loads(line) for path in (folder / "fhir").iterdir() for line in path.open()]
    assert len({(one["resourceType"], one["id"]) for one in lines}) == len(lines) == 2 * PATIENTS
    with (folder / "files.csv").open() as table:
        told = {row["path"]: row["sha256"] for row in csv.DictReader(table)}
    lie = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(lie) == {*told, "files.csv", "manifest.json"}, "nothing stray"
    assert all(hashlib.sha256(lie[name].read_bytes()).hexdigest() == digest for name, digest in told.items())
