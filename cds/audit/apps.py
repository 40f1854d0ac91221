from django.apps import AppConfig


class AuditConfig(AppConfig):
    name = "cds.audit"
    label = "audit"
