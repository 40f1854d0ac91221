"""Who may do what, and who may see whom. Every refusal is audited.

Three roles, Django groups of these names. A clinician sees the patients of their units. An admin runs and
proposes models and reads the audit trail, but sees no patient; an approver is the second person who promotes.
A person may have several roles; none follows from another. Besides, an EHR's launch lets somebody see its one
patient in the session it began, until that ends (`grant`).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.contrib.auth.models import AnonymousUser, Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from cds.audit import recording
from cds.errors import NotAllowed, NotFound
from cds.patients import merging
from cds.patients.models import Patient, PatientGrant, Unit

Viewer = User | AnonymousUser


class Role(StrEnum):
    """What a person is here. The value is the name of the Django group."""

    CLINICIAN = "clinician"
    ADMIN = "admin"
    APPROVER = "approver"


PERMISSIONS: dict[Role, frozenset[str]] = {
    Role.CLINICIAN: frozenset({"patients.view_patient", "patients.run_score", "patients.respond"}),
    Role.ADMIN: frozenset(
        {
            "registry.view_modelversion",
            "registry.train",
            "registry.request_promotion",
            "registry.edit_card",
            "audit.view_auditevent",
            "patients.manage_sources",
            "hooks.manage_clients",
            "research.export",
        }
    ),
    Role.APPROVER: frozenset({"registry.view_modelversion", "registry.approve", "research.relink"}),
}


def roles_of(user: Viewer) -> frozenset[Role]:
    """All roles of a person; none for somebody who is not signed in."""
    groups: Any = getattr(user, "groups", None)
    if groups is None or not user.is_active:
        return frozenset()
    names = set(groups.values_list("name", flat=True))
    return frozenset(role for role in Role if role.value in names)


def role_of(user: Viewer) -> Role | None:
    """The role that decides which page a person starts on: clinician before admin before approver."""
    held = roles_of(user)
    return next((role for role in Role if role in held), None)


@transaction.atomic
def give_role(user: User, role: Role) -> None:
    """Add a role to a person; its group and permissions are made when missing."""
    group, _ = Group.objects.get_or_create(name=role.value)
    group.permissions.set([_permission(name) for name in sorted(PERMISSIONS[role])])
    user.groups.add(group)
    for cached in ("_perm_cache", "_user_perm_cache", "_group_perm_cache"):
        user.__dict__.pop(cached, None)


@transaction.atomic
def join_unit(user: User, name: str) -> Unit:
    """Make a person a member of a unit (made when missing): they see its patients."""
    unit, _ = Unit.objects.get_or_create(name=name)
    unit.members.add(user)
    return unit


@transaction.atomic
def set_units(user: User, names: Collection[str]) -> list[str] | None:
    """Make a person a member of exactly these units, of those there are; their names when that changed."""
    held = set(Unit.objects.filter(members=user.pk).values_list("name", flat=True))
    wanted = set(Unit.objects.filter(name__in=list(names)).values_list("name", flat=True))
    if held == wanted:
        return None
    for unit in Unit.objects.filter(name__in=held | wanted):
        (unit.members.add if unit.name in wanted else unit.members.remove)(user)
    return sorted(wanted)


def can_view_patients(user: Viewer) -> bool:
    """Open patients' records (of their units)."""
    return _has(user, "patients.view_patient")


def check_view_patients(user: Viewer) -> None:
    _check(user, "patients.view_patient")


def can_run_score(user: Viewer) -> bool:
    """Ask for a fresh score of a patient."""
    return _has(user, "patients.run_score")


def check_run_score(user: Viewer) -> None:
    _check(user, "patients.run_score")


def can_respond(user: Viewer) -> bool:
    """Acknowledge, override or snooze a score."""
    return _has(user, "patients.respond")


def check_respond(user: Viewer) -> None:
    _check(user, "patients.respond")


def can_view_models(user: Viewer) -> bool:
    """Open the registry of models."""
    return _has(user, "registry.view_modelversion")


def check_view_models(user: Viewer) -> None:
    _check(user, "registry.view_modelversion")


def can_start_runs(user: Viewer) -> bool:
    """Start and cancel retraining runs."""
    return _has(user, "registry.train")


def check_start_runs(user: Viewer) -> None:
    _check(user, "registry.train")


def can_request_promotion(user: Viewer) -> bool:
    """Ask for a candidate to become the active model."""
    return _has(user, "registry.request_promotion")


def check_request_promotion(user: Viewer) -> None:
    _check(user, "registry.request_promotion")


def can_approve_promotion(user: Viewer) -> bool:
    """Approve what somebody else asked for."""
    return _has(user, "registry.approve")


def check_approve_promotion(user: Viewer) -> None:
    _check(user, "registry.approve")


def can_manage_sources(user: Viewer) -> bool:
    """See how sources stand, pause them, test their connection."""
    return _has(user, "patients.manage_sources")


def check_manage_sources(user: Viewer) -> None:
    _check(user, "patients.manage_sources")


def can_manage_clients(user: Viewer) -> bool:
    """See, register and withdraw the EHRs that call us (CDS Hooks) and launch us (SMART)."""
    return _has(user, "hooks.manage_clients")


