"""Shutting somebody out: their account is closed, and whatever they have open ends at once.

An account stays, closed, because what its person did names it; closed, it is refused at every entrance: a
password, a launch, the hospital's sign-in. It can be opened again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth.models import User
from django.db import transaction

from cds.audit import recording
from cds.errors import Conflict, NotFound
from cds.launch import ending
from cds.launch.models import HospitalIdentity, SmartIdentity
from cds.patients import access


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account, and the ways its person comes in by."""

    user: User
    roles: tuple[str, ...]
    comes_by: tuple[str, ...]


@transaction.atomic
def close(user: User, *, by: recording.Actor, now: datetime) -> int:
    """Let nobody in by this account any more; returns how many sessions were ended by it."""
    _set_active(user, False)
    ended = ending.end_sessions_of(user)
    recording.record(
        by=by, action="account.close", object_type="User", object_id=user.pk, now=now, sessions=ended
    )
    return ended


@transaction.atomic
def reopen(user: User, *, by: recording.Actor, now: datetime) -> None:
    """Let its person in again, as who they were."""
    _set_active(user, True)
    recording.record(by=by, action="account.reopen", object_type="User", object_id=user.pk, now=now)


def find_account(name: str = "", *, fhir_user: str = "", issuer: str = "", subject: str = "") -> User:
    """The account of that name, of a person of an EHR (of that issuer), or of one of the hospital's sign-in.

    raises  NotFound; Conflict for a person of several EHRs where none is named
    """
    if name:
        found = list(User.objects.filter(username=name))
    elif subject:
        found = [one.user for one in HospitalIdentity.objects.select_related("user").filter(subject=subject)]
    else:
        people = SmartIdentity.objects.select_related("user").filter(fhir_user=fhir_user)
        if issuer:
            people = people.filter(server__issuer=issuer.rstrip("/"))
        found = list({one.user_id: one.user for one in people}.values())
    if not found:
        raise NotFound(
            "there is no such account: `manage.py close_account --list` shows those that there are"
        )
    if len(found) > 1:
        raise Conflict("people of several EHRs or providers are called so: say which, by the account's name")
    return found[0]


def list_accounts() -> Iterator[AccountView]:
    """Every account, by name; the closed ones too."""
    for user in User.objects.order_by("username"):
        ways = ["password"] if user.has_usable_password() else []
        people = SmartIdentity.objects.select_related("server").filter(user=user).order_by("fhir_user")
        ways += [f"{one.fhir_user} of {one.server.address}" for one in people]
        hospital = HospitalIdentity.objects.filter(user=user).first()
        ways += [f"hospital account {hospital.subject}"] if hospital is not None else []
        yield AccountView(user, tuple(sorted(role.value for role in access.roles_of(user))), tuple(ways))


def _set_active(user: User, is_active: bool) -> None:
    user.is_active = is_active
    user.save(update_fields=["is_active"])
