"""The record, in rows: what FHIR told us, in canonical units, each fact with the moment it could be known."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q


class CheckState(models.TextChoices):
    """Whether a source answered when it was last asked."""

    ASKED = "asked"
    ANSWERED = "answered"
    SILENT = "silent"


class RunKind(models.TextChoices):
    """What a run takes from."""

    FOLDER = "folder", "FHIR, folder"
    SERVER = "server", "FHIR server"
    BULK = "bulk", "Bulk Data export"
    DICOM = "dicom", "DICOM"


class RunState(models.TextChoices):
    """The life of a run; see `cds.patients.sources.TRANSITIONS`."""

    RUNNING = "running"
    DONE = "done"
    BROKEN_OFF = "broken-off", "broken off"  # its server stopped answering: run again to go on
    FAILED = "failed"


class Source(models.Model):
    """Where data come from: a FHIR server, a folder, an archive, an EHR's hook calls."""

    slug = models.SlugField(max_length=80, unique=True)
    title = models.CharField(max_length=200)
    base_url = models.URLField(max_length=500, blank=True)
    simulated = models.BooleanField(default=False)  # shown wherever its patients are
    created_at = models.DateTimeField()
    exports = models.JSONField(default=dict)  # address and what → how far the last complete run got
    paused_at = models.DateTimeField(null=True)  # since when nothing is taken from it
    check_state = models.CharField(max_length=10, choices=CheckState, blank=True)
    check_said = models.CharField(max_length=2000, blank=True)  # a line per address: its answer, or why none
    checked_at = models.DateTimeField(null=True)

    class Meta:
        permissions = [("manage_sources", "Can see how sources stand, pause them and test their connection")]


class IngestRun(models.Model):
    """One run that takes from a source. Alive as long as `beat_at` moves: a killed one shows as stopped."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="runs")
    kind = models.CharField(max_length=10, choices=RunKind)
    where = models.CharField(max_length=500)  # folder or address
    how = models.JSONField(default=dict)  # how a server is reached (`cds.reaching`): names, never a secret
    state = models.CharField(max_length=12, choices=RunState, default=RunState.RUNNING)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    beat_at = models.DateTimeField()
    stage = models.CharField(max_length=60, blank=True)
    done = models.PositiveBigIntegerField(default=0)  # of `total`, in what `stage` says
    total = models.PositiveBigIntegerField(null=True)
    patients = models.PositiveBigIntegerField(default=0)
    taken = models.PositiveBigIntegerField(default=0)
    set_aside = models.PositiveBigIntegerField(default=0)
    error = models.CharField(max_length=500, blank=True)  # why it did not come to its end

    class Meta:
        indexes = [models.Index(fields=["source", "-started_at"], name="ingest_run_newest")]
        constraints = [
            models.CheckConstraint(
                condition=Q(state="running", ended_at=None) | ~Q(state="running") & Q(ended_at__isnull=False),
                name="ingest_run_ended_when_not_running",
            )
        ]


class Unit(models.Model):
    """A ward or clinic; clinicians see the patients of their units."""

    name = models.CharField(max_length=120, unique=True)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, related_name="units", blank=True)


class Patient(models.Model):
    """FHIR Patient. URLs carry `id`, never an identifier."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="patients")
    resource_id = models.CharField(max_length=128)  # id within the source
    family = models.CharField(max_length=200, blank=True)
    given = models.CharField(max_length=200, blank=True)
    birth_date = models.DateField(null=True)
    sex = models.CharField(max_length=10, default="unknown")
    deceased = models.BooleanField(default=False)
    deceased_at = models.DateTimeField(null=True)
    unit = models.ForeignKey(Unit, null=True, on_delete=models.SET_NULL, related_name="patients")
    revision = models.PositiveBigIntegerField(default=0)  # +1 whenever anything a model may read has changed
    changed_at = models.DateTimeField()  # when `revision` last rose
    digest = models.CharField(max_length=64, blank=True)  # of the Patient resource as last read
    replaced_by = models.CharField(max_length=128, blank=True)  # as its resource says: who survives it
    replaces = models.JSONField(default=list)  # as its resource says: ids of those it survives
    merged_into = models.ForeignKey(  # the record was moved there (`merging`)
        "self", null=True, on_delete=models.SET_NULL, related_name="merged"
    )

    def touch(self, now: datetime) -> None:
        """Something a model may read has changed: raise the revision. Inside the caller's transaction."""
        Patient.objects.filter(pk=self.pk).update(revision=F("revision") + 1, changed_at=now)
        self.refresh_from_db(fields=["revision", "changed_at"])

    class Meta:
        permissions = [
            ("view_all", "Can see the patients of every unit"),
            ("run_score", "Can ask for a fresh score"),
            ("respond", "Can acknowledge, override or snooze a score"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["source", "resource_id"], name="patient_once_per_source"),
            models.CheckConstraint(
                condition=Q(sex__in=["female", "male", "other", "unknown"]), name="patient_sex_is_a_fhir_code"
            ),
        ]
        indexes = [
            models.Index(
                fields=["source", "replaced_by"], condition=~Q(replaced_by=""), name="patient_replaced"
            )
        ]


