"""Studies, Series and Instances; pixels lie under STUDY_STORE, rows here. And what encoders made of them."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.db import models

from cds.jobs import Job
from cds.jobs.models import LeasedWork, LiveEvent
from cds.patients import importing
from cds.patients.models import Patient, Source


class StudyState(models.TextChoices):
    """announced → stored → encoded, or failed with a reason. See `receiving.TRANSITIONS`."""

    ANNOUNCED = "announced"  # we know it exists, or hold files of it that are not decoded yet
    STORED = "stored"  # its pixels are durable here
    ENCODED = "encoded"  # every readable Series has embeddings
    FAILED = "failed"


class Study(models.Model):
    """A DICOM Study. `patient` is null while no patient with its PatientID is known."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="studies")
    patient = models.ForeignKey(Patient, null=True, on_delete=models.CASCADE, related_name="studies")
    study_uid = models.CharField(max_length=64, unique=True)
    dicom_patient_id = models.CharField(max_length=128, blank=True)
    issuer_of_patient_id = models.CharField(max_length=128, blank=True)
    description = models.CharField(max_length=200, blank=True)
    started_at = models.DateTimeField(null=True)  # null = undated: never used in a prediction
    received_at = models.DateTimeField()
    state = models.CharField(max_length=10, choices=StudyState, default=StudyState.ANNOUNCED)
    failure = models.CharField(max_length=500, blank=True)
    expected = models.JSONField(
        default=dict
    )  # Series UID, or "" for the Study → instances that were announced

    class Meta:
        indexes = [
            models.Index(fields=["patient", "-started_at"], name="study_newest"),
            models.Index(
                fields=["source", "dicom_patient_id"], condition=models.Q(patient=None), name="study_unlinked"
            ),
        ]

    def missing(self) -> int | None:
        """How many announced instances are not here; None when nobody said how many there are."""
        if not self.expected:
            return None
        counted = self.series.annotate(held=models.Count("instances")).values_list("series_uid", "held")
        held = dict(counted)
        held[""] = sum(held.values())
        return sum(max(0, int(count) - held.get(uid, 0)) for uid, count in self.expected.items())


class Series(models.Model):
    """A DICOM Series, with its Clip (the frames, decoded once) kept beside the original files."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="series")
    series_uid = models.CharField(max_length=64, unique=True)
    imaging_modality = models.CharField(max_length=16)
    body_part = models.CharField(max_length=64, blank=True)
    view = models.CharField(max_length=32, blank=True)
    laterality = models.CharField(max_length=4, blank=True)
    description = models.CharField(max_length=200, blank=True)
    pixels_digest = models.CharField(max_length=64, blank=True)  # of its instance set: key of its embeddings
    clip_path = models.CharField(max_length=300, blank=True)  # .npz, relative to STUDY_STORE
    frames = models.PositiveIntegerField(default=0)
    rows = models.PositiveIntegerField(default=0)
    columns = models.PositiveIntegerField(default=0)
    frame_ms = models.FloatField(null=True)  # mean time between frames
    spacing_row_mm = models.FloatField(null=True)
    spacing_column_mm = models.FloatField(null=True)
    slice_mm = models.FloatField(null=True)  # of evenly spaced CT or MR slices; null: no volume
    remarks = models.JSONField(default=list)  # "burned-in annotation", "overlay ignored" …
    sources = models.JSONField(default=list)  # of each frame: [SOP Instance UID, number in it from 1]
    failure = models.CharField(max_length=500, blank=True)  # why it cannot be decoded

    @property
    def is_cine(self) -> bool:
        """Several frames in time (ultrasound, angiography, cardiac MR), as opposed to a still image."""
        return self.frames > 1


class Instance(models.Model):
    """A DICOM SOP Instance, stored once."""

    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="instances")
    sop_uid = models.CharField(max_length=64, unique=True)
    sop_class_uid = models.CharField(max_length=64)
    transfer_syntax_uid = models.CharField(max_length=64)
    number = models.IntegerField(null=True)
    bytes = models.PositiveBigIntegerField()
    sha256 = models.CharField(max_length=64)  # of the file
    pixel_digest = models.CharField(max_length=64)  # of PixelData as sent: tells "same UID, other pixels"
    path = models.CharField(max_length=300)  # relative to STUDY_STORE


class Encoding(LeasedWork):
    """The work of encoding one Study with the backbones in use."""

    JOB = Job.ENCODE
    ID_KEYWORD = "encoding_id"

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="encodings")
    pixels_digest = models.CharField(max_length=64)  # of the study's instance set
    backbones = models.CharField(max_length=200)  # versions asked for, sorted, joined by a comma

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["study", "pixels_digest", "backbones"], name="encoding_once"),
        ]
        indexes = [models.Index(fields=["work_state", "lease_until"], name="encoding_sweep")]

    def on_failed(self, *, now: datetime) -> None:
        """The study says so too, and whoever scores learns that its pixels will not come."""
        study = Study.objects.select_related("patient").get(pk=self.study_id)
        study.state, study.failure = StudyState.FAILED, f"encoding: {self.failure}"[:500]
        study.save(update_fields=["state", "failure"])
        if study.patient is not None:
            importing.touch(study.patient, now)
        LiveEvent.objects.create(kind="study", subject=str(study.pk), patient_id=study.patient_id, at=now)


class Measurement(models.Model):
    """A size measured in the pixels of one Series by one version of a method. Never changed; see
    `risk.measuring`. value null: not known, and `why` says so."""

    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="measurements")
    pixels_digest = models.CharField(max_length=64)  # of the Series when it was measured
    name = models.CharField(max_length=64)  # of `catalogue.MEASURED`
    value = models.FloatField(null=True)
    unit = models.CharField(max_length=16)  # UCUM
    why = models.CharField(max_length=300, blank=True)
    confidence = models.FloatField(null=True)  # mean probability inside the masks, 0.5 to 1
    method = models.CharField(max_length=200)
    method_version = models.CharField(max_length=16)
    made_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["series", "pixels_digest", "name", "method_version"], name="measured_once_a_method"
            ),
        ]


class Outline(models.Model):
    """What one version of a method drew in one Series: masks from which its sizes were measured."""

    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="outlines")
    pixels_digest = models.CharField(max_length=64)  # of the Series when it was drawn
    structures = models.JSONField()  # names, in the order of the masks
    frames = models.JSONField(default=list)  # of each mask: [SOP Instance UID, number]; [] when not known
    path = models.CharField(max_length=300)  # .npz "masks", bool [T, H, W, S] packed; relative to STUDY_STORE
    method = models.CharField(max_length=200)
    method_version = models.CharField(max_length=16)
    made_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["series", "pixels_digest", "method_version"], name="outlined_once_a_method"
            ),
        ]


class Embedding(models.Model):
    """What one encoder version made of one instance set or note. Computed once, read for every score."""

    subject = models.CharField(max_length=64)  # Series.pixels_digest or Note.text_digest
    encoder = models.CharField(max_length=120)  # backbone version
    rows = models.PositiveIntegerField()  # frames or sentences
    width = models.PositiveIntegerField()
    vector = models.BinaryField()  # float32, C order, [rows, width]
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["subject", "encoder"], name="embedding_once_per_encoder"),
        ]
