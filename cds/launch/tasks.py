"""The periodic task of launches and sign-ins."""

from __future__ import annotations

from django.utils import timezone

from cds.celery import app


@app.task(name="cds.launch.tasks.end_sessions", queue="interactive", ignore_result=True)
def end_sessions() -> None:
    """Every hour: see `ending.end_sessions`."""
    from cds.launch import ending

    ending.end_sessions(timezone.now())
