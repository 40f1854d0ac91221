"""The clinic and its flows again, on PostgreSQL and Redis: the same tests, with other addresses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.conftest import Services

pytestmark = [pytest.mark.service, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]


def run_pytest(services: Services, tmp_path: Path, *arguments: str) -> str:
    """Run tests on the servers; returns what was said, or fails with it."""
    environment = {**os.environ, "DATABASE_URL": services.database_url, "REDIS_URL": services.redis_url}
    environment["TESSERA_DATA_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--create-db", *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.mark.parametrize(
    ("what", "least"),
    [
        # the demo is embedded by definition; it looks at its own SQLite file
        (("tests/flows", "--ignore=tests/flows/test_demo.py"), 2),
        (("tests/cds",), 300),
        (("tests/web",), 1),
    ],
    ids=["flows", "cds", "web"],
)
def test_the_same_tests_pass_on_postgresql_and_redis(
    services: Services, tmp_path: Path, what: tuple[str, ...], least: int
) -> None:
    said = run_pytest(services, tmp_path, *what)
    passed = re.search(r"(\d+) passed", said)
    assert passed
    assert int(passed[1]) >= least


def test_what_ran_was_really_postgresql_and_redis(services: Services, tmp_path: Path) -> None:
    probe = tmp_path / "test_probe.py"
    probe.write_text(
        "import pytest, redis\n"
        "from django.conf import settings\n"
        "from django.db import connection\n"
        "from cds.jobs import beats\n"
        "@pytest.mark.django_db\n"
        "def test_probe():\n"
        "    assert connection.vendor == 'postgresql'\n"
        "    assert beats.connect().ping()\n"
    )
    assert "1 passed" in run_pytest(
        services, tmp_path, str(probe), f"--rootdir={ROOT}", f"-c{ROOT}/pyproject.toml"
    )
