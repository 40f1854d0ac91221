"""Acts on the clinic of the browser tests, from a process of its own: `python -m tests.browser.acting build`.

A browser test must see what other processes did: a worker that reports progress, a record that changed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import django

if TYPE_CHECKING:
    from tests.web import clinic


def main(act: str, *ids: str) -> None:
    """Do one act and print what the test needs, as JSON."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")
    django.setup()
    from django.db import transaction

    with transaction.atomic():
        acts = (build, progress, finish, rise, active, smart, withdraw)
        said = {one.__name__: one for one in acts}[act](*ids)
    print(json.dumps(said))


def build() -> dict[str, str]:
    """The ward of tests/web/clinic.py, one run at work, and real files behind the candidate."""
    from cds.jobs.models import WorkState
    from cds.registry.models import ModelVersion
    from tests.web import clinic

    made = clinic.build(patients=30)
    clinic.feedback(made)
    said(made)
    run = clinic.training_run(made.now, by=made.people["admin"], state=WorkState.RUNNING, fraction=0.3)
    return {
        "patient": str(made.patients[0].pk),
        "abstained": str(made.patients[1].pk),
        "stale": str(made.patients[2].pk),
        "failed": str(made.patients[3].pk),
        "risen": str(made.patients[9].pk),
        "version": str(made.version.pk),
        "candidate": str(ModelVersion.objects.get(number=3).pk),
        "run": str(run.pk),
        "source": str(source(made)),
        **clinic.ehrs(made),
    }


def said(made: clinic.Clinic) -> None:
    """What an EHR told of a card of the first patient, in words that fit no line; and a tumour's volume."""
    from datetime import timedelta

    from cds.hooks.models import CardShown, Feedback
    from cds.studies.models import Measurement, Series
    from tests.web import clinic

    patient, now = made.patients[0], made.now
    card = CardShown.objects.create(
        service=f"tessera-{clinic.OUTCOME}-encounter-discharge", hook_instance="said", kind="risk",
        patient=patient, outcome=clinic.OUTCOME, version=made.version, shown_at=now,
        suggestions={"a": "Order: N-terminal pro-B-type natriuretic peptide"},
    )  # fmt: skip
    for minutes, one in enumerate(
        (
            {"outcome": "accepted", "accepted_suggestions": ["a"]},
            {"outcome": "overridden", "comment": "Donaudampfschifffahrtsgesellschaft" * 12},
            {"outcome": "overridden", "reason_code": "X" * 80, "reason_system": "urn:ehr"},
        )
    ):
        Feedback.objects.create(
            card=card, outcome_at=now - timedelta(minutes=minutes), received_at=now, **one
        )
    series = Series.objects.filter(study__patient=patient).first()
    assert series is not None
    for version, value, why in (("0" * 16, 41.7, ""), ("1" * 16, None, "SliceThickness is not stated " * 9)):
        Measurement.objects.create(
            series=series, pixels_digest=series.pixels_digest, name="tumour_volume", value=value, why=why,
            unit="mL", method="Brain-tumour-segmenter-of-this-site" * 4, method_version=version, made_at=now,
        )  # fmt: skip


def source(made: clinic.Clinic) -> int:
    """The ward's source with a run behind it, one under way, something set aside, and where results go."""
    from datetime import timedelta

    from cds.patients import sources
    from cds.patients.models import RunKind, RunState, SetAside
    from tests.cds.sending import results
    from tests.web import clinic

    of, now, by = made.patients[0].source, made.now, clinic.BY
    where = "https://ehr.example/fhir"
    past = sources.begin(of, kind=RunKind.BULK, where=where, by=by, now=now - timedelta(hours=24))
    counts = {"patients": 30, "taken": 2950, "set_aside": 3}
    sources.end(past, RunState.DONE, by=by, now=now - timedelta(hours=23), counts=counts)
    run = sources.begin(of, kind=RunKind.BULK, where=where, by=by, now=now)
    sources.beat(run, stage="Export files", done=3, total=8, now=now)
    for number in range(3):
        SetAside.objects.create(
            source=of, where=f"Observation-00001.ndjson:{number}", kind="Observation", identity=f"o{number}",
            reason="Observation.value[x]: unit 'kg' cannot be converted to mm[Hg] (systolic-pressure)",
            first_at=now, last_at=now,
        )  # fmt: skip
    results.refuse(results.add_destination(source=of), "POST /fhir/Device: 422: not here")
    return int(of.pk)


def progress(run_id: str, fraction: str) -> dict[str, str]:
    """What a worker does after each step."""
    from django.utils import timezone

    from cds.registry import queries, runs

    runs.note_progress(
        queries.get_run(run_id), step="calibrating", fraction=float(fraction), now=timezone.now(),
        point={"step": "training", "epoch": 13, "train_loss": 0.31, "tuning_loss": 0.36},
    )  # fmt: skip
    return {}


def finish(run_id: str) -> dict[str, str]:
    """The run succeeds: its candidate is registered, with a file on disk that has the digest it says."""
    from django.conf import settings
    from django.utils import timezone

    from cds.audit import recording
    from cds.registry import bundles, queries, runs
    from tests.web import clinic

    run = queries.get_run(run_id)
    folder = settings.BUNDLE_STORE / "of-run"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text("{}")
    made = runs.succeed(
        run,
        path="of-run",
        digest="d" * 64,
        encoders={},
        metadata={"files": bundles.file_digests(folder)},
        report=clinic.report(),
        by=recording.system("test"),
        now=timezone.now(),
    )
    return {"version": str(made.pk), "label": made.label}


def rise(patient_id: str, risk: str) -> dict[str, str]:
    """A fresh score arrives, as from `assessing.finalise`: row, prediction, and the event of it."""
    from django.utils import timezone

    from cds.jobs import outbox
    from cds.patients.models import Patient
    from cds.registry import queries
    from tests.web import clinic

    now = timezone.now()
    patient = Patient.objects.get(pk=patient_id)
    version = queries.active_versions()[0]
    made = clinic.assessment(patient, version, now=now, risk=float(risk), as_of=now)
    outbox.tell("assessment", made.pk, now=now, patient_id=patient.pk)
    return {}


def active(outcome: str) -> dict[str, str]:
    """Which version answers."""
    from cds.registry import queries

    held = queries.active_version(outcome)
    return {"label": held.label if held else ""}


def smart(issuer: str, embedder: str) -> dict[str, str]:
    """An EHR is registered that may launch us, in a frame."""
    from django.utils import timezone

    from cds.audit import recording
    from cds.launch import registering
    from cds.patients import importing
    from tests.launching_ehr import CLIENT

    now = timezone.now()
    registering.register(
        "Test EHR",
        issuer=issuer,
        client_id=CLIENT,
        source=importing.get_source("ehr", now=now),
        embedders=[embedder],
        by=recording.system("test"),
        now=now,
    )
    return {}


def withdraw(issuer: str) -> dict[str, str]:
    """That EHR is registered no more."""
    from django.utils import timezone

    from cds.audit import recording
    from cds.launch import registering

    registering.withdraw(issuer, by=recording.system("test"), now=timezone.now())
    return {}


if __name__ == "__main__":
    main(*sys.argv[1:])
