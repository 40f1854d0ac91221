"""From candidate to active, and back: one person asks, another decides, everything is audited.

    candidate → active → retired → active (roll-back)

A version whose figures differ too much between groups of patients is refused, at the request and again at the
decision. Rolling back to a version that was in use before is not: it is for emergencies.

No torch here; workers load the new version when they meet it (each score names its version).
"""

from __future__ import annotations

from datetime import datetime

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from cds.audit import recording
from cds.errors import ClinicError, Conflict, Invalid, NotAllowed
from cds.jobs import Job, outbox
from cds.patients import access
from cds.registry import bundles, fairness
from cds.registry.models import ActiveModel, ModelVersion, Promotion, Stage

TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.CANDIDATE: frozenset({Stage.ACTIVE}),
    Stage.ACTIVE: frozenset({Stage.RETIRED}),
    Stage.RETIRED: frozenset({Stage.ACTIVE}),
}


def request(
    version: ModelVersion, *, reason: str, by: recording.Actor, user: User, now: datetime
) -> Promotion:
    """Ask for a version to become active for its outcomes. The reason is kept and shown."""
    access.check_request_promotion(user)
    if not reason.strip():
        raise Invalid("say why this model should be promoted")
    if Stage.ACTIVE not in TRANSITIONS[Stage(version.stage)]:
        raise Conflict(f"{version.label} is {version.stage}")
    try:
        fairness.check_gaps(version)
    except Conflict as refusal:
        with transaction.atomic():
            _record("promotion.request", version, by=by, now=now, outcome="refused", reason=str(refusal))
        raise
    try:
        with transaction.atomic():
            promotion = Promotion.objects.create(
                version=version, reason=reason.strip()[:500], requested_by=user, requested_at=now
            )
            outbox.tell("model", version.pk, now=now)
            _record("promotion.request", version, by=by, now=now, promotion=str(promotion.pk))
    except IntegrityError as fault:
        raise Conflict(f"a promotion of {version.label} is already waiting for a decision") from fault
    return promotion


def approve(promotion: Promotion, *, by: recording.Actor, user: User, now: datetime) -> ModelVersion:
    """The second person's yes: the version answers for its outcomes from now on.

    raises  NotAllowed  for the person who asked, or without the permission; the refusal is audited
            Conflict    already decided, the files are not those that were evaluated, or a gap between groups
                        of patients is over its limit
    """
    version = promotion.version
    try:
        access.check_approve_promotion(user)
        if user.pk == promotion.requested_by_id:
            raise NotAllowed("a promotion is approved by another person than the one who asked for it")
        bundles.check_unchanged(version)
        fairness.check_gaps(version)
    except ClinicError as refusal:
        with transaction.atomic():
            _record(
                "promotion.approve",
                version,
                by=by,
                now=now,
                outcome="refused",
                promotion=str(promotion.pk),
                reason=str(refusal),
            )
        raise
    with transaction.atomic():
        _decide(promotion, approved=True, user=user, now=now)
        _activate(version, version.outcomes, now=now)
        _record("promotion.approve", version, by=by, now=now, promotion=str(promotion.pk))
    version.refresh_from_db()
    return version


def reject(promotion: Promotion, *, by: recording.Actor, user: User, now: datetime) -> Promotion:
    """The second person's no; the person who asked may withdraw the request the same way."""
    if user.pk != promotion.requested_by_id:
        access.check_approve_promotion(user)
    with transaction.atomic():
        _decide(promotion, approved=False, user=user, now=now)
        outbox.tell("model", promotion.version_id, now=now)
        _record("promotion.reject", promotion.version, by=by, now=now, promotion=str(promotion.pk))
    return promotion


def rollback(outcome: str, *, reason: str, by: recording.Actor, user: User, now: datetime) -> ModelVersion:
    """Back to the version before, at once: one approver is enough, since that version was approved before."""
    access.check_approve_promotion(user)
    if not reason.strip():
        raise Invalid("say why the model is rolled back")
    with transaction.atomic():
        held = (
            ActiveModel.objects.select_for_update(of=("self",))
            .filter(pk=outcome)
            .select_related("previous", "version")
            .first()
        )
        if held is None or held.previous is None:
            raise Conflict(f"there is no earlier model for {outcome} to go back to")
        target = held.previous
        bundles.check_unchanged(target)
        Promotion.objects.create(
            version=target,
            kind="rollback",
            reason=reason.strip()[:500],
            requested_by=user,
            requested_at=now,
            decided_by=user,
            decided_at=now,
            approved=True,
        )
        _activate(target, [outcome], now=now)
        _record(
            "promotion.rollback",
            target,
            by=by,
            now=now,
            rolled_back=str(held.version_id),
            for_outcome=outcome,
        )
    target.refresh_from_db()
    return target


def _decide(promotion: Promotion, *, approved: bool, user: User, now: datetime) -> None:
    waiting = Promotion.objects.filter(pk=promotion.pk, approved=None)
    if not waiting.update(approved=approved, decided_by=user, decided_at=now):
        raise Conflict("this promotion has already been decided")
    promotion.refresh_from_db()


def _activate(version: ModelVersion, outcomes: list[str], *, now: datetime) -> None:
    """Inside the caller's transaction: point the outcomes at the version and ask for fresh scores."""
    for outcome in outcomes:
        held = ActiveModel.objects.select_for_update().filter(pk=outcome).first()
        if held is not None and held.version_id == version.pk:
            continue
        ActiveModel.objects.update_or_create(
            outcome=outcome,
            defaults={"version": version, "previous": held.version if held else None, "since": now},
        )
        outbox.enqueue(Job.ASSESS_ALL, now=now, outcome=outcome)
    still_active = ActiveModel.objects.values("version")
    ModelVersion.objects.filter(stage=Stage.ACTIVE).exclude(pk__in=still_active).update(stage=Stage.RETIRED)
    ModelVersion.objects.filter(pk=version.pk).update(stage=Stage.ACTIVE)
    outbox.tell("model", version.pk, now=now)


def _record(
    action: str,
    version: ModelVersion,
    *,
    by: recording.Actor,
    now: datetime,
    outcome: str = "success",
    **detail: str,
) -> None:
    recording.record(
        by=by,
        action=action,
        object_type="ModelVersion",
        object_id=version.pk,
        now=now,
        outcome=outcome,
        version=version.label,
        digest=version.digest,
        **detail,
    )
