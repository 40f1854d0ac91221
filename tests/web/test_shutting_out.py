"""Who is shut out is out at once, and stays out, whichever way they came in: launch, password, hospital."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.launch import closing, registering
from cds.launch.models import HospitalIdentity, SmartIdentity, SmartServer
from cds.patients import access
from cds.patients.models import PatientGrant
from tests.launching_ehr import LaunchingEhr
from tests.web import clinic, launches

BY = recording.system("test")
pytestmark = pytest.mark.django_db


def command(name: str, *words: str, **more: Any) -> str:
    out = StringIO()
    call_command(name, *words, stdout=out, **more)
    return out.getvalue()


def test_somebody_who_was_launched_is_out_at_once_and_launches_no_more(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    client, other = Client(), Client()
    there = launches.launch(client, server)["Location"]
    stranger = clinic.person("stranger", unit="Ward 4")
    other.force_login(stranger, backend="django.contrib.auth.backends.ModelBackend")
    said = command("close_account", "--fhir-user", "Practitioner/7", "--issuer", f"{server.fhir}/")
    assert "sessions ended: 1" in said
    answer = client.get(there)
    assert answer.status_code == 302
    assert answer["Location"].startswith("/login")
    assert not PatientGrant.objects.exists()
    assert Session.objects.count() == 1  # the other's
    refused = launches.launch(client, server)
    assert refused.status_code == 403
    assert "has been closed" in refused.content.decode()
    user = SmartIdentity.objects.get().user
    event = AuditEvent.objects.get(action="account.close")
    assert (event.object_id, event.detail["sessions"]) == (str(user.pk), 1)
    assert f"open again: {user.username}" in command("close_account", user.username, "--reopen")
    assert launches.launch(client, server).status_code == 302
    assert AuditEvent.objects.get(action="account.reopen").object_id == str(user.pk)


def test_a_closed_account_opens_by_no_password(ward: clinic.Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("clinician")
    assert client.get("/worklist").status_code == 200
    user = ward.people["clinician"]
    user.set_password("a long password of hers")
    user.save(update_fields=["password"])
    command("close_account", user.username)
    assert client.get("/worklist").status_code == 302
    form = {"username": user.username, "password": "a long password of hers"}
    fresh = Client()
    fresh.post("/login", form)
    assert fresh.get("/worklist").status_code == 302
    command("close_account", user.username, "--reopen")
    fresh.post("/login", form)
    assert fresh.get("/worklist").status_code == 200


def test_somebody_of_the_hospital_is_found_by_what_it_calls_them() -> None:
    for issuer, name in (("https://a.example", "one"), ("https://b.example", "two")):
        user = User.objects.create_user(f"hospital-{name}")
        HospitalIdentity.objects.create(issuer=issuer, subject=name, user=user, first_at=timezone.now())
    command("close_account", "--hospital", "two")
    assert list(User.objects.filter(is_active=False).values_list("username", flat=True)) == ["hospital-two"]
    HospitalIdentity.objects.update(subject="same")
    with pytest.raises(CommandError, match="say which, by the account's name"):
        command("close_account", "--hospital", "same")


@pytest.mark.parametrize("words", [["nobody"], ["--fhir-user", "Practitioner/0"], ["--hospital", "x"]])
def test_who_is_not_there_is_said_with_where_to_look(words: list[str]) -> None:
    with pytest.raises(CommandError, match="close_account --list"):
        command("close_account", *words)


def test_who_has_come_is_listed_with_their_accounts(registered: SmartServer, server: LaunchingEhr) -> None:
    launches.launch(Client(), server)
    user = SmartIdentity.objects.get().user
    clinic.person("ada", access.Role.CLINICIAN, unit="Ward 4")
    assert user.username not in command("smart_server", "list")
    people = command("smart_server", "list", "--people")
    assert f"Practitioner/7 (Dr Autumn)  account {user.username}  since" in people
    closing.close(user, by=BY, now=timezone.now())
    assert command("smart_server", "list", "--people").rstrip().endswith("closed")
    lines = command("close_account", "--list").splitlines()
    assert [line.split()[0] for line in lines] == ["ada", user.username]
    assert f"by Practitioner/7 of {server.fhir}  closed" in lines[1]


@pytest.mark.parametrize("is_from_before", [False, True])
def test_withdrawing_an_ehr_ends_what_it_launched_and_nothing_else(
    registered: SmartServer, server: LaunchingEhr, is_from_before: bool
) -> None:
    person = clinic.person("ada", access.Role.CLINICIAN, unit="Ward 4")
    registering.link(registered, "Practitioner/7", person, by=BY, now=timezone.now())
    launched, here = Client(), Client()
    here.force_login(person, backend="django.contrib.auth.backends.ModelBackend")
    there = launches.launch(launched, server)["Location"]
    assert launched.get(there).status_code == 200
    if is_from_before:  # a session of before it was kept which EHR launched it
        session = launched.session
        session["launch"] = {name: value for name, value in session["launch"].items() if name != "server"}
        session.save()
    unrelated = registering.register(
        "Other", issuer="https://other.example/fhir", client_id="x", source="other", by=BY, now=timezone.now()
    )[0]
    registering.withdraw(unrelated.issuer, by=BY, now=timezone.now())
    assert launched.get(there).status_code == 200
    command("smart_server", "withdraw", "--issuer", server.fhir)
    assert launched.get(there).status_code == 302
    assert here.get("/worklist").status_code == 200
    assert not PatientGrant.objects.exists()
    event = AuditEvent.objects.filter(action="smart_server.withdraw").order_by("-pk")[0]
    assert event.detail["sessions"] == 1
