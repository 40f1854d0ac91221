from django.apps import AppConfig


class SendingConfig(AppConfig):
    name = "cds.sending"
    label = "sending"
