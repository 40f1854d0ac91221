"""What a worker does before its first task."""

from __future__ import annotations

from typing import Any

import pytest
from celery.fixups.django import DjangoWorkerFixup
from celery.signals import celeryd_init, task_prerun
from django.db import connection, connections

from cds.celery import app


def test_a_worker_keeps_no_pool_of_database_connections(settings: Any) -> None:
    """Celery closes sockets under a pool; the second task would then wait for ever (see cds/celery.py)."""
    settings.DATABASES = {"default": {"OPTIONS": {"pool": {"min_size": 1}, "sslmode": "require"}}}
    celeryd_init.send(sender="test", instance=None, conf=app.conf, options={})
    assert settings.DATABASES["default"]["OPTIONS"] == {"sslmode": "require"}


def test_a_worker_keeps_its_connection_from_task_to_task(settings: Any) -> None:
    """One that is closed after each task costs as much as the statements of a score."""
    settings.DATABASES = {"default": {"CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": False}}
    celeryd_init.send(sender="test", instance=None, conf=app.conf, options={})
    kept = settings.DATABASES["default"]
    assert kept["CONN_MAX_AGE"] > 0
    assert kept["CONN_HEALTH_CHECKS"] is True
    assert DjangoWorkerFixup(app).db_reuse_max > 1000, "or Celery closes it after each task"


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_broke_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 300)
    connection.close()
    connection.ensure_connection()
    kept = connection.connection
    task_prerun.send(sender=None)
    assert connection.connection is kept, "it works"
    connection.errors_occurred = True
    monkeypatch.setattr(connections["default"], "is_usable", lambda: False)
    task_prerun.send(sender=None)
    assert connection.connection is None
