"""What the demo fixes before the settings load."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cds.demo import environment

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def own_variables(monkeypatch):
    for name in (
        "TESSERA_DATA_DIR",
        "REDIS_URL",
        "PUBLIC_URL",
        "HOOKS_OPEN",
        "TESSERA_DEMO_WEB_PORT",
        "TESSERA_DEMO_BROKER_PORT",
    ):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    yield
    for file in environment._held:
        file.close()
    environment._held.clear()


def test_the_data_directory_and_addresses_reach_the_settings(tmp_path):
    environment.settle(["--data-dir", str(tmp_path / "d"), "--port", "8123", "--once"])
    assert os.environ["TESSERA_DATA_DIR"] == str(tmp_path / "d")
    assert os.environ["PUBLIC_URL"] == "http://127.0.0.1:8123"
    port = environment.read_state(tmp_path / "d")["broker_port"]
    assert os.environ["REDIS_URL"] == f"redis://127.0.0.1:{port}/0"


def test_commands_in_another_terminal_know_where_the_demo_serves(tmp_path):
    environment.settle(["--data-dir", str(tmp_path), "--port", "8123"])
    elsewhere = {**os.environ, "TESSERA_DATA_DIR": str(tmp_path)}
    for name in ("PUBLIC_URL", "REDIS_URL"):
        elsewhere.pop(name)
    say = "from cds import settings as s; print(s.PUBLIC_URL, s.REDIS_URL)"
    run = subprocess.run([sys.executable, "-c", say], cwd=ROOT, env=elsewhere, capture_output=True, text=True)
    port = environment.read_state(tmp_path)["broker_port"]
    assert run.stdout.split() == ["http://127.0.0.1:8123", f"redis://127.0.0.1:{port}/0"]


def test_a_broker_of_the_users_own_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6379/0")
    environment.settle(["--data-dir", str(tmp_path)])
    assert os.environ["REDIS_URL"] == "redis://elsewhere:6379/0"
    assert "TESSERA_DEMO_BROKER_PORT" not in os.environ


def test_help_touches_nothing(tmp_path):
    environment.settle(["--help", "--data-dir", str(tmp_path / "d")])
    assert not (tmp_path / "d").exists()


def test_a_second_demo_in_the_same_place_is_refused(tmp_path):
    environment.settle(["--data-dir", str(tmp_path)])
    run = subprocess.run(
        [sys.executable, "manage.py", "demo", "--data-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "already running" in run.stderr
    assert "--data-dir" in run.stderr


def test_the_first_start_is_kept(tmp_path):
    now = datetime(2026, 11, 23, 14, 5, 6, 789, tzinfo=UTC)
    first = environment.first_start(tmp_path, now)
    assert first == now.replace(microsecond=0)
    assert environment.first_start(tmp_path, now + timedelta(days=3)) == first


def test_children_use_one_thread_and_no_model_hub():
    child = environment.child_environment({"PATH": "/bin"})
    assert child["OMP_NUM_THREADS"] == "1"
    assert child["HF_HUB_OFFLINE"] == "1"
    assert child["PATH"] == "/bin"


def test_other_commands_speak_to_the_broker_of_the_demo_beside_them(tmp_path: Path) -> None:
    environment.write_state(tmp_path, broker_port=49_152)
    beside = {**os.environ, "TESSERA_DATA_DIR": str(tmp_path), "REDIS_URL": ""}
    said = subprocess.run(
        [sys.executable, "-c", "from cds import settings; print(settings.REDIS_URL)"],
        env=beside, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "redis://127.0.0.1:49152/0"
