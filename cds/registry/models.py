"""Models and how they came to be: cohorts, training runs, versions, promotions, and what is active."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from cds.jobs import Job, outbox
from cds.jobs.models import LeasedWork
from cds.patients.models import Patient


class Cohort(models.Model):
    """Patients at moments with what happened after: frozen, so a run can be repeated."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    outcomes = models.JSONField()  # outcome names, sorted
    sources = models.JSONField(default=list)  # source slugs it was drawn from; [] = all
    cutoff_at = models.DateTimeField()  # nothing after this was looked at
    seed = models.IntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True)  # of its members; "" until frozen
    frozen_at = models.DateTimeField(null=True)
    counts = models.JSONField(
        default=dict
    )  # per outcome and split: members, events; and the excluded, by reason


class CohortMember(models.Model):
    """One patient at one moment. The same patient is always in the same split."""

    cohort = models.ForeignKey(Cohort, on_delete=models.CASCADE, related_name="members")
    patient = models.ForeignKey(Patient, on_delete=models.CASCADE)
    as_of = models.DateTimeField()
    labels = models.JSONField()  # outcome name -> 0 or 1; absent = not known
    follow_up = models.JSONField(default=dict)  # outcome name -> [hours, whether the event ends them]
    split = models.CharField(max_length=10)  # train | tuning | held_out

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["cohort", "patient", "as_of"], name="cohort_member_once"),
            models.CheckConstraint(
                condition=Q(split__in=["train", "tuning", "held_out"]), name="cohort_split_is_known"
            ),
        ]


class TrainingRun(LeasedWork):
    """One retraining, from request to candidate. Only one runs at a time; the next waits in its queue."""

    JOB = Job.TRAIN
    ID_KEYWORD = "run_id"

    cohort = models.ForeignKey(Cohort, on_delete=models.PROTECT, related_name="runs")
    outcomes = models.JSONField()
    config = models.JSONField()  # overrides of fusion.FusionConfig, by field name
    note = models.CharField(max_length=300, blank=True)
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    step = models.CharField(max_length=80, blank=True)
    fraction = models.FloatField(default=0.0)  # of the whole run, 0 to 1
    history = models.JSONField(default=list)  # [{"step", "epoch", "train_loss", "tuning_loss", "at"}, …]
    cancel_requested = models.BooleanField(default=False)
    simulated = models.BooleanField(default=False)  # trained on simulated patients only

    class Meta:
        indexes = [models.Index(fields=["work_state", "lease_until"], name="run_sweep")]

    def on_failed(self, *, now: datetime) -> None:
        """The sweeper gave up: tell the screens."""
        TrainingRun.objects.filter(pk=self.pk).update(step="failed")
        outbox.tell("run", self.pk, now=now)


class Stage(models.TextChoices):
    """candidate → active → retired; see `promoting.TRANSITIONS`."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    RETIRED = "retired"


class ModelVersion(models.Model):
    """A trained, calibrated model as a folder under BUNDLE_STORE."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=120)  # outcome names joined by "+"
    number = models.PositiveIntegerField()  # 1, 2, 3 … within the name
    run = models.OneToOneField(TrainingRun, null=True, on_delete=models.PROTECT, related_name="version")
    outcomes = models.JSONField()
    stage = models.CharField(max_length=10, choices=Stage, default=Stage.CANDIDATE)
    path = models.CharField(max_length=300)  # relative to BUNDLE_STORE
    digest = models.CharField(max_length=64)  # of the bundle; checked at every load
    encoders = models.JSONField(default=dict)  # modality -> backbone version it needs embeddings of
    metadata = models.JSONField(default=dict)  # the bundle's metadata.json
    report = models.JSONField(default=dict)  # fusion.Report.to_json()
    simulated = models.BooleanField(default=False)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["name", "number"], name="model_version_once"),
        ]
        permissions = [
            ("train", "Can start retraining runs"),
            ("request_promotion", "Can ask for a model to be promoted"),
            ("approve", "Can approve a promotion asked for by somebody else"),
            ("edit_card", "Can write a model's card"),
        ]

    @property
    def label(self) -> str:
        """How people call it: `icu-admission v3`."""
        return f"{self.name} v{self.number}"


class EntryOrigin(models.TextChoices):
    """Whose words a text of a model card is."""

    MACHINE = "machine", "written by retraining"
    PERSON = "person", "written by a person"
    CARRIED = "carried", "carried over, to be confirmed"


class CardEntry(models.Model):
    """One text of a version's model card. Never changed: an edit is the next number."""

    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="card_entries")
    attribute = models.CharField(max_length=60)  # key of `attributes.ATTRIBUTES`
    number = models.PositiveIntegerField()  # 1, 2, 3 … within the attribute
    text = models.TextField(blank=True)  # "": not provided
    origin = models.CharField(max_length=10, choices=EntryOrigin)
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    written_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["version", "attribute", "number"], name="card_entry_once"),
            models.CheckConstraint(
                condition=Q(origin="person", author__isnull=False) | (~Q(origin="person") & Q(author=None)),
                name="card_entry_has_an_author_when_a_person_wrote_it",
            ),
        ]


class Promotion(models.Model):
    """A request to make a version active, and the second person's answer. Roll-backs are kept here too."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="promotions")
    kind = models.CharField(max_length=10, default="promote")  # promote | rollback
    reason = models.CharField(max_length=500)
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    requested_at = models.DateTimeField()
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    decided_at = models.DateTimeField(null=True)
    approved = models.BooleanField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(decided_by=None, decided_at=None, approved=None)
                | Q(decided_by__isnull=False, decided_at__isnull=False, approved__isnull=False),
                name="promotion_decided_by_someone_at_some_time",
            ),
            models.CheckConstraint(
                condition=Q(kind="rollback")
                | Q(decided_by=None)
                | Q(approved=False)
                | ~Q(decided_by=F("requested_by")),
                name="promotion_needs_a_second_person",
            ),
            models.UniqueConstraint(
                fields=["version"], condition=Q(approved=None), name="promotion_one_open_request"
            ),
        ]


class ActiveModel(models.Model):
    """Which version answers for an outcome, and since when."""

    outcome = models.CharField(max_length=80, primary_key=True)
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    previous = models.ForeignKey(ModelVersion, null=True, on_delete=models.PROTECT, related_name="+")
    since = models.DateTimeField()
