"""Signing in: what it says, what it hides, when it closes; and where each role starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_network

import pytest
from axes.models import AccessAttempt
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.launch import registering
from cds.launch.models import SmartServer
from tests.launching_ehr import LaunchingEhr
from tests.web import launches
from tests.web.clinic import PASSWORD, Clinic


@pytest.mark.parametrize(
    ("name", "start"), [("clinician", "/worklist"), ("admin", "/models"), ("approver", "/models")]
)
def test_each_role_starts_on_its_page(name: str, start: str, ward: Clinic, client: Client) -> None:
    first = client.post("/login", {"username": name, "password": PASSWORD})
    assert first["Location"] == "/"
    assert client.get("/")["Location"] == start
    assert AuditEvent.objects.get(action="session.begin").outcome == "success"


def test_a_failure_does_not_tell_whether_the_person_exists(ward: Clinic, client: Client) -> None:
    known = client.post("/login", {"username": "admin", "password": "wrong"}).content.decode()
    unknown = client.post("/login", {"username": "nobody-here", "password": "wrong"}).content.decode()
    strip = lambda page: page[page.index('role="alert"') : page.index("</form>")].split("csrf")[0]  # noqa: E731
    assert 'value="admin"' in known, "nobody types the name twice"
    assert strip(known).replace("admin", "nobody-here") == strip(unknown)
    assert "do not match" in known
    refused = AuditEvent.objects.filter(action="session.begin", outcome="refused")
    assert refused.count() == 2
    assert "nobody-here" not in str(list(refused.values()))


def test_five_failures_lock_even_the_right_password_out(ward: Clinic, client: Client) -> None:
    for _ in range(5):
        last = client.post("/login", {"username": "admin", "password": "wrong"})
    assert last.status_code == 429
    sixth = client.post("/login", {"username": "admin", "password": PASSWORD})
    assert sixth.status_code == 429
    page = sixth.content.decode()
    assert "within 15 minutes" in page
    assert client.get("/worklist").status_code == 302
    assert client.post("/login", {"username": "clinician", "password": PASSWORD}).status_code == 302


def test_a_try_during_the_lock_does_not_lengthen_it(ward: Clinic, client: Client) -> None:
    """The page says within 15 minutes; a stranger at the same address could keep somebody out for good."""
    form = {"username": "admin", "password": PASSWORD}
    for _ in range(5):
        client.post("/login", {**form, "password": "wrong"})
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=14))
    for password in (PASSWORD, "wrong"):
        assert client.post("/login", {**form, "password": password}).status_code == 429
    for one in AccessAttempt.objects.all():
        one.attempt_time -= timedelta(minutes=1, seconds=1)
        one.save()
    assert client.post("/login", form).status_code == 302


def test_a_launch_does_not_forget_wrong_passwords(
    ward: Clinic, registered: SmartServer, server: LaunchingEhr
) -> None:
    """Somebody else at their address would have five more tries with each."""
    by = recording.system("test")
    registering.link(registered, "Practitioner/7", ward.people["clinician"], by=by, now=timezone.now())
    form = {"username": "clinician", "password": PASSWORD}
    stranger = Client()
    for _ in range(4):
        stranger.post("/login", {**form, "password": "wrong"})
    assert launches.launch(Client(), server).status_code == 302
    assert stranger.post("/login", {**form, "password": "wrong"}).status_code == 429
    assert launches.launch(Client(), server).status_code == 302
    assert stranger.post("/login", form).status_code == 429


def _sign_in(password: str, *, peer: str, said: str = "") -> int:
    form = {"username": "admin", "password": password}
    headers = {"X-Forwarded-For": said} if said else None
    return Client().post("/login", form, headers=headers, REMOTE_ADDR=peer).status_code


def test_a_stranger_locks_only_their_own_address_out(ward: Clinic, settings: Settings) -> None:
    """Behind the proxy all come from its address; X-Forwarded-For tells them apart, and only its last hop."""
    settings.TRUSTED_PROXIES = (ip_network("172.16.0.0/12"),)
    proxy, stranger, admin = "172.18.0.1", "198.51.100.7", "203.0.113.9"
    for _ in range(5):
        locked = _sign_in("wrong", peer=proxy, said=stranger)
    assert locked == 429
    for said in (stranger, f"{admin}, {stranger}"):  # pretending to be the admin's machine helps nothing
        assert _sign_in(PASSWORD, peer=proxy, said=said) == 429
    assert _sign_in(PASSWORD, peer=proxy, said=admin) == 302


def test_nobody_locks_another_out_by_writing_their_address(ward: Clinic, settings: Settings) -> None:
    settings.TRUSTED_PROXIES = (ip_network("172.16.0.0/12"),)
    proxy, stranger, admin = "172.18.0.1", "198.51.100.7", "203.0.113.9"
    for _ in range(5):  # around the proxy, and through it
        _sign_in("wrong", peer=stranger, said=admin)
        _sign_in("wrong", peer=proxy, said=f"{admin}, {stranger}")
    assert _sign_in(PASSWORD, peer=proxy, said=admin) == 302
    assert _sign_in(PASSWORD, peer=admin) == 302


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example"])
def test_next_leads_nowhere_else(target: str, ward: Clinic, client: Client) -> None:
    answer = client.post("/login", {"username": "admin", "password": PASSWORD, "next": target})
    assert answer["Location"] == "/"


def test_signing_out_is_a_form_and_is_recorded(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("admin")
    assert client.get("/logout").status_code == 405
    assert client.post("/logout")["Location"] == "/login"
    assert client.get("/models").status_code == 302
    assert AuditEvent.objects.filter(action="session.end").count() == 1


def test_a_session_ends_whatever_happens(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("admin")
    assert client.get("/models").status_code == 200
    session = client.session
    session["began"] = time.time() - 8 * 3600 - 1
    session.save()
    assert client.get("/models").status_code == 302


def test_unknown_addresses_and_faults_have_pages(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("admin")
    missing = client.get("/nothing")
    assert (missing.status_code, "Not found" in missing.content.decode()) == (404, True)
    assert "this needs the role clinician." in client.get("/worklist").content.decode()
    from django.template.loader import render_to_string

    assert "Something went wrong here" in render_to_string("500.html")
