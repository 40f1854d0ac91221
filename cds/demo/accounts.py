"""The demo's people: one clinician, one admin, one approver, with passwords of this data directory's own."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from django.contrib.auth.models import User
from django.db import transaction

from cds.patients import access
from cds.patients.models import Source, Unit


@dataclass(frozen=True, slots=True)
class Login:
    """What is printed for people."""

    role: access.Role
    username: str
    password: str


def settle_accounts(data_dir: Path) -> list[Login]:
    """Make the three accounts, or keep them; passwords lie in demo-logins.json, readable by us alone."""
    path = data_dir / "demo-logins.json"
    kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    logins = [
        Login(role, role.value, kept.get(role.value) or secrets.token_urlsafe(12)) for role in access.Role
    ]
    if {login.username: login.password for login in logins} != kept:
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_text(json.dumps({login.username: login.password for login in logins}, indent=1))
    for login in logins:
        _settle(login)
    return logins


@transaction.atomic
def _settle(login: Login) -> None:
    user, _ = User.objects.get_or_create(
        username=login.username, defaults={"first_name": "Demo", "last_name": login.role.value.capitalize()}
    )
    if not user.check_password(login.password):
        user.set_password(login.password)
        user.save(update_fields=["password"])
    if login.role not in access.roles_of(user):
        access.give_role(user, login.role)


def join_units(source: Source) -> None:
    """Let the demo's clinician see every simulated patient: they are a member of all their units."""
    clinician = get_account(access.Role.CLINICIAN)
    for unit in Unit.objects.filter(patients__source=source).exclude(members=clinician).distinct():
        access.join_unit(clinician, unit.name)


def get_account(role: access.Role) -> User:
    """The demo's person of that role."""
    return User.objects.get(username=role.value)
