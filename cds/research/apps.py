from django.apps import AppConfig


class ResearchConfig(AppConfig):
    name = "cds.research"
    label = "research"
