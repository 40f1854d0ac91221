"""EHRs that call us, the cards they got, and what their clinicians did with them."""

from __future__ import annotations

import uuid

from django.db import models

from cds.patients.models import Patient, Source
from cds.registry.models import ModelVersion
from cds.risk.models import RiskPrediction


class HookClient(models.Model):
    """An EHR that may call: its JWT issuer and public keys (INTEROP 18-21).

    An issuer may speak for several tenants, each a client with keys and patients of its own.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=120)
    issuer = models.URLField(max_length=300)
    tenant = models.CharField(max_length=120, blank=True)  # "": its tenants, if any, are not told apart
    jwks = models.JSONField(default=dict)  # public keys only: pasted, or as read last
    jwks_url = models.CharField(max_length=500, blank=True)  # where they are read from; "": they were pasted
    keys_since = models.JSONField(default=dict)  # kid → since when it has been here, ISO 8601
    keys_read_at = models.DateTimeField(null=True)  # the last time that jwks_url answered
    keys_tried_at = models.DateTimeField(null=True)  # the last time that it was asked
    keys_problem = models.CharField(max_length=300, blank=True)  # why it did not answer then
    origins = models.JSONField(default=list)  # web origins its browser may call from (CORS)
    fhir_servers = models.JSONField(default=list)  # base addresses we may read from with a call's token
    source = models.ForeignKey(Source, on_delete=models.PROTECT)  # its patients belong to this source
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField()
    last_call_at = models.DateTimeField(null=True)  # to the minute
    # what `spending` knows of its tokens
    first_epoch = models.CharField(max_length=60, blank=True, db_default="")  # of Redis, at the first
    database_from = models.DateTimeField(null=True)  # since then, and until then, every process notes each
    database_until = models.DateTimeField(null=True)  # in the database; over, or null: in Redis alone

    class Meta:
        constraints = [models.UniqueConstraint(fields=["issuer", "tenant"], name="hook_client_once")]
        permissions = [("manage_clients", "Can register and withdraw the EHRs that call and launch us")]


class SpentToken(models.Model):
    """A jti that was used; refused again until it expires. Shared by all processes."""

    client = models.ForeignKey(HookClient, on_delete=models.CASCADE)
    jti = models.CharField(max_length=200)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["client", "jti"], name="jti_used_once")]


class PrefetchRead(models.Model):
    """A prefetch that was read and left the patient at `revision`: the same bytes again need not be parsed.

    One a patient and service, as each service asks for what its own model reads.
    """

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="prefetches_read")
    service = models.CharField(max_length=120)
    version = models.UUIDField()  # of the model whose templates it was compared with
    digest = models.CharField(max_length=64)  # of its bytes as sent
    length = models.PositiveIntegerField()  # in bytes
    missing = models.JSONField(default=list)  # keys asked for that did not come whole
    parts = models.BinaryField(default=bytes)  # `ehr.Parts.packed`: what of the next one need not be read
    revision = models.PositiveBigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["patient", "service"], name="prefetch_read_once_per_service")
        ]


class CardShown(models.Model):
    """A card that left the house; feedback refers to its uuid.

    Every call of a client inserts one. A foreign key of the database would have each of them lock the row of
    the client and of the version (FOR KEY SHARE), which all other calls lock too; so for these two PROTECT,
    which Django keeps, has to do.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    client = models.ForeignKey(HookClient, null=True, on_delete=models.PROTECT, db_constraint=False)
    service = models.CharField(max_length=120)
    hook_instance = models.CharField(max_length=64)
    prediction = models.ForeignKey(RiskPrediction, null=True, on_delete=models.CASCADE, related_name="cards")
    kind = models.CharField(max_length=20)  # risk | not-yet-known | stale | out-of-scope | failed | order
    patient = models.ForeignKey(Patient, null=True, on_delete=models.CASCADE, related_name="+")
    outcome = models.CharField(max_length=80, blank=True)
    user = models.CharField(max_length=90, blank=True)  # [Type]/[id] in the EHR
    indicator = models.CharField(max_length=10, blank=True)
    category = models.CharField(max_length=10, blank=True)  # of the risk it showed
    suggestions = models.JSONField(
        null=True
    )  # uuid → label; null: not noted, of a card before there was this
    version = models.ForeignKey(  # that answered, with a number or without
        ModelVersion,
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,
        db_constraint=False,
    )
    milliseconds = models.FloatField(null=True)  # from the call's arrival until its answer was made
    shown_at = models.DateTimeField()
    was_late = models.BooleanField(default=False, db_default=False)  # the caller got a 503: nobody saw it

    class Meta:
        indexes = [
            models.Index(fields=["version", "-shown_at"], name="card_of_version"),
            models.Index(
                fields=["patient", "user", "-shown_at"],
                condition=models.Q(indicator__in=["warning", "critical"]),
                name="card_alerts",
            ),
        ]


class Feedback(models.Model):
    """What happened to a card (INTEROP 17). Sent twice, kept once."""

    card = models.ForeignKey(CardShown, on_delete=models.CASCADE, related_name="feedback")
    outcome = models.CharField(max_length=12)  # accepted | overridden
    accepted_suggestions = models.JSONField(default=list)
    reason_code = models.CharField(max_length=80, blank=True)
    reason_system = models.CharField(max_length=300, blank=True)
    comment = models.CharField(max_length=500, blank=True)
    outcome_at = models.DateTimeField()
    received_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["card", "outcome", "outcome_at"], name="feedback_once"),
        ]
