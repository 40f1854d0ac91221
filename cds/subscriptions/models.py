"""What we have asked FHIR servers to tell us, how far that got, and what is left to do about it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import ClassVar

from django.db import models
from django.db.models import Q

from cds.jobs import Job
from cds.jobs.models import LeasedWork
from cds.patients.models import Source


class Subscription(models.Model):
    """One Subscription at one server. Its `id` stands in the address the server calls.

    events_seen  of a server that numbers its events: all up to this one have reached us
    good_until   everything that had changed by then is in our rows, or will be by the errands still open
    gap          why changes may have been missed; "" when none. It is filled by polling from `good_until`
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="subscriptions")
    base_url = models.URLField(max_length=500)
    server_id = models.CharField(max_length=128, blank=True)  # of the Subscription there; "" while it is made
    shape = models.CharField(max_length=10)  # ehr.SubscriptionShape
    criteria = models.CharField(max_length=500, blank=True)
    topic = models.CharField(max_length=300, blank=True)
    secret_digest = models.CharField(max_length=64)  # SHA-256 hex; the secret itself is at the server only
    sign_in = models.JSONField(default=dict)  # how the worker signs in: names of things, no secret
    heartbeat_s = models.PositiveIntegerField(null=True)
    check_every_s = models.PositiveIntegerField(default=900)
    status = models.CharField(max_length=20, default="requested")  # as the server last said
    events_seen = models.PositiveBigIntegerField(default=0)
    heard_at = models.DateTimeField(null=True)
    good_until = models.DateTimeField()
    gap = models.CharField(max_length=200, blank=True)
    gap_at = models.DateTimeField(null=True)  # when it was noted
    gaps = models.PositiveIntegerField(default=0)  # how many were found
    last_error = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(shape__in=["r4", "backport"]), name="subscription_shape_known")
        ]


class Errand(LeasedWork):
    """Fetch what a notification named, or everything that has changed `since` a moment.

    foci  [resource type, id, id of its patient or "", whether it was deleted], as the notification named them
    """

    JOB: ClassVar[Job] = Job.RUN_ERRAND
    ID_KEYWORD: ClassVar[str] = "errand_id"

    subscription = models.ForeignKey(Subscription, on_delete=models.CASCADE, related_name="errands")
    foci = models.JSONField(default=list)
    since = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(fields=["subscription", "work_state"], name="errand_open")]

    def on_failed(self, *, now: datetime) -> None:
        """What could not be fetched is found by polling."""
        from cds.subscriptions import gaps

        gaps.note(self.subscription_id, "what was named could not be fetched", now=now)
