"""Running an errand: the patients it names, or all that have changed, pulled whole and scored anew."""

from __future__ import annotations

from datetime import datetime

from django.db import transaction
from django.db.models import Min
from django.utils import timezone

import ehr
from cds import ingesting
from cds.audit import recording
from cds.errors import ClinicError
from cds.jobs import leases, outbox
from cds.jobs.models import WorkState
from cds.patients import importing
from cds.subscriptions import gaps
from cds.subscriptions.models import Errand, Subscription
from cds.taking import Tally

AT_ONCE = 100  # errands run as one: a burst of notifications about one patient is one pull
BY = recording.system("subscription")


def run(errand_id: str) -> None:
    """Run an errand, and with it what else was named meanwhile. A fault is tried again, then polled for.

    While its source is paused it waits; `gaps.watch` announces it again once the source is resumed.
    """
    paused = Errand.objects.filter(pk=errand_id, subscription__source__paused_at__isnull=False)
    if paused.exists():
        return
    errand = leases.claim(Errand, errand_id)
    if errand is None:
        return
    subscription, begun = errand.subscription, timezone.now()
    waiting = Errand.objects.filter(subscription=subscription, work_state=WorkState.QUEUED, since=None)
    taken = [errand, *waiting.order_by("queued_at")[:AT_ONCE]]
    with leases.heartbeat(errand):
        try:
            said = _fetch(subscription, taken, now=begun).interrupted
        except (ClinicError, ehr.EhrError) as error:
            said = str(error)
    now = timezone.now()
    if said:
        with transaction.atomic():
            Subscription.objects.filter(pk=subscription.pk).update(last_error=said[:500])
            outbox.tell("source", subscription.source_id, now=now)
        leases.give_back(errand, now=now, reason=said[:400])
        return
    with transaction.atomic():
        leases.finish(errand, now=now)
        Errand.objects.filter(pk__in=[one.pk for one in taken[1:]], work_state=WorkState.QUEUED).delete()
        errand.delete()  # what it brought stands in the audit trail
        if subscription.last_error or subscription.gap:
            outbox.tell("source", subscription.source_id, now=now)
        if errand.since is not None:
            _settle_polled(subscription, until=begun)
        else:
            _settle_named(subscription, until=errand.queued_at)


def sign_in(subscription: Subscription) -> str | ehr.SignIn:
    """How we sign in to its server. Raises Invalid, EhrError."""
    return ingesting.sign_in(subscription.base_url, subscription.sign_in)


def _fetch(subscription: Subscription, taken: list[Errand], *, now: datetime) -> Tally:
    where, source, token = subscription.base_url, subscription.source, sign_in(subscription)
    foci = [focus for one in taken for focus in one.foci]
    gone = {(kind, identity) for kind, identity, _, is_gone in foci if is_gone}
    whose = {patient for _, _, patient, is_gone in foci if patient and not is_gone}
    named = {(kind, identity) for kind, identity, patient, is_gone in foci if not patient and not is_gone}
    found, lost = ingesting.find_patients(where, named, source=source, now=now, token=token)
    since = None
    if taken[0].since is not None:
        oldest = gaps.siblings(subscription).aggregate(oldest=Min("good_until"))["oldest"]
        since = min(taken[0].since, oldest) - ingesting.OVERLAP
    tally = ingesting.ingest_patients(
        where,
        sorted(whose | found),
        since=since,
        source=source,
        by=BY,
        now=now,
        token=token,
        how=subscription.sign_in,
    )
    changed, by_type = importing.remove_resources(source, gone | lost, by=BY, now=now)
    tally.changed |= changed
    tally.add(by_type)
    ingesting.request_scores(tally, by=BY, now=now)
    return tally


def _settle_polled(subscription: Subscription, *, until: datetime) -> None:
    """All that had changed by `until` is here, for every subscription to this server."""
    for held in gaps.siblings(subscription).select_for_update().order_by("pk"):
        held.errands.filter(work_state=WorkState.FAILED, queued_at__lte=until).delete()
        held.good_until, held.last_error = max(held.good_until, until), ""
        if held.gap_at is None or held.gap_at <= until:
            held.gap = ""
        held.save(update_fields=["good_until", "last_error", "gap"])


def _settle_named(subscription: Subscription, *, until: datetime) -> None:
    """Of a server that numbers its events: good until then, when none is missing and nothing is left over."""
    held = Subscription.objects.select_for_update().get(pk=subscription.pk)
    held.last_error = ""
    left = held.errands.exclude(work_state=WorkState.DONE).filter(queued_at__lte=until)
    if held.shape == ehr.SubscriptionShape.BACKPORT and not held.gap and not left.exists():
        held.good_until = max(held.good_until, until)
    held.save(update_fields=["good_until", "last_error"])
