"""Have we missed something? Counted where the server counts, timed where it only promised to be heard.

A gap is noted with the reason and filled by polling `_lastUpdated` from the last moment that was good; while
it stays open, it is tried again every minute.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import F, QuerySet

import ehr
from cds.jobs import leases, outbox
from cds.jobs.models import WorkState
from cds.patients.source_queries import WELL
from cds.subscriptions.models import Errand, Subscription

SILENT_AFTER = 2.0  # heartbeats
GRACE = timedelta(seconds=30)
OPEN = (WorkState.QUEUED, WorkState.RUNNING)


def missed(told: ehr.Notification, seen: int) -> str:
    """Why events between `seen` and this notification did not reach us; "" when none are missing."""
    numbers = sorted({event.number for event in told.events if event.number is not None})
    new = [number for number in numbers if number > seen]
    if new and new != list(range(seen + 1, new[-1] + 1)):
        return f"events between {seen} and {new[-1]} did not arrive"
    last = new[-1] if new else seen
    if told.total is None or told.kind in (ehr.NotificationKind.QUERY_EVENT, ehr.NotificationKind.PING):
        return ""
    if told.total > last:
        return f"the server has sent {told.total} events, {last} arrived"
    is_report = told.kind is not ehr.NotificationKind.EVENT
    return f"the server counts anew: {told.total} after {seen}" if is_report and told.total < seen else ""


def seen_after(told: ehr.Notification, seen: int) -> int:
    """Up to which event nothing needs to be waited for, a noted gap included."""
    if told.total is not None and told.kind is not ehr.NotificationKind.EVENT:
        return told.total
    numbers = [event.number for event in told.events if event.number is not None]
    return max([seen, *numbers, told.total or 0])


def note(subscription_id: UUID, reason: str, *, now: datetime) -> None:
    """Remember that changes may have been missed, and why."""
    held = Subscription.objects.filter(pk=subscription_id)
    held.update(gap=reason[:200], gap_at=now, gaps=F("gaps") + 1)
    for source_id in held.values_list("source_id", flat=True):
        outbox.tell("source", source_id, now=now)


def watch(now: datetime) -> int:
    """Every minute: send an errand to each server that needs to be polled; returns how many.

    Those of paused sources are left alone; what they missed is due when they are resumed.
    """
    sent = 0
    listening = Subscription.objects.exclude(server_id="").filter(source__paused_at=None)
    for pk in listening.order_by("pk").values_list("pk", flat=True):
        with transaction.atomic():
            found = Subscription.objects.select_for_update().get(pk=pk)
            _wake(found, now)
            reason = due(found, now)
            if not reason or is_polling(found):
                continue
            if not found.gap and reason != REGULAR:
                note(found.pk, reason, now=now)
            send(found, since=found.good_until, now=now)
            sent += 1
    return sent


def _wake(subscription: Subscription, now: datetime) -> None:
    """Announce the oldest errand that nobody took: its message was used up while the source was paused."""
    left = subscription.errands.filter(
        work_state=WorkState.QUEUED, queued_at__lt=now - leases.FORGOTTEN_AFTER
    )
    oldest = left.order_by("queued_at").first()
    if oldest is not None:
        Errand.objects.filter(pk=oldest.pk).update(queued_at=now)
        leases.queue(oldest, now=now)


def siblings(subscription: Subscription) -> QuerySet[Subscription]:
    """All subscriptions to the same server for the same source: one poll serves them all."""
    return Subscription.objects.filter(source=subscription.source_id, base_url=subscription.base_url)


def is_polling(subscription: Subscription) -> bool:
    """Whether an errand that polls its server is open already."""
    polling = Errand.objects.filter(subscription__in=siblings(subscription), since__isnull=False)
    return polling.filter(work_state__in=OPEN).exists()


REGULAR = "regular check"


def due(subscription: Subscription, now: datetime) -> str:
    """Why the server must be polled now; "" when it need not."""
    if subscription.gap:
        return subscription.gap
    heard = subscription.heard_at or subscription.created_at
    waited = now - subscription.good_until
    if subscription.heartbeat_s:
        patience = timedelta(seconds=SILENT_AFTER * subscription.heartbeat_s) + GRACE
        if now - heard > patience and waited > patience:
            return "nothing was heard for longer than two heartbeats"
    is_numbered = subscription.shape == ehr.SubscriptionShape.BACKPORT and subscription.heartbeat_s
    is_well = subscription.status in WELL
    if (not is_numbered or not is_well) and waited > timedelta(seconds=subscription.check_every_s):
        return REGULAR if is_well else f"the server says that the subscription is {subscription.status}"
    return ""


def send(
    subscription: Subscription,
    *,
    foci: list[list[object]] | None = None,
    since: datetime | None = None,
    now: datetime,
) -> Errand:
    """Queue an errand, in the caller's transaction."""
    errand = Errand.objects.create(subscription=subscription, foci=foci or [], since=since, queued_at=now)
    leases.queue(errand, now=now)
    return errand
