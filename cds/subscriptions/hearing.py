"""A server has called: check that it is the one, note what it said, and leave the work to a worker."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from uuid import UUID

from django.db import transaction

import ehr
from cds.errors import NotAllowed
from cds.jobs.models import WorkState
from cds.subscriptions import gaps
from cds.subscriptions.models import Subscription

MAX_FOCI = 500  # of one errand; a notification that names more is taken as "much has changed": polled
_NOBODYS = "0" * 64


def digest_of(secret: str) -> str:
    """SHA-256 hex of a secret, as it is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check_caller(subscription_id: UUID, authorization: str) -> Subscription:
    """The subscription, when the call carries its secret. Raises NotAllowed, the same for an unknown one."""
    found = Subscription.objects.filter(pk=subscription_id).first()
    scheme, _, secret = authorization.partition(" ")
    is_right = hmac.compare_digest(digest_of(secret.strip()), found.secret_digest if found else _NOBODYS)
    if found is None or not is_right or scheme.lower() != "bearer":
        raise NotAllowed("the Authorization header does not carry the secret of this subscription")
    return found


@transaction.atomic
def take(subscription: Subscription, told: ehr.Notification, *, now: datetime) -> None:
    """Note what was said, and whether something before it did not arrive; queue what is to be fetched.

    While the source is paused nothing is fetched: what is named waits in one errand, and what is more than
    that holds is a gap, polled for when the source is resumed.
    """
    held = Subscription.objects.select_for_update().get(pk=subscription.pk)
    reason = gaps.missed(told, held.events_seen)
    held.events_seen = gaps.seen_after(told, held.events_seen)
    held.heard_at = now
    held.status = told.status or ("active" if held.status == "requested" else held.status)
    held.save(update_fields=["events_seen", "heard_at", "status"])
    is_vague = told.kind is ehr.NotificationKind.PING or any(not one.resource_id for one in told.events)
    if told.kind is ehr.NotificationKind.EVENT and not told.events:
        is_vague = True
    if reason:
        gaps.note(held.pk, reason, now=now)
    if reason or is_vague or len(told.events) > MAX_FOCI:
        polling = held.errands.filter(since__isnull=False, work_state=WorkState.QUEUED)
        if not polling.exists():  # one that waits will see this change as well
            gaps.send(held, since=held.good_until, now=now)
        return
    if told.events:
        foci: list[list[object]] = [
            [one.resource_type, one.resource_id, one.patient, one.deleted] for one in told.events
        ]
        if held.source.paused_at is None:
            gaps.send(held, foci=foci, now=now)
        else:
            _put_by(held, foci, now=now)
    elif (
        held.shape == ehr.SubscriptionShape.BACKPORT
        and not held.gap
        and not held.errands.filter(work_state__in=gaps.OPEN)
    ):
        Subscription.objects.filter(pk=held.pk).update(good_until=now)  # nothing missed, nothing left to do


def _put_by(held: Subscription, foci: list[list[object]], *, now: datetime) -> None:
    """Remember what was named while the source is paused, in the caller's transaction."""
    queued = held.errands.select_for_update().filter(since=None, work_state=WorkState.QUEUED)
    waiting = queued.order_by("queued_at").first()
    if waiting is None:
        gaps.send(held, foci=foci, now=now)
        return
    new = [one for one in foci if one not in waiting.foci]
    if len(waiting.foci) + len(new) > MAX_FOCI:
        gaps.note(held.pk, "more changed while the source was paused than is kept by name", now=now)
        return
    waiting.foci = [*waiting.foci, *new]
    waiting.save(update_fields=["foci"])
