"""Who may do what: the whole table, role by role; and every refusal leaves a trace."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from django.contrib.auth.models import AnonymousUser, Group
from django.contrib.auth.models import Permission as DjangoPermission
from django.db import transaction

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import NotAllowed, NotFound
from cds.patients import access
from tests.factories import NOW, make_patient, make_user

pytestmark = pytest.mark.django_db
FUNCTIONS = (
    "view_patients", "run_score", "respond", "view_models",
    "start_runs", "request_promotion", "approve_promotion", "view_audit",
)  # fmt: skip
ALLOWED = {
    "nobody": set(),
    "clinician": {"view_patients", "run_score", "respond"},
    "admin": {"view_models", "start_runs", "request_promotion", "view_audit"},
    "approver": {"view_models", "approve_promotion"},
}


@pytest.mark.parametrize("role", ALLOWED)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_role_may_do_its_own_work_only(role: str, function: str) -> None:
    user = make_user(*(() if role == "nobody" else (role,)))
    can: Callable[..., bool] = getattr(access, f"can_{function}")
    check: Callable[..., None] = getattr(access, f"check_{function}")
    assert can(user) is (function in ALLOWED[role])
    if function in ALLOWED[role]:
        check(user)
    else:
        with pytest.raises(NotAllowed, match=r"this needs the role \w+"):
            check(user)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_strangers_and_people_who_left_may_do_nothing(function: str) -> None:
    gone = make_user("clinician", "admin", "approver")
    gone.is_active = False
    gone.save()
    for user in (AnonymousUser(), gone):
        assert getattr(access, f"can_{function}")(user) is False


def test_a_fresh_installation_has_the_roles() -> None:
    for role in access.Role:
        group = Group.objects.get(name=role.value)
        held = {f"{p.content_type.app_label}.{p.codename}" for p in group.permissions.all()}
        assert held == access.PERMISSIONS[role]
    assert DjangoPermission.objects.filter(codename="view_all").count() <= 1


def test_roles_of_a_person() -> None:
    both = make_user("approver", "clinician")
    assert access.roles_of(both) == {access.Role.CLINICIAN, access.Role.APPROVER}
    assert access.role_of(both) is access.Role.CLINICIAN
    assert access.role_of(make_user()) is None
    assert access.role_of(AnonymousUser()) is None


def test_clinicians_see_the_patients_of_their_units_only() -> None:
    here, there = make_patient(unit="Ward 3"), make_patient(unit="Ward 4")
    assert list(access.visible_patients(make_user("clinician", units=("Ward 3",)))) == [here]
    assert set(access.visible_patients(make_user("clinician", units=("Ward 3", "Ward 4")))) == {here, there}
    assert not access.visible_patients(make_user("clinician")).exists()
    assert not access.visible_patients(make_user("admin", "approver", units=("Ward 3",))).exists()
    assert list(access.visible_patients(make_user("admin", "clinician", units=("Ward 3",)))) == [here]
    assert not access.visible_patients(AnonymousUser()).exists()


def test_view_all_opens_every_unit_but_only_to_those_who_may_see_patients() -> None:
    make_patient(unit="Ward 3")
    permission = DjangoPermission.objects.get(codename="view_all", content_type__app_label="patients")
    clinician, admin = make_user("clinician"), make_user("admin")
    for user in (clinician, admin):
        user.user_permissions.add(permission)
    assert access.visible_patients(clinician).count() == 1
    assert access.visible_patients(admin).count() == 0


def test_a_look_is_audited() -> None:
    patient, user = make_patient(unit="Ward 3"), make_user("clinician", units=("Ward 3",))
    assert access.get_patient(user, str(patient.pk), by=recording.person(user), now=NOW) == patient
    event = AuditEvent.objects.get(action="patient.view")
    assert (event.actor, event.role, event.patient_id, event.outcome) == (
        f"user:{user.pk}", "clinician", patient.pk, "success",
    )  # fmt: skip


@pytest.mark.parametrize("which", ["of another unit", "unknown", "malformed"])
def test_a_refusal_tells_nothing_and_is_audited(which: str) -> None:
    patient, user = make_patient(unit="Ward 4"), make_user("clinician", units=("Ward 3",))
    asked = {"of another unit": patient.pk, "unknown": uuid.uuid4(), "malformed": "1 or 1=1"}[which]
    with pytest.raises(NotFound) as refusal:
        access.get_patient(user, asked, by=recording.person(user), now=NOW)
    assert str(refusal.value) == "no such patient, or not one of your units"
    assert AuditEvent.objects.get(action="patient.view").outcome == "refused"


@pytest.mark.django_db(transaction=True)
def test_a_refusal_survives_and_cannot_be_lost_with_an_outer_transaction() -> None:
    patient, user = make_patient(unit="Ward 4"), make_user("clinician")
    by = recording.person(user)
    with transaction.atomic(), pytest.raises(RuntimeError):
        access.get_patient(user, patient.pk, by=by, now=NOW)
    with pytest.raises(NotFound):
        access.get_patient(user, patient.pk, by=by, now=NOW)
    assert AuditEvent.objects.filter(outcome="refused").count() == 1
