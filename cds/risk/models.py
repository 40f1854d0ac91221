"""Risks: what was asked, what was computed, from what, by which version; and what people answered."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.conf import settings
from django.db import models
from django.db.models import Q

from cds.jobs import Job, outbox
from cds.jobs.models import LeasedWork
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.studies.models import Series


class AssessmentStatus(models.TextChoices):
    """FHIR RiskAssessment.status, as far as we use it."""

    REGISTERED = "registered"  # asked for, not computed yet
    PRELIMINARY = "preliminary"  # computed; an expected modality was still missing
    FINAL = "final"
    CANCELLED = "cancelled"  # failed or abstained; the reason is beside it


class RiskAssessment(LeasedWork):
    """One patient, one model version, one state of the record. `key` makes asking twice harmless."""

    JOB = Job.SCORE
    ID_KEYWORD = "assessment_id"

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="assessments")
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="assessments")
    key = models.CharField(max_length=64, unique=True)  # sha256(patient, version, revision, as_of window)
    status = models.CharField(max_length=12, choices=AssessmentStatus, default=AssessmentStatus.REGISTERED)
    as_of = models.DateTimeField()  # nothing later was used
    retrospective = models.BooleanField(default=False)  # as_of lies in a finished stay
    revision = models.PositiveBigIntegerField()  # Patient.revision it was asked for
    inputs_digest = models.CharField(max_length=64, blank=True)
    data_until = models.DateTimeField(null=True)  # newest fact used
    present = models.JSONField(default=list)
    missing = models.JSONField(default=list)
    pending = models.JSONField(default=list)
    missing_fields = models.JSONField(default=list)
    basis = models.JSONField(default=list)  # [{"type", "id"}] of every resource used
    abstained = models.CharField(max_length=300, blank=True)  # why no number is given
    left_out = models.JSONField(default=dict)  # pixels digest -> why that picture was not used, in words
    frame_weights = models.JSONField(default=dict)  # pixels digest -> {"indices": [...], "weights": [...]}
    milliseconds = models.JSONField(default=dict)  # per stage: build_inputs, model, store
    requested_by = models.CharField(max_length=150, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=~Q(status__in=["final", "preliminary"]) | ~Q(inputs_digest=""),
                name="assessment_final_keeps_its_inputs_digest",
            ),
        ]
        indexes = [
            models.Index(fields=["patient", "version", "-as_of"], name="assessment_newest"),
            models.Index(fields=["work_state", "lease_until"], name="assessment_sweep"),
            models.Index(fields=["version", "-finished_at"], name="assessment_ended"),
        ]

    def on_failed(self, *, now: datetime) -> None:
        """The sweeper gave up: no number will come, and the screens are told so."""
        RiskAssessment.objects.filter(pk=self.pk).update(status=AssessmentStatus.CANCELLED)
        outbox.tell("assessment", self.pk, now=now, patient_id=self.patient_id)


class RiskPrediction(models.Model):
    """RiskAssessment.prediction: one outcome. `explanation` is fusion's OutcomePrediction, never edited."""

    assessment = models.ForeignKey(RiskAssessment, on_delete=models.CASCADE, related_name="predictions")
    outcome = models.CharField(max_length=80)
    label = models.CharField(max_length=200)
    horizon_hours = models.FloatField()
    risk = models.FloatField()
    low = models.FloatField()
    high = models.FloatField()
    level = models.FloatField()
    base_rate = models.FloatField()
    category = models.CharField(
        max_length=10
    )  # low | moderate | high | very-high, by thresholds at that time
    explanation = models.JSONField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["assessment", "outcome"], name="prediction_once_per_outcome"),
            models.CheckConstraint(
                condition=Q(risk__gte=0, risk__lte=1, low__gte=0, high__lte=1),
                name="prediction_is_a_probability",
            ),
        ]


class PolicyInUse(models.Model):
    """The bounds of categories and the policy texts the site went by from a moment on; until the next row."""

    since = models.DateTimeField()
    digest = models.CharField(max_length=64)  # SHA-256 of the content
    content = models.JSONField()  # outcome → as RISK_POLICIES has it


class HeatMap(models.Model):
    """Where in one Series the model looked, with what the map was asked to show that it is no artefact."""

    prediction = models.ForeignKey(RiskPrediction, on_delete=models.CASCADE, related_name="heat_maps")
    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="+")
    frame = models.PositiveIntegerField(default=0)
    method = models.CharField(max_length=40)
    path = models.CharField(max_length=300)  # .npy float16 [h, w] in [0, 1], relative to STUDY_STORE
    sanity = models.JSONField(default=dict)  # fusion.ImageExplanation.sanity: the checks, `passed`, `why`
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["prediction", "series", "frame"], name="heat_map_once"),
        ]


class ShiftReport(models.Model):
    """How the inputs of a version's latest scores compare with those it was trained on. Counts, no values."""

    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="shift_reports")
    at = models.DateTimeField()
    scores = models.PositiveIntegerField()  # patients it looked at, one score each
    inputs = models.JSONField(default=list)  # fusion.InputShift of every input, as JSON
    pictures = models.JSONField(null=True)  # fusion.PictureShift as JSON; null without enough pictures

    class Meta:
        indexes = [models.Index(fields=["version", "-at"], name="shift_newest")]


class Response(models.Model):
    """What a person did with a score: acknowledged, overridden with a coded reason, or snoozed."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    prediction = models.ForeignKey(RiskPrediction, on_delete=models.CASCADE, related_name="responses")
    kind = models.CharField(max_length=12)  # acknowledged | overridden | snoozed | undone
    reason_code = models.CharField(max_length=80, blank=True)
    comment = models.CharField(max_length=500, blank=True)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")
    via = models.CharField(max_length=10, default="panel")  # panel | hook
    at = models.DateTimeField()
    until = models.DateTimeField(null=True)  # of a snooze

    class Meta:
        indexes = [models.Index(fields=["-at"], name="response_newest")]
