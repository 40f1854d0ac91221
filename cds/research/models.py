"""Research copies: what was exported, of whom, and the key that leads back. The key is kept here only."""

from __future__ import annotations

import uuid

from django.db import models

from cds.patients.models import Patient
from cds.registry.models import Cohort


class ResearchExport(models.Model):
    """One de-identified copy. Whoever holds the folder alone cannot tell who is who."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    key = models.BinaryField()  # of its pseudonyms, UIDs, ids and shifts (ehr.Pseudonyms); never exported
    cohort = models.ForeignKey(Cohort, null=True, on_delete=models.PROTECT)
    asked = models.JSONField()  # selection and what is kept, as in the manifest
    started_by = models.CharField(max_length=150)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    counts = models.JSONField(default=dict)  # as in the manifest, once finished

    class Meta:
        default_permissions = ()
        permissions = [
            ("export", "Can export de-identified research copies"),
            ("relink", "Can tell whose pseudonym in a research copy it is"),
        ]


class ResearchSubject(models.Model):
    """A patient in a copy, under the name they have there. Parts go through them by `place`."""

    export = models.ForeignKey(ResearchExport, on_delete=models.CASCADE, related_name="subjects")
    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="research_subjects")
    pseudonym = models.CharField(max_length=20)
    place = models.PositiveIntegerField()

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["export", "patient"], name="research_patient_once"),
            models.UniqueConstraint(fields=["export", "pseudonym"], name="research_pseudonym_once"),
            models.UniqueConstraint(fields=["export", "place"], name="research_place_once"),
        ]


class ResearchPart(models.Model):
    """Some patients of a copy whose files lie durably in the folder: a run that goes on passes over them."""

    export = models.ForeignKey(ResearchExport, on_delete=models.CASCADE, related_name="parts")
    number = models.PositiveIntegerField()
    made_at = models.DateTimeField()
    files = models.JSONField()  # [[path, sha256, bytes, subject], …]
    counts = models.JSONField()

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["export", "number"], name="research_part_once")]
