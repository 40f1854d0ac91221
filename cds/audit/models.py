"""Who did or saw what. Append-only; each chain of rows is linked by hashes (see `recording`)."""

from __future__ import annotations

from django.db import models


class AuditChain(models.Model):
    """The head of one chain. A patient's events always go to the same chain, so writers rarely wait."""

    number = models.PositiveSmallIntegerField(primary_key=True)
    length = models.PositiveBigIntegerField(default=0)
    head = models.CharField(max_length=64, default="")


class AuditEvent(models.Model):
    """One act. Rows are never changed or deleted: the database refuses it (triggers, see the migrations)."""

    chain = models.ForeignKey(  # no index of its own: that of (chain, sequence) begins with it
        AuditChain, on_delete=models.PROTECT, related_name="events", db_index=False
    )
    sequence = models.PositiveBigIntegerField()  # 1, 2, 3 … within the chain
    at = models.DateTimeField()
    actor = models.CharField(max_length=150)  # "user:<id>", "client:<id>", "system:<process>"
    role = models.CharField(max_length=40, blank=True)
    action = models.CharField(max_length=60)  # "patient.view", "assessment.finalise" …
    object_type = models.CharField(max_length=60)
    object_id = models.CharField(max_length=64)
    patient_id = models.UUIDField(null=True)
    outcome = models.CharField(max_length=10, default="success")  # success | refused | failed
    source_address = models.CharField(max_length=64, blank=True)
    correlation_id = models.CharField(max_length=64, blank=True)
    detail = models.JSONField(default=dict)  # ids, counts, codes; never names, notes or values
    previous_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["chain", "sequence"], name="audit_one_event_per_place"),
        ]
        indexes = [
            models.Index(fields=["-at"], name="audit_newest"),
            models.Index(fields=["patient_id", "-at"], name="audit_of_patient"),
        ]
