"""The task that asks whether a source answers."""

from __future__ import annotations

from django.utils import timezone

from cds.jobs import Job
from cds.jobs.tasks import task


@task(Job.CHECK_SOURCE)
def check_source(source_id: str) -> None:
    from cds.studies import checking

    checking.check(source_id, now=timezone.now())
