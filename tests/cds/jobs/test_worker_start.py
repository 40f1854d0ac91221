"""What a worker does before its first task."""

from __future__ import annotations

from typing import Any

from celery.signals import celeryd_init

from cds.celery import app


def test_a_worker_keeps_no_pool_of_database_connections(settings: Any) -> None:
    """Celery closes sockets under a pool; the second task would then wait for ever (see cds/celery.py)."""
    settings.DATABASES = {"default": {"OPTIONS": {"pool": {"min_size": 1}, "sslmode": "require"}}}
    celeryd_init.send(sender="test", instance=None, conf=app.conf, options={})
    assert settings.DATABASES["default"]["OPTIONS"] == {"sslmode": "require"}