class MovedResource(models.Model):
    """A resource (or a Study, by its UID) that was this patient's before they were merged into another."""

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="moved")
    resource_type = models.CharField(max_length=40)
    resource_id = models.CharField(max_length=128)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["patient", "resource_type", "resource_id"], name="moved_once")
        ]


class PatientGrant(models.Model):
    """Somebody may see one patient in one session, whatever their units: an EHR launched us with them.

    It goes with its session: signed out, replaced by another launch, or swept away once it has run out.
    """

    session = models.OneToOneField("sessions.Session", on_delete=models.CASCADE, related_name="+")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="grants")
    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="grants")
    until = models.DateTimeField()  # and no longer than that, however busy the session is


class PatientIdentifier(models.Model):
    """A business identifier; DICOM studies find their patient by it."""

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="identifiers")
    system = models.CharField(max_length=300, blank=True)
    value = models.CharField(max_length=128)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["patient", "system", "value"], name="identifier_once_per_patient")
        ]
        indexes = [models.Index(fields=["value"])]


class ImportedRecord(models.Model):
    """A record that was read and left the patient at `revision`: the same again changes nothing.

    So an unchanged hook prefetch or a repeated import costs one look-up. The digest is of everything in the
    record, or of a piece of a folder as it lay there; of a piece, `said` holds how many patients and
    resources it was about, for the count of a run that passes over it.
    """

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="imported_records")
    digest = models.CharField(max_length=64)
    revision = models.PositiveBigIntegerField()
    said = models.JSONField(default=dict)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["patient", "digest"], name="imported_record_once"),
        ]
        indexes = [models.Index(fields=["digest"], name="imported_record_digest")]


class Fact(models.Model):
    """What all clinical facts share. `available_at` null = undated: kept, shown, never predicted from."""

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="%(class)ss")
    resource_type = models.CharField(max_length=40)
    resource_id = models.CharField(max_length=128)
    part = models.CharField(max_length=80, blank=True)
    available_at = models.DateTimeField(null=True)
    digest = models.CharField(max_length=64)  # of the record as imported: equal digest, nothing to do

    IDENTITY: ClassVar[tuple[str, ...]] = ("patient", "resource_type", "resource_id", "part")

    class Meta:
        abstract = True
        constraints = [
            models.UniqueConstraint(
                fields=["patient", "resource_type", "resource_id", "part"], name="%(class)s_once_per_resource"
            )
        ]
        indexes = [models.Index(fields=["patient", "available_at"], name="%(class)s_known")]


class CodedFact(Fact):
    """A fact about a concept: `system|code`, and what it is called."""

    code_system = models.CharField(max_length=300, blank=True)
    code = models.CharField(max_length=80)
    display = models.CharField(max_length=300, blank=True)
    also = models.JSONField(default=list)  # further codings: ["system|code", …]

    class Meta(Fact.Meta):
        abstract = True


