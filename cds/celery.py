"""The Celery app. Queues: interactive (scores people wait for), batch (encoding), train (retraining)."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")

app = Celery("tessera")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["cds.jobs", "cds.studies", "cds.registry", "cds.risk"])
