from django.apps import AppConfig


class RiskConfig(AppConfig):
    name = "cds.risk"
    label = "risk"
