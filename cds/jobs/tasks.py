"""The one decorator that owns task policy, and the sweeper."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import structlog
from django.utils import timezone

from cds.celery import app
from cds.jobs import QUEUES, Job, beats, leases


def task(job: Job) -> Callable[[Callable[..., Any]], Any]:
    """Declare the Celery task of `job`: acks late, its own queue, keyword ids only, safe to run twice.

    The body fetches by id and calls one function. Unknown keywords are dropped, so that old workers survive
    new callers.
    """

    def declare(body: Callable[..., Any]) -> Any:
        known = frozenset(inspect.signature(body).parameters)

        @wraps(body)
        def run(correlation_id: str = "", **kwargs: Any) -> None:
            with structlog.contextvars.bound_contextvars(correlation_id=correlation_id, job=job.value):
                body(**{name: value for name, value in kwargs.items() if name in known})

        # Celery would check a call against the signature of the body, which is not the one that is called.
        vars(run).pop("__wrapped__", None)

        return app.task(name=job.value, queue=QUEUES[job].value, acks_late=True, ignore_result=True)(run)

    return declare


__all__ = ["beats", "sweep", "task"]  # workers load this module, and with it say that they are alive


@app.task(name="cds.jobs.tasks.sweep", queue="interactive", ignore_result=True)
def sweep() -> None:
    """Every 15 s: see `leases.sweep`."""
    leases.sweep(timezone.now())
