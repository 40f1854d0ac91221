"""EHRs that may launch us (SMART App Launch); people who came from there, or by the hospital's sign-in."""

from __future__ import annotations

import hashlib
import uuid

from django.conf import settings
from django.db import models

from cds.patients.models import Source

CALLBACK = "/launch/callback"


class SmartServer(models.Model):
    """An EHR whose launches we answer: its FHIR address is the launch's `iss` (INTEROP 24)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=120)
    issuer = models.URLField(max_length=300, unique=True)  # FHIR base URL, without a slash at its end
    ends_in_slash = models.BooleanField(default=False)  # it was registered with one
    client_id = models.CharField(max_length=200)  # what the EHR calls us
    has_own_redirect = models.BooleanField(db_default=False, default=False)  # see `redirect_path`
    is_confidential = models.BooleanField(default=False)  # signs in with our key; False: public, PKCE alone
    origins = models.JSONField(default=list)  # further origins of its sign-in endpoints
    embedders = models.JSONField(default=list)  # web origins that may show us in a frame
    source = models.ForeignKey(Source, on_delete=models.PROTECT)  # its patients belong to this source
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField()
    last_launch_at = models.DateTimeField(null=True)

    @property
    def address(self) -> str:
        """Its FHIR base URL as it was registered: it may take its own name (`aud`) to the letter."""
        return f"{self.issuer}/" if self.ends_in_slash else self.issuer

    @property
    def redirect_path(self) -> str:
        """Where its sign-in leads back to, and no other EHR's does once it has one of its own."""
        name = hashlib.sha256(self.issuer.encode()).hexdigest()[:16]
        return f"{CALLBACK}/{name}" if self.has_own_redirect else CALLBACK


class SmartIdentity(models.Model):
    """A person of an EHR, and the account here that they are."""

    server = models.ForeignKey(SmartServer, on_delete=models.CASCADE, related_name="identities")
    fhir_user = models.CharField(max_length=140)  # [Type]/[id] at the server
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    first_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["server", "fhir_user"], name="smart_identity_once"),
        ]


class HospitalIdentity(models.Model):
    """A person by what the hospital's identity provider calls them, and the account here that they are."""

    issuer = models.CharField(max_length=300)
    subject = models.CharField(max_length=255)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="hospital_identity"
    )
    first_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["issuer", "subject"], name="hospital_identity_once"),
        ]
