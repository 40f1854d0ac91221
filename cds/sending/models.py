"""What goes back to a hospital: where to, what, and how far it has got."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.db import models

from cds.jobs import Job, outbox
from cds.jobs.models import LeasedWork
from cds.patients.models import CheckState, Patient, Source


class DestinationKind(models.TextChoices):
    """How a destination is spoken to."""

    FHIR = "fhir"  # FHIR R4 REST
    DICOMWEB = "dicomweb"  # STOW-RS
    DIMSE = "dimse"  # C-STORE


class Destination(models.Model):
    """An address somebody registered, to which the results about the patients of one source are sent."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="destinations")
    slug = models.SlugField(max_length=80, unique=True)
    kind = models.CharField(max_length=10, choices=DestinationKind)
    address = models.CharField(max_length=500)  # base URL, or dimse://TITLE@host:port
    client_id = models.CharField(max_length=200, blank=True)  # Backend Services; else `secret_env`
    token_url = models.CharField(max_length=500, blank=True)
    scope = models.CharField(max_length=300, blank=True)
    secret_env = models.CharField(max_length=80, blank=True)  # variable with a token, or user:password
    title = models.CharField(max_length=16, blank=True)  # our AE title
    tls_ca = models.CharField(max_length=500, blank=True)  # files of DICOM over TLS; else the site's settings
    tls_cert = models.CharField(max_length=500, blank=True)
    tls_key = models.CharField(max_length=500, blank=True)
    allow_http = models.BooleanField(default=False)  # plain http outside loopback, on a trusted network
    document_kinds = models.JSONField(default=list)  # of DocumentKind
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField()
    since = models.DateTimeField()  # what was made before is not sent
    looked_until = models.DateTimeField()  # results made until then have their documents
    failures = models.PositiveIntegerField(default=0)  # attempts in a row that did not get through
    not_before = models.DateTimeField(null=True)  # it is busy or away: nobody tries earlier
    last_error = models.CharField(max_length=500, blank=True)
    last_error_at = models.DateTimeField(null=True)
    last_accepted_at = models.DateTimeField(null=True)
    check_state = models.CharField(max_length=10, choices=CheckState, blank=True)
    check_said = models.CharField(max_length=2000, blank=True)  # a line per problem, or that there is none
    checked_at = models.DateTimeField(null=True)


class DocumentKind(models.TextChoices):
    """What is sent."""

    DEVICE = "device"  # the model version
    RISK_ASSESSMENT = "risk-assessment"
    DIAGNOSTIC_REPORT = "diagnostic-report"
    PROVENANCE = "provenance"
    MEASUREMENTS = "measurements"  # SR
    OUTLINES = "outlines"  # SEG
    HEAT_MAP = "heat-map"  # Secondary Capture


class Document(LeasedWork):
    """One thing for one destination. Its states are those of leased work (`cds.jobs.leases.TRANSITIONS`):

    queued     waiting: for its turn, for the destination to be there again, or for what it `needs`
    running    being sent
    done       accepted; `remote` says as what
    failed     refused for good, with the reason in words; `retry` queues it again
    cancelled  not needed any more: a newer one took its place, or the destination was withdrawn
    """

    JOB = Job.SEND
    ID_KEYWORD = "document_id"
    MAX_STARTS = 5  # deaths in a row while at work on it; attempts that fail are not counted here

    destination = models.ForeignKey(Destination, on_delete=models.PROTECT, related_name="documents")
    kind = models.CharField(max_length=20, choices=DocumentKind)
    subject = models.CharField(max_length=64)  # id of the ModelVersion, RiskPrediction, Outline or HeatMap
    identity = models.UUIDField()  # by which the destination knows it; an amended one keeps it
    patient = models.ForeignKey(Patient, null=True, on_delete=models.CASCADE, related_name="documents")
    needs = models.ForeignKey("self", null=True, on_delete=models.PROTECT, related_name="needed_by")
    order = models.DateTimeField()  # of those with one identity, the latest counts
    digest = models.CharField(max_length=64, blank=True)  # of what it says: the same need not be said again
    tries = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField(null=True)  # when a deferred one is tried again
    remote = models.CharField(max_length=200, blank=True)  # "RiskAssessment/12", or the SOP Instance UID

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["destination", "kind", "subject"], name="document_once_a_destination"
            ),
        ]
        indexes = [
            models.Index(fields=["work_state", "lease_until"], name="document_sweep"),
            models.Index(fields=["destination", "identity"], name="document_identity"),
            models.Index(
                fields=["due_at"], condition=models.Q(due_at__isnull=False), name="document_deferred"
            ),
        ]

    def on_failed(self, *, now: datetime) -> None:
        """The sweeper gave up: the list of refused ones shows it."""
        outbox.tell("document", self.pk, now=now, patient_id=self.patient_id)
