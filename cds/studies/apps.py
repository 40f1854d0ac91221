from django.apps import AppConfig


class StudiesConfig(AppConfig):
    name = "cds.studies"
    label = "studies"
