"""The tasks of encoding and scoring, the periodic refresh, and the warming of workers.

torch is imported inside: the sweeper and the sender of jobs never need it.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import worker_process_init
from django.db import DatabaseError
from django.utils import timezone

from cds.celery import app
from cds.jobs import Job
from cds.jobs.tasks import task

logger = logging.getLogger(__name__)


@task(Job.ENCODE)
def encode(encoding_id: str) -> None:
    from cds.risk import scoring

    scoring.encode(encoding_id)


@task(Job.ENCODE_NOTES)
def encode_notes(patient_id: str) -> None:
    from cds.risk import scoring

    scoring.encode_notes(patient_id)


@task(Job.SCORE)
def score(assessment_id: str) -> None:
    from cds.risk import scoring

    scoring.score(assessment_id)


@task(Job.EXPLAIN)
def explain(assessment_id: str) -> None:
    from cds.risk import scoring

    scoring.explain(assessment_id)


@task(Job.ASSESS)
def assess(patient_id: str) -> None:
    from cds.risk import refreshing

    refreshing.assess(patient_id, now=timezone.now())


@task(Job.ASSESS_ALL)
def assess_all(outcome: str = "") -> None:
    from cds.risk import refreshing

    refreshing.assess_all(now=timezone.now())


@app.task(name="cds.risk.tasks.refresh_stale", queue="batch", ignore_result=True)
def refresh_stale() -> None:
    """Every 5 min: see `refreshing.refresh_stale`; before it, which policies are in use is noted."""
    from cds.risk import policing, refreshing

    policing.note(now=timezone.now())
    refreshing.refresh_stale(now=timezone.now())


@app.task(name="cds.risk.tasks.watch_inputs", queue="batch", ignore_result=True)
def watch_inputs() -> None:
    """Every 6 h: see `monitoring.watch_inputs`."""
    from cds.risk import monitoring

    monitoring.watch_inputs(now=timezone.now())


@worker_process_init.connect
def warm_up(**_: Any) -> None:
    """One torch thread per process (SCIENCE 5), and the active models in memory before the first score."""
    import torch

    torch.set_num_threads(1)
    from cds.risk import scoring
    from fusion import FusionError

    try:
        scoring.warm_up()
    except (DatabaseError, FusionError, OSError):
        logger.warning(
            "could not load the active models yet; they are loaded at the first score", exc_info=True
        )
