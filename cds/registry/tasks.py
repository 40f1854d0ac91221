"""The task of retraining."""

from __future__ import annotations

from cds.jobs import Job
from cds.jobs.tasks import task


@task(Job.TRAIN)
def train(run_id: str) -> None:
    from cds.registry import training  # torch: only in the worker that trains

    training.execute(run_id)
