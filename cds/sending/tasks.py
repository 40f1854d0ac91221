"""The tasks of sending: one document, and the look for what is new or due."""

from __future__ import annotations

from django.utils import timezone

from cds.celery import app
from cds.jobs import Job
from cds.jobs.tasks import task


@task(Job.SEND)
def send(document_id: str) -> None:
    from cds.sending import delivering

    delivering.deliver(document_id)


@task(Job.CHECK_DESTINATION)
def check_destination(destination_id: str) -> None:
    from cds.sending import destinations

    destinations.check(destination_id, now=timezone.now())


@app.task(name="cds.sending.tasks.collect", queue="exchange", ignore_result=True)
def collect() -> None:
    """Every 15 s: see `composing.compose_all` and `delivering.wake_due`."""
    from cds.sending import composing, delivering

    now = timezone.now()
    composing.compose_all(now=now)
    delivering.wake_due(now=now)
