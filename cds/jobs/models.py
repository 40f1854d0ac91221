"""The outbox, the live events of the screens, and the abstract row of leased work."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import ClassVar

from django.db import models

from cds.jobs import Job


class OutboxMessage(models.Model):
    """A job to be sent, written in the same transaction as the work it announces."""

    job = models.CharField(max_length=80)
    kwargs = models.JSONField()  # ids only, and the correlation id
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)
    tries = models.PositiveSmallIntegerField(default=0)

    class Meta:
        indexes = [
            models.Index(fields=["created_at"], condition=models.Q(sent_at=None), name="outbox_unsent"),
        ]


class LiveEvent(models.Model):
    """Something a screen may want to redraw; ids only. Its key is the stream's Last-Event-ID."""

    kind = models.CharField(max_length=40)  # assessment | run | model | study
    subject = models.CharField(max_length=64)  # id of the row that changed
    patient_id = models.UUIDField(null=True)
    at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["at"])]


class WorkState(models.TextChoices):
    """The life of a piece of work; see `cds.jobs.leases.TRANSITIONS`."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class LeasedWork(models.Model):
    """Work that one worker at a time may hold. Subclasses name their JOB and the keyword of their id."""

    JOB: ClassVar[Job]
    ID_KEYWORD: ClassVar[str]
    MAX_STARTS: ClassVar[int] = 3

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    work_state = models.CharField(max_length=10, choices=WorkState, default=WorkState.QUEUED)
    starts = models.PositiveSmallIntegerField(default=0)  # poison counter: failed after MAX_STARTS
    lease_owner = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True)
    failure = models.CharField(max_length=500, blank=True)  # why, in words without patient data
    queued_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    correlation_id = models.CharField(max_length=64, blank=True)

    class Meta:
        abstract = True

    def on_failed(self, *, now: datetime) -> None:
        """Called in the transaction that ends the work as failed by the sweeper: tell whoever waits."""
