"""`manage.py demo --once`, as a person types it, twice: the same clinic, and nobody left behind."""

import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1800)  # two whole demos, on a machine that may be busy
ROOT = Path(__file__).parents[2]
PATIENTS = 44  # fewer hold too few events to learn from
GROWS = {  # what every run may add to: the queue's memory, the audit trail, heat maps, what was read when
    "jobs_outboxmessage",
    "jobs_liveevent",
    "audit_auditevent",
    "risk_heatmap",
    "patients_ingestrun",
    "django_session",
    "sqlite_sequence",
}


def run_demo(data_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    unset = ("DATABASE_URL", "REDIS_URL", "TESSERA_DATA_DIR", "STUDY_STORE", "BUNDLE_STORE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "manage.py", "demo", "--once", "--patients", str(PATIENTS)]
    return subprocess.run(
        [*command, "--data-dir", str(data_dir), "--port", "0", *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def explain(run: subprocess.CompletedProcess[str], data_dir: Path) -> str:
    logs = [
        f"== {path.name}\n{path.read_text()[-1500:]}" for path in sorted((data_dir / "logs").glob("*.log"))
    ]
    return "\n".join([run.stdout[-3000:], run.stderr[-3000:], *logs])


def query(data_dir: Path, sql: str) -> list[tuple]:
    with sqlite3.connect(f"file:{data_dir / 'tessera.sqlite3'}?mode=ro", uri=True) as connection:
        return connection.execute(sql).fetchall()


def counts(data_dir: Path) -> dict[str, int]:
    tables = [name for (name,) in query(data_dir, "select name from sqlite_master where type = 'table'")]
    return {
        name: query(data_dir, f'select count(*) from "{name}"')[0][0] for name in tables if name not in GROWS
    }


def left_behind(data_dir: Path) -> list[str]:
    """Processes that still work for this data directory (Linux)."""
    wanted, found = f"TESSERA_DATA_DIR={data_dir}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # ended meanwhile, or not ours
    return found


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "data"


@pytest.fixture(scope="module")
def first(data_dir):
    run = run_demo(data_dir)
    assert run.returncode == 0, explain(run, data_dir)
    return run


def test_everybody_is_scored_by_a_model_that_says_how_it_came_to_be(first, data_dir):
    assert query(data_dir, "select count(*) from patients_patient") == [(PATIENTS,)]
    assert query(data_dir, "select simulated from patients_source") == [(1,)]
    everybody = "select count(distinct patient_id) from risk_riskassessment where"
    is_scored = "status in ('final', 'preliminary')"
    told = query(data_dir, f"{everybody} {is_scored} or abstained like 'age is outside the range%'")
    assert told == [(PATIENTS,)]  # of so few patients some are younger than all who were learned from
    ((scored,),) = query(data_dir, f"{everybody} {is_scored}")
    assert scored >= 0.9 * PATIENTS
    assert query(data_dir, "select count(*) from risk_riskassessment where work_state <> 'done'") == [(0,)]
    promotions = query(data_dir, "select reason, requested_by_id <> decided_by_id from registry_promotion")
    assert len(promotions) == 1
    assert promotions[0][0].startswith("Automatic demonstration on simulated data")
    assert promotions[0][1] == 1
    assert query(data_dir, "select simulated, stage from registry_modelversion") == [(1, "active")]


def test_address_and_logins_are_printed_and_kept_for_us_alone(first, data_dir):
    kept = data_dir / "demo-logins.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    logins = json.loads(kept.read_text())
    assert set(logins) == {"clinician", "admin", "approver"}
    assert "http://127.0.0.1:" in first.stdout
    for password in logins.values():
        assert len(password) >= 12
        assert password in first.stdout


def test_a_second_run_makes_no_second_copy_of_anything(first, data_dir):
    people = "select resource_id, family, given, birth_date from patients_patient order by resource_id"
    scores = "select patient_id, risk from risk_riskprediction p join risk_riskassessment a"
    scores += " on a.id = p.assessment_id"
    before = (counts(data_dir), query(data_dir, people), sorted(query(data_dir, scores)))
    logins = (data_dir / "demo-logins.json").read_text()
    run = run_demo(data_dir)
    assert run.returncode == 0, explain(run, data_dir)
    assert (counts(data_dir), query(data_dir, people), sorted(query(data_dir, scores))) == before
    assert (data_dir / "demo-logins.json").read_text() == logins


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_no_process_is_left_behind(first, data_dir):
    assert left_behind(data_dir) == []


def test_a_port_in_use_is_named_with_the_way_out(first, data_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = run_demo(data_dir, "--port", str(port))
    assert run.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in run.stderr
    assert f"--port {port + 1}" in run.stderr


def test_another_seed_needs_another_place(first, data_dir):
    run = run_demo(data_dir, "--seed", "5")
    assert run.returncode == 1
    assert "name another --data-dir" in run.stderr
