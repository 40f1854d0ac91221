from django.apps import AppConfig


class SubscriptionsConfig(AppConfig):
    name = "cds.subscriptions"
    label = "subscriptions"
