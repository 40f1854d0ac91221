"""The tasks of subscriptions: run an errand; every minute, look for gaps."""

from __future__ import annotations

from django.utils import timezone

from cds.celery import app
from cds.jobs import Job
from cds.jobs.tasks import task


@task(Job.RUN_ERRAND)
def run_errand(errand_id: str) -> None:
    from cds.subscriptions import errands

    errands.run(errand_id)


@app.task(name="cds.subscriptions.tasks.watch", queue="exchange", ignore_result=True)
def watch() -> None:
    """Every minute: see `gaps.watch`."""
    from cds.subscriptions import gaps

    gaps.watch(timezone.now())
