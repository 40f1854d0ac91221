from django.apps import AppConfig


class RegistryConfig(AppConfig):
    name = "cds.registry"
    label = "registry"
