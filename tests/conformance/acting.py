"""Prepares a service of ours for judgement: `python -m tests.conformance.acting register|score …`."""

from __future__ import annotations

import json
import os
import sys

import django

FHIR = "http://127.0.0.1:9/fhir"  # nobody listens there: its name alone makes cards link by SMART


def main(act: str, *words: str) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")
    django.setup()
    {"register": register, "score": score}[act](*words)


def register(issuer: str, jwks: str, origin: str, rotating: str, peers: str, *launching: str) -> None:
    """An EHR that may call and may launch us, one whose keys are at an address, and a model that is active.

    peers      address of the suite's own FHIR server and key set
    launching  FHIR base addresses of EHRs that launch us
    """
    from django.utils import timezone

    from cds.audit import recording
    from cds.hooks import registering
    from cds.launch import registering as launches
    from cds.patients import importing
    from cds.registry.models import ActiveModel
    from tests.web import clinic

    now = timezone.now()
    source, by = importing.get_source("conformance", now=now), recording.system("tests")
    registering.register(
        "Conformance",
        issuer=issuer,
        jwks=json.loads(jwks),
        source=source,
        origins=[origin],
        fhir_servers=[FHIR, f"{peers}/fhir"],
        by=by,
        now=now,
    )
    registering.register(
        "Conformance, keys at an address",
        issuer=rotating,
        jwks_url=f"{peers}/keys",
        source=source,
        by=by,
        now=now,
    )
    for one in (FHIR, *launching):
        launches.register(
            "Conformance",
            issuer=one,
            client_id="tessera",
            source=source,
            embedders=[origin],
            by=by,
            now=now,
        )
    ActiveModel.objects.create(outcome=clinic.OUTCOME, version=clinic.version(1, now=now), since=now)


def score(resource_id: str) -> None:
    """A score of the patient as the record stands: cards then have drivers, reasons and links."""
    from django.utils import timezone

    from cds.patients.models import Patient
    from cds.registry import queries
    from tests.web import clinic

    patient = Patient.objects.get(resource_id=resource_id)
    clinic.assessment(
        patient, queries.active_versions()[0], now=timezone.now(), risk=0.41, as_of=timezone.now()
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
