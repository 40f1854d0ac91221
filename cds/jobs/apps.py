from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "cds.jobs"
    label = "jobs"
