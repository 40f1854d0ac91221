"""The clinic: patients, studies, models and risks, and what happens next."""

from cds.celery import app as celery_app

__all__ = ["celery_app"]
