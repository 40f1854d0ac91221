"""The clinic and its flows again, on PostgreSQL and Redis: the same tests, with other addresses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.services.again import ROOT, Again

pytestmark = [pytest.mark.service, pytest.mark.timeout(3000)]
RUNS = {  # what runs again, and how many tests it holds at least
    "flows": (("tests/flows", "--ignore=tests/flows/test_demo.py"), 2),  # the demo is embedded by definition
    "cds": (("tests/cds",), 300),
    "web": (("tests/web",), 1),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_same_tests_pass_on_postgresql_and_redis(again: Again, name: str) -> None:
    arguments, least = RUNS[name]
    passed = re.search(r"(\d+) passed", again.said(*arguments))
    assert passed
    assert int(passed[1]) >= least


def test_what_ran_was_really_postgresql_and_redis(again: Again, tmp_path: Path) -> None:
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
    assert "1 passed" in again.said(str(probe), f"--rootdir={ROOT}", f"-c{ROOT}/pyproject.toml")
