"""Settings: from the environment only, each variable told in .env.example, unsafe starts refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cds import environment
from cds.environment import Environment
from cds.hooks import contexts

ROOT = Path(__file__).parents[2]
GOOD = {
    "TESSERA_ENV": "production",
    "SECRET_KEY": "q8w7-e6r5_t4y3.u2i1+o0p9/a8s7=d6f5!g4h3@j2k1l0zxcvbnm",
    "PUBLIC_URL": "https://tessera.example.org",
    "ALLOWED_HOSTS": "tessera.example.org",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "DATABASE_URL": "postgres://tessera:secret@127.0.0.1:5432/tessera",
}


def told() -> dict[str, str]:
    """Variable -> the comment above it, in .env.example."""
    found, comment = {}, ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if line.startswith("# "):
            comment = f"{comment} {line[2:]}".strip()
        elif match := re.fullmatch(r"#?([A-Z_]+)=.*", line):
            found[match[1]], comment = comment, ""
        elif not line.strip():
            comment = ""
    return found


def test_the_example_tells_every_variable_and_no_other() -> None:
    compose = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    read = {name.upper() for name in Environment.model_fields}
    assert set(told()) == read | compose


@pytest.mark.parametrize("name", sorted(Environment.model_fields))
def test_the_example_says_what_the_settings_say(name: str) -> None:
    description = Environment.model_fields[name].description
    assert description
    assert description in told()[name.upper()]


def start(**changes: str) -> subprocess.CompletedProcess[str]:
    """`check --deploy` in a process with exactly these variables."""
    environment = {"PATH": os.environ["PATH"], **GOOD, **changes}
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_a_good_production_environment_passes_the_deploy_check(tmp_path: Path) -> None:
    ended = start(TESSERA_DATA_DIR=str(tmp_path))
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY"),
        ({"SECRET_KEY": "change-me-change-me-change-me-change-me-change-me-now"}, "SECRET_KEY"),
        ({"DEBUG": "true"}, "DEBUG"),
        ({"PUBLIC_URL": "http://tessera.example.org"}, "PUBLIC_URL"),
        ({"HOOKS_OPEN": "true"}, "HOOKS_OPEN"),
        ({"REDIS_URL": ""}, "REDIS_URL"),
        ({"HOOKS_OFFERED": "patient-veiw,order-sign"}, "HOOKS_OFFERED takes patient-view, encounter-start"),
        ({"HOOKS_OFFERED": "patient-veiw,order-sign"}, "not patient-veiw"),
        ({"HOOKS_QUIET_ROLES": "PractitionerRole/n 7"}, "HOOKS_QUIET_ROLES takes a FHIR type, or"),
        ({"TRUSTED_PROXIES": "10.3.0.1/16"}, "TRUSTED_PROXIES takes addresses or networks"),
        ({"HOOKS_QUIET_ROLES": "Practitoner"}, "HOOKS_QUIET_ROLES takes Practitioner, PractitionerRole"),
    ],
)
def test_an_unsafe_production_start_is_refused_and_says_why(
    changes: dict[str, str], said: str, tmp_path: Path
) -> None:
    ended = start(TESSERA_DATA_DIR=str(tmp_path), **changes)
    assert ended.returncode != 0
    assert said in ended.stderr


def test_settings_know_the_same_words_as_the_hooks() -> None:
    assert tuple(contexts.HOOKS) == environment.HOOKS
    assert set(contexts.USER.pattern[1:].partition(")")[0].split("|")) == set(environment.USERS)
