"""`manage.py assess [--patient ID | --all] [--wait | --here]`: ask for fresh scores."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from redis import RedisError
from rich.progress import track

from cds.audit import recording
from cds.jobs import Queue, beats, leases
from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.registry import queries as registry_queries
from cds.risk import assessing
from cds.risk.models import RiskAssessment

BY = recording.system("command")
NOBODY_AFTER_S = 10.0  # a worker takes some seconds to start
OPEN = (WorkState.QUEUED, WorkState.RUNNING)


class Command(BaseCommand):
    help = "Ask the active models for fresh scores of one patient or of all."

    def add_arguments(self, parser: CommandParser) -> None:
        who = parser.add_mutually_exclusive_group(required=True)
        who.add_argument("--patient", help="id of a patient")
        who.add_argument("--all", action="store_true", help="every patient")
        parser.add_argument(
            "--wait", action="store_true", help="until every score has ended; exit 1 if any failed"
        )
        parser.add_argument("--here", action="store_true", help="score in this process, without a worker")

    def handle(self, *args: Any, **options: Any) -> None:
        if not registry_queries.active_versions():
            raise CommandError("no model is active yet: manage.py retrain, then manage.py promote")
        asked = [
            assessment.pk
            for patient in track(_patients(options["patient"]), description="asking", transient=True)
            for assessment in assessing.request_all(patient, by=BY, now=timezone.now())
        ]
        if options["here"]:
            asked = _score_here(asked)
        elif options["wait"]:
            _wait(asked)
        counts = Counter(RiskAssessment.objects.filter(pk__in=asked).values_list("work_state", flat=True))
        said = ", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "nobody to score"
        self.stdout.write(f"{len(asked)} scores asked for: {said}.")
        if counts[WorkState.FAILED]:
            raise CommandError("some scores failed; the reason is shown beside each patient")


def _score_here(asked: list[uuid.UUID]) -> list[uuid.UUID]:
    """Encode what is not yet encoded, then score; returns the requests about the record as it is then."""
    from cds.risk import scoring  # torch

    patients = Patient.objects.filter(assessments__in=asked).distinct().order_by("-changed_at")
    for patient in track(list(patients), description="encoding", transient=True):
        scoring.encode_patient(patient)
    asked = [
        assessment.pk
        for patient in patients
        for assessment in assessing.request_all(patient, by=BY, now=timezone.now())
    ]
    for pk in track(asked, description="scoring", transient=True):
        scoring.score(pk)
        scoring.explain(pk)
    return asked


def _patients(given: str | None) -> list[Patient]:
    if given is None:
        return list(Patient.objects.order_by("-changed_at"))
    try:
        found = Patient.objects.filter(pk=uuid.UUID(given)).first()
    except ValueError:
        found = None
    if found is None:
        raise CommandError(f"no patient {given!r}")
    return [found]


def _wait(asked: list[uuid.UUID]) -> None:
    """Until all have ended; an error when nothing moves and no worker beats for their queue."""
    left, moved = len(asked), time.monotonic()
    while left:
        leases.sweep(timezone.now())  # nobody else may be sweeping; twice is harmless
        time.sleep(0.5)
        now_left = RiskAssessment.objects.filter(pk__in=asked, work_state__in=OPEN).count()
        if now_left < left:
            moved = time.monotonic()
        elif time.monotonic() - moved > NOBODY_AFTER_S and not _is_served():
            raise CommandError(
                f"{now_left} scores still wait. Start a worker with\n"
                "    celery -A cds worker --pool solo -Q interactive,batch\n"
                "or score in this process with --here."
            )
        left = now_left


def _is_served() -> bool:
    """Whether a worker beats for the interactive queue."""
    try:
        return beats.alive(beats.connect())[Queue.INTERACTIVE]
    except RedisError:
        return False