def check_manage_clients(user: Viewer) -> None:
    _check(user, "hooks.manage_clients")


def can_view_cards(user: Viewer) -> bool:
    """Read a model's card: whoever sees its scores, and whoever keeps the models."""
    return can_view_patients(user) or can_view_models(user)


def check_view_cards(user: Viewer) -> None:
    if not can_view_cards(user):
        needed = _roles_with("patients.view_patient", "registry.view_modelversion")
        raise NotAllowed(f"this needs the role {needed}")


def can_edit_cards(user: Viewer) -> bool:
    """Write a model's card."""
    return _has(user, "registry.edit_card")


def check_edit_cards(user: Viewer) -> None:
    _check(user, "registry.edit_card")


def can_view_audit(user: Viewer) -> bool:
    """Read the audit trail."""
    return _has(user, "audit.view_auditevent")


def check_view_audit(user: Viewer) -> None:
    _check(user, "audit.view_auditevent")


@transaction.atomic
def grant(
    user: User, patient: Patient, *, session_key: str, until: datetime, by: recording.Actor, now: datetime
) -> None:
    """Let somebody see one patient in one session (which exists) until then, whatever their units.

    The grant is kept for the patient who was named, and holds for whoever survives them: merged while it
    lasts, they are found there; parted again, they are found where they were.
    """
    PatientGrant.objects.update_or_create(
        session_id=session_key, defaults={"user": user, "patient": patient, "until": until}
    )
    recording.record(
        by=by,
        action="patient.grant",
        object_type="Patient",
        object_id=patient.pk,
        patient_id=patient.pk,
        now=now,
        user=user.pk,
        until=until,
    )


def look_from(viewer: Viewer, session_key: str | None) -> None:
    """Say in which session somebody looks: what was granted to it is seen there, and nowhere else."""
    viewer.session_key = session_key  # type: ignore[union-attr]


def visible_patients(viewer: Viewer) -> QuerySet[Patient]:
    """The patients this person may see: those of their units and the one granted to the session they look
    from (`look_from`), or all with `patients.view_all`.

    One who was merged into another is seen as that other.
    """
    patients = Patient.objects.filter(merged_into=None)
    if not can_view_patients(viewer):
        return patients.none()
    if _has(viewer, "patients.view_all"):
        return patients
    return patients.filter(Q(unit__in=Unit.objects.filter(members=viewer.pk)) | Q(pk__in=_granted(viewer)))


def _granted(viewer: Viewer) -> list[uuid.UUID]:
    """The patient granted to the session somebody looks from, as who survives them now; [] for none."""
    session_key = getattr(viewer, "session_key", None)
    if session_key is None:
        return []
    rows = PatientGrant.objects.filter(
        session=session_key, session__expire_date__gt=Now(), user=viewer.pk, until__gt=Now()
    )
    return [merging.survivor(one.patient).pk for one in rows.select_related("patient__merged_into")]


def get_patient(
    viewer: Viewer,
    patient_id: object,
    *,
    by: recording.Actor,
    now: datetime,
    action: str = "patient.view",
) -> Patient:
    """The patient, if this person may see them; the look, or the refusal, is audited.

    Call it outside any transaction: the record of a refusal must survive the error that follows it.
    raises  NotFound whether the patient is unknown, malformed or another unit's: a refusal tells nothing
    """
    try:
        key = uuid.UUID(str(patient_id))
    except ValueError:
        key = uuid.UUID(int=0)  # nobody's
    with transaction.atomic(durable=True):
        asked = Patient.objects.filter(pk=key).exclude(merged_into=None).first()
        detail = {"merged": str(key)} if asked is not None else {}
        key = merging.survivor(asked).pk if asked is not None else key
        patient = visible_patients(viewer).select_related("source", "unit").filter(pk=key).first()
        recording.record(
            by=by,
            action=action,
            object_type="Patient",
            object_id=key,
            patient_id=key,
            now=now,
            outcome="success" if patient is not None else "refused",
            **detail,
        )
    if patient is None:
        raise NotFound("no such patient, or not one of your units")
    return patient


def _has(user: Viewer, permission: str) -> bool:
    return bool(user.is_active and user.has_perm(permission))


def _check(user: Viewer, permission: str) -> None:
    if not _has(user, permission):
        raise NotAllowed(f"this needs the role {_roles_with(permission)}")


def _roles_with(*permissions: str) -> str:
    """ "admin or approver": the roles that hold one of these, in the words of the screens."""
    return " or ".join(role.value for role in Role if PERMISSIONS[role] & set(permissions))


def _permission(name: str) -> Permission:
    """The permission by its dotted name; made when Django has not yet (it makes them after migrating)."""
    app_label, codename = name.split(".")
    found = Permission.objects.filter(content_type__app_label=app_label, codename=codename).first()
    if found is not None:
        return found
    models = {
        "audit": "auditevent",
        "registry": "modelversion",
        "research": "researchexport",
        "hooks": "hookclient",
    }
    model = models.get(app_label, "patient")
    kind, _ = ContentType.objects.get_or_create(app_label=app_label, model=model)
    return Permission.objects.create(content_type=kind, codename=codename, name=codename.replace("_", " "))
