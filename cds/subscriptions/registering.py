"""Subscribing at a FHIR server, and taking a subscription back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction

import ehr
from cds import ingesting
from cds.audit import recording
from cds.errors import ClinicError, Invalid, NotFound, Unavailable
from cds.patients.models import Source
from cds.subscriptions import errands, hearing
from cds.subscriptions.models import Subscription

HEARTBEATS = range(10, 86_401)  # seconds
PATH = "/fhir/subscriptions"


def subscribe(
    base_url: str,
    *,
    source: Source,
    shape: ehr.SubscriptionShape,
    criteria: str = "",
    topic: str = "",
    payload: str = "",
    heartbeat_s: int | None = None,
    check_every_s: int = 900,
    sign_in: Mapping[str, Any] | None = None,
    by: recording.Actor,
    now: datetime,
) -> Subscription:
    """Create a Subscription at a server; it calls us from then on.

    raises  Invalid (an address we may not call, a topic or criteria that is missing, or the server refused,
            with its words), Unavailable (it did not answer)

    Our row comes first, for the server may call before its answer has reached us.
    """
    ingesting.check_address(base_url)
    _check(shape, criteria, topic, heartbeat_s, check_every_s)
    secret = secrets.token_urlsafe(32)
    with transaction.atomic():
        kept = Subscription.objects.create(
            source=source,
            base_url=base_url.rstrip("/"),
            shape=shape.value,
            criteria=criteria,
            topic=topic,
            secret_digest=hearing.digest_of(secret),
            sign_in=dict(sign_in or {}),
            heartbeat_s=heartbeat_s if shape is ehr.SubscriptionShape.BACKPORT else None,
            check_every_s=check_every_s,
            good_until=now,
            created_at=now,
        )
        _record("subscription.add", kept, by=by, now=now)
    wanted = ehr.build_subscription(
        shape=shape,
        criteria=criteria,
        topic=topic,
        endpoint=f"{settings.PUBLIC_URL}{PATH}/{kept.pk}",
        secret=secret,
        reason="Tessera keeps its copy of the record up to date",
        payload=payload,
        heartbeat_s=heartbeat_s,
    )
    try:
        ehr.check_structure(wanted)
        with ingesting.connect(kept.base_url, token=errands.sign_in(kept)) as client:
            server_id = client.create(wanted)
    except (ClinicError, ehr.EhrError) as error:
        kept.delete()
        if isinstance(error, ehr.Retriable):
            raise Unavailable(f"the server did not take the subscription: {error}; run it again") from error
        raise Invalid(f"the server did not take the subscription: {error}") from error
    Subscription.objects.filter(pk=kept.pk).update(server_id=server_id)
    kept.refresh_from_db()
    return kept


def unsubscribe(subscription_id: UUID, *, by: recording.Actor, now: datetime) -> str:
    """Delete a Subscription at its server and here; what the server said when it did not let go, else "".

    From then on its calls are refused here in any case. raises  NotFound
    """
    held = Subscription.objects.filter(pk=subscription_id).first()
    if held is None:
        raise NotFound("no such subscription; `fhir_subscription list` shows them")
    said = ""
    try:
        if held.server_id:
            with ingesting.connect(held.base_url, token=errands.sign_in(held)) as client:
                client.delete("Subscription", held.server_id)
    except (ClinicError, ehr.EhrError) as error:
        said = str(error)
    with transaction.atomic():
        _record("subscription.remove", held, by=by, now=now)
        held.delete()
    return said


def _check(
    shape: ehr.SubscriptionShape, criteria: str, topic: str, heartbeat_s: int | None, check_every_s: int
) -> None:
    if shape is ehr.SubscriptionShape.R4 and not criteria:
        raise Invalid('an R4 subscription needs --criteria, such as "Observation?category=laboratory"')
    if shape is ehr.SubscriptionShape.BACKPORT and not topic.startswith(("http://", "https://", "urn:")):
        raise Invalid("the backport needs --topic, the canonical URL of a topic that the server has")
    if heartbeat_s is not None and heartbeat_s not in HEARTBEATS:
        raise Invalid("a heartbeat comes every 10 seconds to every day")
    if check_every_s < 60:
        raise Invalid("a server is not checked more often than once a minute")


def _record(action: str, held: Subscription, *, by: recording.Actor, now: datetime) -> None:
    recording.record(
        by=by,
        action=action,
        object_type="Subscription",
        object_id=held.pk,
        now=now,
        source=held.source.slug,
        server=held.base_url,
        shape=held.shape,
        criteria=held.criteria,
        topic=held.topic,
    )
