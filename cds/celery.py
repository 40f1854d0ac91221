"""The Celery app. Queues: interactive (scores people wait for), batch (encoding), exchange (calls to other
systems), train (retraining)."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import celeryd_init
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")

app = Celery("tessera")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(
    ["cds.jobs", "cds.studies", "cds.registry", "cds.risk", "cds.sending", "cds.subscriptions", "cds.launch"]
)


@celeryd_init.connect
def connect_without_a_pool(**_: Any) -> None:
    """A worker keeps plain database connections, one a task.

    When a worker process begins, Celery's Django fixup closes the sockets of open connections underneath
    them. A pool would take such a connection back and hand it out again: the next task then waits for ever on
    a file that is no longer a socket (seen: psycopg_pool 3, celery 5.7, solo pool).
    """
    for database in settings.DATABASES.values():
        database.get("OPTIONS", {}).pop("pool", None)