class Encounter(Fact):
    status = models.CharField(max_length=30)
    kind = models.CharField(max_length=20)  # ehr.EncounterKind
    start = models.DateTimeField(null=True)
    end = models.DateTimeField(null=True)
    part_of = models.CharField(max_length=128, blank=True)
    location = models.CharField(max_length=200, blank=True)
    located_at = models.DateTimeField(null=True)  # from when it is known; null: nobody says since when


class Observation(CodedFact):
    category = models.CharField(max_length=40, blank=True)
    status = models.CharField(max_length=30, default="final")
    value = models.FloatField(null=True)
    unit = models.CharField(max_length=40, blank=True)  # canonical UCUM
    value_code = models.CharField(max_length=300, blank=True)  # system|code
    value_text = models.CharField(max_length=500, blank=True)
    absent_reason = models.CharField(max_length=60, blank=True)
    low = models.FloatField(null=True)
    high = models.FloatField(null=True)
    effective_at = models.DateTimeField(null=True)

    class Meta(CodedFact.Meta):
        indexes = [
            models.Index(fields=["patient", "available_at"], name="observation_known"),
            models.Index(fields=["patient", "code", "-effective_at"], name="observation_latest"),
        ]


class Condition(CodedFact):
    clinical_status = models.CharField(max_length=30, blank=True)
    verification_status = models.CharField(max_length=30, blank=True)
    onset_at = models.DateTimeField(null=True)
    abated_at = models.DateTimeField(null=True)
    over_at = models.DateTimeField(null=True)  # over, nobody says since when: known to be so since then


class Medication(CodedFact):
    status = models.CharField(max_length=30, blank=True)
    start = models.DateTimeField(null=True)
    end = models.DateTimeField(null=True)
    over_at = models.DateTimeField(null=True)  # as of a Condition


class Procedure(CodedFact):
    status = models.CharField(max_length=30, blank=True)
    performed_at = models.DateTimeField(null=True)


class Allergy(CodedFact):
    criticality = models.CharField(max_length=30, blank=True)
    # db_default: workers of before these columns may still be inserting while they are updated
    clinical_status = models.CharField(max_length=30, blank=True, db_default="")
    verification_status = models.CharField(max_length=30, blank=True, db_default="")
    over_at = models.DateTimeField(null=True)  # as of a Condition


class Note(Fact):
    kind = models.CharField(max_length=300, blank=True)  # system|code of the document type
    title = models.CharField(max_length=300, blank=True)
    text = models.TextField()
    text_digest = models.CharField(max_length=64)  # key of its embeddings
    author = models.CharField(max_length=200, blank=True)


class FamilyHistory(Fact):
    relationship = models.CharField(max_length=300, blank=True)
    code_system = models.CharField(max_length=300, blank=True)
    code = models.CharField(max_length=80)
    display = models.CharField(max_length=300, blank=True)
    onset_age = models.FloatField(null=True)


class GenomicFinding(Fact):
    kind = models.CharField(max_length=10)  # variant | score
    gene = models.CharField(max_length=40, blank=True)
    variant = models.CharField(max_length=300, blank=True)
    significance = models.CharField(max_length=60, blank=True)
    present = models.BooleanField(null=True)
    value = models.FloatField(null=True)
    code_system = models.CharField(max_length=300, blank=True)
    code = models.CharField(max_length=80, blank=True)


NOT_READ = "DICOM, not read"  # kind of a sound file that holds nothing Tessera reads


class SetAside(models.Model):
    """A resource or file that was not taken, with the reason; kept so that nothing is lost silently."""

    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="set_aside")
    where = models.CharField(max_length=500)
    kind = models.CharField(max_length=60)
    identity = models.CharField(max_length=200, blank=True)
    reason = models.CharField(max_length=500)
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()
    times = models.PositiveIntegerField(default=1)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["source", "where", "kind", "identity", "reason"], name="set_aside_once_per_reason"
            )
        ]
