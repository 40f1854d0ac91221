from django.apps import AppConfig


class LaunchConfig(AppConfig):
    name = "cds.launch"
    label = "launch"
