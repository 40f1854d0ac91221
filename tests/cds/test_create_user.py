"""`manage.py create_user`: people with roles and units; the password never on the command line."""

from __future__ import annotations

import io

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import CommandError

from cds.audit.models import AuditEvent
from cds.patients import access
from tests.factories import make_patient

pytestmark = pytest.mark.django_db


def _create(monkeypatch: pytest.MonkeyPatch, *args: str, password: str = "a long enough passphrase") -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
    call_command("create_user", *args)


def test_a_clinician_of_a_ward(monkeypatch: pytest.MonkeyPatch) -> None:
    here, _ = make_patient(unit="Ward 3"), make_patient(unit="Ward 4")
    _create(monkeypatch, "ada", "--role", "clinician", "--unit", "Ward 3")
    user = User.objects.get(username="ada")
    assert user.check_password("a long enough passphrase")
    assert access.roles_of(user) == {access.Role.CLINICIAN}
    assert list(access.visible_patients(user)) == [here]
    assert not user.is_superuser
    assert not user.is_staff
    event = AuditEvent.objects.get(action="user.create")
    assert (event.object_id, event.detail["roles"]) == (str(user.pk), ["clinician"])


def test_all_units(monkeypatch: pytest.MonkeyPatch) -> None:
    make_patient(unit="Ward 3")
    _create(monkeypatch, "ada", "--role", "clinician", "--role", "approver", "--all-units")
    user = User.objects.get(username="ada")
    assert access.visible_patients(user).count() == 1
    assert access.can_approve_promotion(user)


@pytest.mark.parametrize(
    ("name", "password", "why"),
    [
        ("ada", "short", "too short"),
        ("ada", "password1234", "too common"),
        ("ada lovelace", "a long enough passphrase", "valid username"),
        ("taken", "a long enough passphrase", "already a user"),
        (" ", "a long enough passphrase", "a name is needed"),
    ],
)
def test_refusals_leave_nobody_behind(
    monkeypatch: pytest.MonkeyPatch, name: str, password: str, why: str
) -> None:
    User.objects.create_user("taken")
    with pytest.raises(CommandError, match=why):
        _create(monkeypatch, name, "--role", "clinician", password=password)
    assert User.objects.count() == 1
