"""Every cookie of ours, as production sets it: bound to this host, never readable by script (INTEROP 29)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.cookies import Morsel
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from cds.audit import recording
from cds.launch import registering
from cds.patients import access
from tests.architecture.test_settings import GOOD, ROOT
from tests.launching_ehr import LaunchingEhr
from tests.web import clinic, launches

BY = recording.system("test")
SAYS = (
    "import json; from cds import settings as s; "
    "print(json.dumps({n: getattr(s, n) for n in dir(s) if 'COOKIE' in n or n == 'MESSAGE_STORAGE'}))"
)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the settings of a production start say of cookies."""
    folder: Path = tmp_path_factory.mktemp("production")
    environment = {"PATH": os.environ["PATH"], **GOOD, "TESSERA_DATA_DIR": str(folder)}
    command = [sys.executable, "-c", SAYS]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return dict(json.loads(done.stdout))


@pytest.fixture
def production(said: dict[str, Any], settings: Settings) -> None:
    for name, value in said.items():
        setattr(settings, name, value)


class Watching(Client):
    """A browser on https that remembers every cookie it was ever given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Morsel[str]] = []

    def request(self, **request: Any) -> Any:
        request["wsgi.url_scheme"] = "https"
        answer = super().request(**request)
        self.given += list(answer.cookies.values())
        return answer


def _journey(server: LaunchingEhr) -> Iterator[Watching]:
    """A launch with a message on its panel, signing out; signing in here, a message, signing out."""
    launched = Watching()
    there = launches.launch(launched, server)["Location"]
    assert "You came from your EHR" in launched.get(there).content.decode()
    launched.post("/logout")
    yield launched
    clinic.person("admin", access.Role.ADMIN)
    desk = Watching()
    desk.get("/login")
    form = {"username": "admin", "password": clinic.PASSWORD}
    desk.post("/login", {**form, "password": "wrong"})
    assert desk.post("/login", form).status_code == 302
    other, _ = registering.register(
        "Other", issuer="https://other.example", client_id="x", source="other", by=BY, now=timezone.now()
    )
    desk.post(f"/ehrs/servers/{other.pk}/withdraw")
    assert "is withdrawn" in desk.get("/ehrs").content.decode()
    desk.post("/logout")
    yield desk


@pytest.mark.parametrize("is_framed", [False, True])
def test_every_cookie_is_bound_to_this_host(
    production: None, db: None, server: LaunchingEhr, is_framed: bool
) -> None:
    launches.register(server, embedders=["https://ehr.example"] if is_framed else [])
    names = set()
    for browser in _journey(server):
        assert browser.given
        for cookie in browser.given:
            names.add(cookie.key)
            assert cookie.key.startswith("__Host-"), cookie.key
            assert (cookie["path"], cookie["domain"]) == ("/", ""), cookie.key
            is_gone = cookie["max-age"] == 0
            assert is_gone or cookie["httponly"], cookie.key
            assert cookie["secure"], cookie.key
            expected = ("None", True) if is_framed else ("Lax", False)
            assert (cookie["samesite"], bool(cookie["partitioned"])) == expected, cookie.key
    assert {"__Host-session", "__Host-csrf"} <= names
