from django.apps import AppConfig


class PatientsConfig(AppConfig):
    name = "cds.patients"
    label = "patients"
