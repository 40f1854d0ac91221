"""The Celery app. Queues: interactive (scores people wait for), batch (encoding), exchange (calls to other
systems), train (retraining)."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, task_prerun
from django.conf import settings
from django.db import close_old_connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")

CONNECTION_KEPT_S = 300  # then a new one: what a server holds for it does not grow for ever

app = Celery("tessera")
app.config_from_object("django.conf:settings", namespace="CELERY")
# Celery closes every connection after so many tasks; of those before, `keep_what_works` takes care.
app.add_defaults(lambda: {"CELERY_DB_REUSE_MAX": 10_000})
app.autodiscover_tasks(
    ["cds.jobs", "cds.studies", "cds.registry", "cds.risk", "cds.sending", "cds.subscriptions", "cds.launch"]
)


@celeryd_init.connect
def connect_plainly(**_: Any) -> None:
    """A worker keeps a plain database connection from task to task: a new one for each costs as much as the
    statements of a score, and knows no prepared ones.

    When a worker process begins, Celery's Django fixup closes the sockets of open connections underneath
    them. A pool would take such a connection back and hand it out again: the next task then waits for ever on
    a file that is no longer a socket (seen: psycopg_pool 3, celery 5.7, solo pool).
    """
    for database in settings.DATABASES.values():
        database.get("OPTIONS", {}).pop("pool", None)
        database["CONN_MAX_AGE"], database["CONN_HEALTH_CHECKS"] = CONNECTION_KEPT_S, True


@task_prerun.connect
def keep_what_works(**_: Any) -> None:
    """Before a task: a connection that is too old or broken is closed, any other asked whether it still works
    when it is first used."""
    close_old_connections()
